"""Inputs of the training loop, which the driver knows too: no Ray, no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import RunError
from pharmclf.data.image_cache import ImageCache
from pharmclf.data.image_set import ImageSet
from pharmclf.feature_cache.shards import CachedFeatures

MODEL_FILE = "model/model.keras"
LABELS_FILE = "model/labels.json"
PIXELS_FILE = "model/pixels.json"
"""How the model's images were decoded: the white level of 16-bit files; absent if it is the default."""
CHECKSUMS_FILE = "model/checksums.json"
"""sha256 of the other files; written last."""


def phase_model_file(phase: str) -> str:
    """File in the run folder of the best model of a phase, which the report compares with that of the other phase."""
    return f"model/{phase}.keras"


def known_labels(model: str) -> list[str]:
    """Labels of a saved model, in the order of its outputs, from the file next to it."""
    labels: list[str] = storage.read_json(storage.join(model.rpartition("/")[0], LABELS_FILE.rpartition("/")[2]))
    return labels


class TrainingDivergedError(RunError):
    """The loss is not finite."""


class DeviceOutOfMemoryError(RunError):
    """Device out of memory. Not retryable."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingContext:
    """Inputs of the training loop, the same on every worker."""

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
    """Must equal those of a checkpoint that is resumed."""
    activations: Mapping[str, CachedFeatures] = field(default_factory=dict)
    """Cached features by name of the phase; a phase without streams the images."""
    image_cache: ImageCache | None = None
    """Of decoded images on each node; None: streamed images are decoded in every epoch."""
    microbatches: Mapping[str, int] = field(default_factory=dict)
    """Most rows that a device computes at once, by name of the phase; a phase without computes its share at once."""
    loader_cpus: float = 1.0
    """CPUs that the input pipeline of each worker may use."""
    saves_models: bool = True
    """Whether the trained models are saved; False for the trials of a sweep, of which only the best is saved."""
    deadline: float = math.inf
    """`time.time()` at which the run should end; phases are shortened for it."""
    monitor_interval_s: float = 0.0
    """Seconds between hardware samples of the workers; 0: none."""

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.folder, "checkpoints")
