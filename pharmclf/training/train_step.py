"""A step as the trainer sees it: batch, result, the protocol of what computes it; and shared tensor functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.core.compat.keras import PreReducedGradients
from pharmclf.data.augment import draw_augmentations

Tensors = dict[str, dict[str, np.ndarray]]
"""Arrays of a checkpoint by name, by file: weights, optimizer."""


class Batch(NamedTuple):
    """One worker's share of one step, on the device."""

    inputs: Any  # (local batch, S, S, 3) uint8, or cached features (local batch, *shape)
    transforms: Any  # (local batch, 8 or 20) float32, see data/augment.py
    labels: Any  # (local batch,) int64
    mask: Any  # (local batch,) float32, 0 for padding, and for rows whose image is quarantined
    weights: Any  # (local batch,) float32, the class weight of the row, 0 where the mask is
    count: Any  # () float32, rows of the global batch over all workers, according to the plan
    global_step: Any  # () int64, number of the training step in the run, which seeds dropout


def synthetic_batch(config: RunConfig, images: int) -> Batch:
    """A random batch of a single worker, on the device, for measurements of time and memory."""
    side, rows = config.image_size, np.arange(images)
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    return Batch(
        tf.constant(pixels),
        tf.constant(draw_augmentations(config.augment, side, config.seed, 0, rows)),
        tf.zeros(images, tf.int64),
        tf.ones(images),
        tf.ones(images),
        tf.constant(float(config.batch_size)),
        tf.constant(0, tf.int64),
    )


@dataclass(frozen=True)
class StepResult:
    """Sums of a step over all workers, of each of K models."""

    loss_sum: np.ndarray
    """(K,) float64."""
    correct: np.ndarray
    """(K,) float64."""
    images: np.ndarray
    """(K,) float64, rows that count: those of the plan without the quarantined."""
    stop_votes: float
    by_class: np.ndarray | None
    """(2, classes, K) correct rows and rows of each class; of a validation step whose epochs are chosen by them."""

    @classmethod
    def of(cls, sums: Any) -> StepResult:
        """Read the sums of a step off the device; waits for the step, and raises its errors.

        Args:
            sums: (4, ...) loss sum, correct, stop votes and images, or (4 + 2 * classes, ...); the last axis is K, or
                absent where K is 1.
        """
        values = sums.numpy().astype(np.float64)
        values = values.reshape(len(values), -1)
        loss_sum, correct, stop_votes, images = values[:4]
        by_class = values[4:].reshape(2, -1, values.shape[1]) if len(values) > 4 else None
        return cls(loss_sum, correct, images, float(stop_votes[0]), by_class)


class TrainStep(Protocol):
    """Training and validation steps of one model, or of K models that are one program."""

    def set_learning_rates(self, rates: np.ndarray) -> None:
        """Set the learning rate of each model, (K,) float32, for the next steps; with 0 it keeps its weights."""

    def train_step(self, batch: Batch, stop_vote: Any) -> Any:
        """Take a training step -> its sums on the device, see `StepResult.of`. (all ranks)

        Args:
            stop_vote: () float32, 1 where this worker votes for a stop.
        """

    def validation_step(self, batch: Batch, stop_vote: Any) -> Any:
        """As `train_step`, without training; the loss is the plain cross-entropy. (all ranks)"""

    def keep_best(self, improved: np.ndarray) -> None:
        """Keep the weights of some models, (K,) bool, as those of their best epoch. (all ranks)"""

    def restore_best(self) -> None:
        """Restore the weights of each model's best epoch, if they were kept. (all ranks)"""

    def state_dict(self, index: int, /) -> Tensors:
        """Tensors of a model for its checkpoint: trained weights by path, optimizer by number and path."""


class PreReducedAdam(PreReducedGradients, keras.optimizers.Adam):
    """Adam for gradients that are summed over the workers already."""


def per_example_loss_and_correct(logits: Any, batch: Batch, smoothing: Any) -> tuple[Any, Any]:
    """The loss of every row, and the number of correct rows.

    Args:
        logits: (..., batch, classes); a leading axis is that of vectorized heads.
        smoothing: the share of a target that is spread over all classes, a number or (..., 1, 1).

    Returns:
        (..., batch) float32 and (...) float32, masked rows not counted.
    """
    num_classes = logits.shape[-1]
    targets = tf.one_hot(batch.labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes
    hits = tf.cast(tf.argmax(logits, axis=-1) == batch.labels, tf.float32)
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))
    return losses, tf.reduce_sum(hits * batch.mask, axis=-1)


def class_sums(logits: Any, batch: Batch) -> tuple[Any, Any]:
    """Correct rows and rows of each class, padding not counted.

    Args:
        logits: (..., batch, classes); a leading axis is that of vectorized heads.

    Returns:
        (..., classes) float32 and (classes,) float32.
    """
    rows = tf.one_hot(batch.labels, logits.shape[-1]) * batch.mask[:, None]
    hits = tf.cast(tf.argmax(logits, axis=-1) == batch.labels, tf.float32)
    return tf.tensordot(hits, rows, axes=1), tf.reduce_sum(rows, axis=0)


def dropout_uniforms(seed: int, layer: int, global_step: Any, shape: tuple[int, int]) -> Any:
    """Uniform numbers for a dropout layer and the whole global batch, from (seed, layer, step)."""
    key = tf.stack([tf.constant(seed * 16 + layer, tf.int64), global_step])
    return tf.random.stateless_uniform(shape, key, alg="philox")


def keep_mask(drawn: Any, rate: Any) -> Any:
    """0 where a unit is dropped and 1 / (1 - rate) elsewhere; a rate, or one for each head as (..., 1, 1)."""
    return tf.cast(drawn >= np.float32(rate), tf.float32) / np.float32(1.0 - rate)


def load_variables(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Assign arrays to variables of the same names.

    Raises:
        ValueError: names or shapes differ.
    """
    if set(variables) != set(arrays):
        odd = sorted(set(variables) ^ set(arrays))
        raise ValueError(f"the checkpoint's tensors are not the model's: {', '.join(odd[:3])} and {len(odd)} in all")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ValueError(f"{name}: shape {arrays[name].shape} in the checkpoint, {variable.shape} in the model")
        variable.assign(arrays[name])
