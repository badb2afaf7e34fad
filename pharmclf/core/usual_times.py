"""Seconds that waits usually take, measured on 2 to 16 cores. They are shown, and decide nothing."""

LOAD_PROGRAM_S = 3.0
"""The imports of a command."""
IMPORT_TENSORFLOW_S = 8.0
START_RAY_S = 12.0
START_WORKERS_S = 25.0
"""Processes on Ray, which import TensorFlow."""
BUILD_MODEL_S = 4.0
FIRST_STEP_S = 15.0
"""From the start of a phase that reads images to the end of its first step."""
FIRST_CACHED_STEP_S = 5.0
"""The same on cached features."""
SAVE_MODEL_S = 3.0
LOAD_MODEL_S = 12.0
"""TensorFlow and a saved model."""
WRITE_FORMAT_S = 12.0
"""An exported model."""
DRAW_S = 8.0
"""Figures of an evaluation and of its report."""
ALLREDUCE_S = 40.0
"""Two workers that start, and sum."""
EXAMINE_NODES_S = 30.0
