"""A training step that is taken again and again on one batch, to be timed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.data.image_set import ImageSet
from pharmclf.training import collectives
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.model_step import ModelStep, build_networks
from pharmclf.training.phases import Phase
from pharmclf.training.train_step import Batch, synthetic_batch

Networks = tuple[Any, Any]
"""Backbone and head, Keras models."""
_NUM_CLASSES = 10


@dataclass(frozen=True)
class TimedStep:
    """A training step of one phase, and its batch."""

    model: ModelStep
    batch: Batch

    def __call__(self) -> Any:
        """Take the step and wait for it -> loss sum, correct, stop votes."""
        return self.train(self.batch)

    def train(self, batch: Batch) -> Any:
        """The same on another batch of this shape."""
        return self.model.train_step(batch, tf.constant(0.0)).numpy()


def build_step(
    job: TrainingContext, phase: Phase, workers: Workers, networks: Networks, precision: str, batch: Batch | None = None
) -> TimedStep:
    """The step of a phase, not traced yet; without a batch, on noise. (all ranks)"""
    microbatch = job.microbatches.get(phase.name, 0)
    model = ModelStep(job.config, workers, *networks, phase.unfreeze_blocks, precision, microbatch=microbatch)
    if batch is None:
        batch = synthetic_batch(job.config, -(-job.config.batch_size // workers.world))
    return TimedStep(model, batch)


def build_synthetic_step(config: RunConfig, phase: Phase, precision: str) -> TimedStep:
    """The step of a phase as one worker takes it, with random weights, on noise."""
    no_rows = np.zeros(0, np.int64)
    job = TrainingContext(
        config=dataclasses.replace(config, weights="none"),
        folder="",
        class_names=tuple(f"class {number}" for number in range(_NUM_CLASSES)),
        images=ImageSet.of_paths([]),
        labels=no_rows,
        train_rows=no_rows,
        validation_rows=no_rows,
        fingerprints={},
    )
    workers = collectives.single_worker()
    return build_step(job, phase, workers, build_networks(job, workers, precision), precision)
