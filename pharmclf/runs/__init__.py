"""A run as a whole: its record, its status, its final evaluation, and the model of the best run."""
