"""Heads side by side on the device: the weights of K heads in one set of variables, trained by one program.

A kernel of K heads is (K, in, out), a bias (K, 1, out); so one number of each head, as (K, 1, 1), goes with both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pharmclf.config import RunConfig
from pharmclf.core.compat.keras import TensorRates
from pharmclf.models.head import build_head
from pharmclf.training.train_step import (
    Batch,
    PreReducedAdam,
    class_sums,
    dropout_uniforms,
    keep_mask,
    per_example_loss_and_correct,
)


class _VectorizedAdam(TensorRates, PreReducedAdam):
    """Adam with a learning rate and a weight decay for each head; the numerics are Keras's own."""

    def __init__(self, rates: Any, decays: np.ndarray) -> None:
        """Rates: a (K, 1, 1) float32 variable; decays: (K, 1, 1)."""
        super().__init__(0.0, name="adam")
        self.rates, self.decays = rates, decays.astype(np.float32) if decays.any() else None


class VectorizedHeads:
    """The device's part of K heads that differ in numbers only."""

    def __init__(self, configs: Sequence[RunConfig], num_features: int, num_classes: int) -> None:
        """Build K heads with the initial weights of one, under the dtype policy that is set.

        Args:
            configs: of each head; they have the same `group_key`.
            num_features: width of the pooled features.
        """
        first = configs[0]
        self.size, self._seed = len(configs), first.seed
        self._balanced = first.optimizer.class_weights != "off"

        def each(number: Callable[[RunConfig], float]) -> np.ndarray:
            return np.array([number(config) for config in configs], np.float64)[:, None, None]

        self._dropout = each(lambda config: config.head.dropout)
        self._smoothing = each(lambda config: config.optimizer.label_smoothing)
        self._clip_norms = each(lambda config: config.optimizer.clip_norm)
        self._layers = build_head(first.head, num_features, num_classes, first.seed).layers[1:]
        single = [variable for layer in self._layers for variable in layer.trainable_weights]
        self._shapes = [tuple(variable.shape) for variable in single]
        self._trained = [_stack_variable(variable, self.size) for variable in single]
        self._rates = tf.Variable(tf.zeros((self.size, 1, 1)), trainable=False, name="rates")
        self._optimizer = _VectorizedAdam(self._rates, each(lambda config: config.optimizer.weight_decay))
        biases = [variable for variable, shape in zip(self._trained, self._shapes, strict=True) if len(shape) == 1]
        self._optimizer.exclude_from_weight_decay(biases)
        self._optimizer.build(self._trained)
        moments = [variable for variable in self._optimizer.variables if len(variable.shape) == 3]
        self._per_head = [*(variable.value for variable in (*self._trained, *moments)), self._rates]
        self._best = [tf.Variable(variable, trainable=False) for variable in self._per_head]
        self._best_iterations = np.zeros(self.size, np.int64)
        self._gradients = tf.function(self._forward_backward, autograph=False, jit_compile=first.xla or None)
        self._train = tf.function(self._train_step, autograph=False)
        self.validation_step = tf.function(self._validation_step, autograph=False)
        self._copy_best = tf.function(self._copy, autograph=False)

    # ------------------------------------------------------------------ steps

    def train_step(self, batch: Batch, rates: np.ndarray) -> Any:
        """One training step -> (3, K) float32: loss sum and correct of each head, and the images that count.

        Args:
            batch: its inputs are pooled features, (batch, num_features).
            rates: (K,) float32, the learning rate of each head; one with 0 keeps its weights.
        """
        return self._train(batch, tf.constant(rates[:, None, None], tf.float32))

    def _train_step(self, batch: Batch, rates: Any) -> Any:
        draws = [
            dropout_uniforms(self._seed, number, batch.global_step, (batch.mask.shape[0], layer.output.shape[-1]))
            for number, layer in enumerate(layer for layer in self._layers if isinstance(layer, layers.Dropout))
        ]
        *gradients, sums = self._gradients(batch, draws)
        whole = batch.count / tf.maximum(sums[2, 0], 1.0)  # as in `TrainStep`; times 1 without a quarantined row
        gradients = [gradient * whole for gradient in gradients]
        self._rates.assign(rates)
        self._optimizer.apply(self._clipped(gradients), self._trained)
        return sums

    def _forward_backward(self, batch: Batch, draws: list[Any]) -> list[Any]:
        weights = [variable.value for variable in self._trained]
        with tf.GradientTape() as tape:
            logits = self._logits(batch, [keep_mask(drawn, self._dropout) for drawn in draws])
            losses, correct = per_example_loss_and_correct(logits, batch, np.float32(self._smoothing))
            loss_sums = tf.reduce_sum(losses * batch.weights, axis=-1)
            objective = tf.reduce_sum(loss_sums) / batch.count  # a head's weights move its own term only
        return [*tape.gradient(objective, weights), tf.stack([loss_sums, correct, self._images(batch)])]

    def _validation_step(self, batch: Batch) -> Any:
        """One validation step -> (3, K) float32, as `train_step`; the loss is the plain cross-entropy.

        Where classes are weighed (3 + 2 * classes, K): the correct rows and the rows of each class follow.
        """
        logits = self._logits(batch, None)
        losses, correct = per_example_loss_and_correct(logits, batch, np.zeros_like(self._smoothing, np.float32))
        sums = tf.stack([tf.reduce_sum(losses * batch.weights, axis=-1), correct, self._images(batch)])
        if not self._balanced:
            return sums
        hits, rows = class_sums(logits, batch)
        return tf.concat([sums, tf.transpose(hits), tf.repeat(rows[:, None], self.size, axis=1)], axis=0)

    def _images(self, batch: Batch) -> Any:
        """The rows of a batch that count, (K,) float32, the same for all heads."""
        return tf.fill([self.size], tf.reduce_sum(batch.mask))

    def _logits(self, batch: Batch, keep: list[Any] | None) -> Any:
        """All heads on one batch of features -> (K, batch, classes) float32; `keep` as in `apply_head`, or None.

        As in Keras, each layer computes in its own dtype; `apply_head` gives dropout masks the dtype of what comes in.
        """
        x = tf.cast(batch.inputs, tf.float32)[None]  # (1, batch, features), then (K, batch, units)
        masks, weights = iter(keep or []), iter(self._trained)
        for layer in self._layers:
            if isinstance(layer, layers.Dropout):
                x = tf.cast(x, layer.compute_dtype) if keep is None else x * tf.cast(next(masks), x.dtype)
            else:
                kernel, bias = (tf.cast(next(weights).value, layer.compute_dtype) for _ in range(2))
                x = layer.activation(tf.matmul(tf.cast(x, layer.compute_dtype), kernel) + bias)
        return x

    def _clipped(self, gradients: list[Any]) -> list[Any]:
        """As `tf.clip_by_global_norm` does for one head: a norm that is not finite leaves nothing finite."""
        if not self._clip_norms.any():
            return gradients
        limits = np.float32(np.where(self._clip_norms > 0, self._clip_norms, 1.0))
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g), axis=[1, 2], keepdims=True) for g in gradients]))
        scales = limits * tf.minimum(1.0 / norms, 1.0 / limits) + (norms - norms)
        scales = tf.where(self._clip_norms > 0, scales, tf.ones_like(scales))
        return [gradient * scales for gradient in gradients]

    # ------------------------------------------------- what is kept of a phase

    def keep_best(self, which: np.ndarray) -> None:
        """Keep weights and optimizer of some heads, (K,) bool, as those of their best epoch."""
        self._copy_best(tf.constant(which[:, None, None]))
        self._best_iterations[which] = self._optimizer.iterations.numpy()

    def _copy(self, which: Any) -> None:
        for best, variable in zip(self._best, self._per_head, strict=True):
            best.assign(tf.where(which, variable, best))

    def restore_best(self) -> None:
        """Give all heads the weights of their best epoch, and a fresh optimizer."""
        for best, variable in zip(self._best, self._trained, strict=False):  # weights come first
            variable.assign(best)
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def state_dict(self, place: int, *, best: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """What a checkpoint of one head holds, as `TrainStep.state_dict` gives it.

        Args:
            place: which head, from 0.
            best: as of its best epoch, not as it is now.
        """
        iterations = self._best_iterations[place] if best else self._optimizer.iterations.numpy()
        *arrays, rate = [variable[place].numpy() for variable in (self._best if best else self._per_head)]
        # two moments for each weight, one after the other
        shapes = [*self._shapes, *(shape for shape in self._shapes for _ in range(2))]
        shaped = iter([array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)])
        weights = {variable.path: next(shaped) for variable in self._trained}
        state: dict[str, np.ndarray] = {}
        for number, variable in enumerate(self._optimizer.variables):
            name = f"{number:05d}/{variable.path}"
            if variable is self._optimizer.iterations:
                state[name] = np.asarray(iterations, np.int64)
            else:
                state[name] = next(shaped) if len(variable.shape) == 3 else rate.reshape(())
        return {"weights": weights, "optimizer": state}


def _stack_variable(variable: keras.Variable, size: int) -> keras.Variable:
    """A variable of K heads, each with the value of this one, under the same path."""
    value = np.asarray(variable.value)
    value = value if value.ndim == 2 else value[None]  # a bias
    *scopes, name = variable.path.split("/")
    with keras.name_scope("/".join(scopes)):
        return keras.Variable(np.repeat(value[None], size, axis=0), name=name, dtype=variable.dtype)
