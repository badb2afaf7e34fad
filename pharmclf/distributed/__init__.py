"""The workers of a run on a Ray cluster: started, watched, and started again after failures."""
