"""A training step on a batch of noise: the values cost nothing and decide nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.data.image_set import ImageSet
from pharmclf.training import collectives, trainer
from pharmclf.training.context import TrainingContext
from pharmclf.training.model_step import ModelStep
from pharmclf.training.phases import Phase
from pharmclf.training.synthetic_batch import synthetic_batch
from pharmclf.training.train_step import Batch

_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class SyntheticStep:
    """A training step of one phase, again and again on the same batch of noise."""

    model: ModelStep
    batch: Batch

    @staticmethod
    def of(config: RunConfig, phase: Phase, precision: str) -> SyntheticStep:
        """The step of a phase as this process alone takes it, on random weights; nothing is traced yet."""
        nobody = np.zeros(0, np.int64)
        job = TrainingContext(
            config=dataclasses.replace(config, weights="none"),
            folder="",
            class_names=tuple(f"class {place}" for place in range(_CLASSES)),
            images=ImageSet.of_paths([]),
            labels=nobody,
            train_rows=nobody,
            validation_rows=nobody,
            fingerprints={},
        )
        workers = collectives.single_worker()
        networks = trainer.build_networks(job, workers, precision)
        model = ModelStep(job.config, workers, *networks, phase.unfreeze_blocks, precision)
        return SyntheticStep(model, synthetic_batch(config, config.batch_size))

    def __call__(self) -> Any:
        """Take a step and wait for it -> loss sum, correct, stop votes."""
        return self.model.train_step(self.batch, tf.constant(0.0)).numpy()
