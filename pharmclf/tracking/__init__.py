"""Experiment tracking of runs and sweeps: TensorBoard event files and an MLflow server."""

from pharmclf.tracking.mlflow_logger import EXPERIMENT
from pharmclf.tracking.tracker import SweepTracker, Tracker, check_tracking, track_complete

__all__ = ["EXPERIMENT", "SweepTracker", "Tracker", "check_tracking", "track_complete"]
