"""Options of the evaluation of a saved model. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is tested on what, and where the result goes."""

    model: str = ""
    """A run's folder, its model folder, a folder of `pharmclf fetch-best`, or a .keras file; local or s3://."""
    data: str = "test"
    """Folder, s3:// prefix or list of labelled images; test or validation: that split of the run's own data."""
    name: str = ""
    """What the set is called. Empty: the last part of its path."""
    out: str = ""
    """Folder or s3:// prefix of the result. Empty: evaluation/<name>/ in the run's folder."""
    num_workers: str = "0"
    """Processes on Ray that predict, one accelerator each; 0: this process."""
    max_invalid: str = "20%"
    """Largest share of images that cannot be read, as 1% or 0.01."""
    storage: str = "runs"
    """Folder or s3:// prefix that keeps the lists of images examined."""
    allow_unauthenticated_cluster: bool = False
    """Join a cluster whose job server takes jobs from anyone who reaches it."""
