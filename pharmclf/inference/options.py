"""Options of a prediction job. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pharmclf import storage
from pharmclf.config import check_location
from pharmclf.core.errors import ConfigError

Accelerator = Literal["auto", "cpu", "gpu"]
AUTO = "auto"
OUTPUTS = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What is predicted by which model, and where the table goes."""

    model: str = ""
    """A run's folder, its model folder, a folder of `pharmclf fetch-best`, or a .keras file with its labels.json; or s3://."""
    input: str = ""
    """Folder or s3:// prefix of images at any depth, one image, or a .csv or .parquet list with a column path."""
    output: str = ""
    """The table: FILE.parquet or FILE.csv, local or s3://."""
    threshold: float | None = None
    """Confidence below which the model abstains, 0..1. None: the one that was chosen on its validation images."""
    num_workers: str = AUTO
    """Processes on Ray that predict, one GPU each where there are some; 0: this process. auto: one for each GPU of the
    cluster, without GPUs one for each node; this process for few images, or where there is no cluster."""
    accelerator: Accelerator = "auto"
    """auto: GPUs where there are any. gpu: nothing else. cpu: GPUs are left to others."""
    part_size: int = 2048
    """Images of a part, the most that a kill costs. A job resumes only from parts of the same size."""
    overwrite: bool = False
    """Replace an existing table, once the new one is complete."""
    allow_unauthenticated_cluster: bool = False
    """Join a cluster whose job server takes jobs from anyone who reaches it."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model: received nothing, expected a run's folder or a .keras file. Give --model RUN")
        if not self.input:
            raise ConfigError("--input: received nothing, expected images. Give a folder, an s3:// prefix or a list")
        if not self.output.endswith(OUTPUTS):
            raise ConfigError(f"--output: received {self.output!r}, expected FILE.parquet or FILE.csv")
        if storage.absolute(self.output) == storage.absolute(self.input):
            raise ConfigError("--output: received the list of --input, which it would replace. Give another file")
        for name, location in (("--model", self.model), ("--input", self.input), ("--output", self.output)):
            check_location(name, location)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold: received {self.threshold:g}, expected a confidence from 0 to 1")
        if self.num_workers != AUTO and not self.num_workers.isdecimal():
            raise ConfigError(
                f"--num-workers: received {self.num_workers!r}, expected auto, or a number of processes from 0"
            )
        if self.part_size < 1:
            raise ConfigError(f"--part-size: received {self.part_size}, expected 1 image or more")
