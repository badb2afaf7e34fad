"""Tiny runs whose losses and weights are frozen: streamed, killed, on frozen features, by two workers, heads together.

All that these tests import of the training is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.recorder import Recorder
from support.worker_pair import Scene, train_as_pair

from pharmclf.config import AugmentConfig, HeadConfig, OptimizerConfig, PhaseConfig
from pharmclf.core.events import EpochRecord
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.training.checkpoint import newest_checkpoint
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import build_phases

SETTINGS: dict[str, Any] = {
    "augment": AugmentConfig(rotation_deg=180, vertical_flip=True, views=2),
    "head": HeadConfig(dense=(16,), dropout=0.3),
    "unfreeze_blocks": 2,
    "phase1": PhaseConfig(epochs=2, learning_rate=1e-3),
    "phase2": PhaseConfig(epochs=2, learning_rate=1e-4),
    "feature_cache_dtype": "float32",
    "precision": "float32",
}
HEADS: list[dict[str, Any]] = [
    {},
    {"phase1": PhaseConfig(epochs=2, learning_rate=3e-3), "head": HeadConfig(dense=(16,), dropout=0.0)},
    {"optimizer": OptimizerConfig(label_smoothing=0.1, weight_decay=0.01)},
]
_LOSSES = ("train_loss", "val_loss")


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    losses: list[float]
    """Of training and validation, epoch by epoch."""
    weights: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray]

    @property
    def sha256(self) -> str:
        """Of the names and the bytes of the weights."""
        total = hashlib.sha256()
        for name, array in sorted(self.weights.items()):
            total.update(name.encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def has_bits_of(self, other: Trained) -> bool:
        """Whether losses, weights and optimizer state are equal to the last bit."""
        pairs = ((self.weights, other.weights), (self.optimizer, other.optimizer))
        return self.losses == other.losses and all(
            set(one) == set(two) and all(np.array_equal(one[name], two[name]) for name in one) for one, two in pairs
        )

    def difference(self, other: Trained) -> float:
        """The largest difference of a weight, relative to the largest of its tensor, or 1 where that is smaller."""
        assert set(self.weights) == set(other.weights)
        return max(
            float(np.abs(array - other.weights[name]).max() / max(1.0, np.abs(array).max()))
            for name, array in self.weights.items()
        )


class Killed(BaseException):
    """Ends a run at once, as SIGKILL does."""


class Killer(Recorder):
    """Raises between two steps."""

    def should_stop(self) -> bool:
        if super().should_stop():
            raise Killed
        return False


def train(job: TrainingContext) -> Trained:
    """Train by one worker in this process."""
    from pharmclf.training import collectives, trainer

    outcome = trainer.Trainer(job, collectives.single_worker(), Recorder()).fit()
    return _trained(job, outcome.status, outcome.history)


def train_killed(job: TrainingContext, batches: int) -> Trained:
    """Train, kill the run after so many batches, and resume it from its newest checkpoint."""
    from pharmclf.training import collectives, trainer

    try:
        trainer.Trainer(job, collectives.single_worker(), Killer(batches)).fit()
    except Killed:
        return train(job)
    raise AssertionError("the run ended before it could be killed")


def train_by_two(job: TrainingContext, folder: Path) -> Trained:
    """Train by two workers, each a process."""
    folder.mkdir()
    ((line,), _) = train_as_pair([Scene(job=job)], folder)
    history = [EpochRecord.from_dict(record) for record in line["outcome"]["history"]]
    return _trained(job, line["outcome"]["status"], history)


def train_heads_together(jobs: list[TrainingContext]) -> list[Trained]:
    """Train heads as one program."""
    from pharmclf.training import collectives
    from pharmclf.training.vectorized_heads import HeadSpec, train_heads

    members = [HeadSpec(config=job.config, folder=job.folder, fingerprints=job.fingerprints) for job in jobs]
    outcomes = train_heads(jobs[0], members, collectives.single_worker(), Recorder())
    return [_trained(job, one.status, one.history) for job, one in zip(jobs, outcomes, strict=True)]


def with_features(job: TrainingContext, manifest: Any, storage: str) -> TrainingContext:
    """The job with the frozen features of its phases, which are computed where they are not there yet."""
    config = dataclasses.replace(job.config, feature_cache="always", storage=storage)
    works = [PhaseDemand(phase.name, phase.unfreeze_blocks, phase.settings.epochs) for phase in build_phases(config)]
    wish = FeatureRequest(config, manifest, config.weights, works, lambda _: None, lambda: False, lambda _: None)
    return dataclasses.replace(job, config=config, activations=get_or_compute(wish))


def _trained(job: TrainingContext, status: str, history: Sequence[EpochRecord]) -> Trained:
    assert status == "complete"
    found = newest_checkpoint(job.checkpoints)
    assert found is not None
    losses = [float(getattr(record, name)) for record in history for name in _LOSSES]
    return Trained(losses, found[1]["weights"], found[1]["optimizer"])
