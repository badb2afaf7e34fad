"""What the loop is given; known to the driver too, so it imports neither Ray nor TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import RunError
from pharmclf.data.image_set import ImageSet
from pharmclf.feature_cache.shards import CachedFeatures

MODEL_FILE = "model/model.keras"
LABELS_FILE = "model/labels.json"
PIXELS_FILE = "model/pixels.json"
"""How the model's images were decoded: the white level of files of 16 bits; not there where it is the common one."""
CHECKSUMS_FILE = "model/checksums.json"
"""sha256 of each file beside it; written last."""


def phase_model_file(phase: str) -> str:
    """Place in the run folder of a phase's own best model, kept for the comparison of the phases."""
    return f"model/{phase}.keras"


class TrainingDivergedError(RunError):
    """The loss is not a finite number any more."""


class DeviceOutOfMemoryError(RunError):
    """A device does not hold what it shall compute at once; another try would end in the same way."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingContext:
    """All that the loop needs, the same on every worker."""

    config: RunConfig
    folder: str
    """The run's folder in storage."""
    class_names: tuple[str, ...]
    images: ImageSet
    """The files of the manifest, row by row."""
    labels: np.ndarray
    """(rows,) int64, index into `class_names`."""
    train_rows: np.ndarray
    """(n,) int64 row numbers of the training split."""
    validation_rows: np.ndarray
    """(m,) int64 row numbers of the validation split."""
    fingerprints: dict[str, Any]
    """What a checkpoint must agree with to be resumed."""
    activations: Mapping[str, CachedFeatures] = field(default_factory=dict)
    """By name of the phase that trains on them; the others stream the images."""
    microbatches: Mapping[str, int] = field(default_factory=dict)
    """Most rows that a device computes at once, by name of the phase; where there is none, its whole share."""
    loader_cpus: float = 1.0
    """CPUs that each worker's pipeline may use at a time."""
    saves_models: bool = True
    """Whether the trained models are saved; of the trials of a sweep only the winner's is."""
    hardware_every_s: float = 0.0
    """Seconds between readings of the workers' hardware; 0: nobody takes them."""

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.folder, "checkpoints")
