"""Training and validation steps of K heads that are one program, with their weights in one set of variables.

A kernel of K heads is (K, in, out), a bias (K, 1, out), so that one number of each head, as (K, 1, 1), broadcasts to
both.
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
    Tensors,
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
    """`TrainStep` of K heads that differ in numbers only."""

    def __init__(self, configs: Sequence[RunConfig], num_features: int, num_classes: int) -> None:
        """Build K heads with the same initial weights, under the current dtype policy.

        Args:
            configs: of the heads; they have the same `group_key`.
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
        self.train_step = tf.function(self._train_step, autograph=False)
        self.validation_step = tf.function(self._validation_step, autograph=False)
        self._copy_best = tf.function(self._copy, autograph=False)

    # ------------------------------------------------------------------ steps

    def set_learning_rates(self, rates: np.ndarray) -> None:
        """As `TrainStep.set_learning_rates`."""
        self._rates.assign(rates[:, None, None])

    def _train_step(self, batch: Batch, stop_vote: Any) -> Any:
        """One training step -> (4, K) float32: loss sum and correct of each head, stop votes, images.

        The inputs of the batch are pooled features, (batch, num_features).
        """
        draws = [
            dropout_uniforms(self._seed, number, batch.global_step, (batch.mask.shape[0], layer.output.shape[-1]))
            for number, layer in enumerate(layer for layer in self._layers if isinstance(layer, layers.Dropout))
        ]
        *gradients, sums = self._gradients(batch, draws, stop_vote)
        correction = batch.count / tf.maximum(sums[3, 0], 1.0)  # as in `ModelStep`
        gradients = [gradient * correction for gradient in gradients]
        self._optimizer.apply(self._clipped(gradients), self._trained)
        return sums

    def _forward_backward(self, batch: Batch, draws: list[Any], stop_vote: Any) -> list[Any]:
        weights = [variable.value for variable in self._trained]
        with tf.GradientTape() as tape:
            logits = self._logits(batch, [keep_mask(drawn, self._dropout) for drawn in draws])
            losses, correct = per_example_loss_and_correct(logits, batch, np.float32(self._smoothing))
            loss_sums = tf.reduce_sum(losses * batch.weights, axis=-1)
            objective = tf.reduce_sum(loss_sums) / batch.count  # each term depends on the weights of one head
        return [*tape.gradient(objective, weights), self._sums(loss_sums, correct, batch, stop_vote)]

    def _validation_step(self, batch: Batch, stop_vote: Any) -> Any:
        """As `_train_step`; the loss is the plain cross-entropy.

        If classes are weighted, (4 + 2 * classes, K): the correct rows and the rows of each class follow.
        """
        logits = self._logits(batch, None)
        losses, correct = per_example_loss_and_correct(logits, batch, np.zeros_like(self._smoothing, np.float32))
        sums = self._sums(tf.reduce_sum(losses * batch.weights, axis=-1), correct, batch, stop_vote)
        if not self._balanced:
            return sums
        hits, rows = class_sums(logits, batch)
        return tf.concat([sums, tf.transpose(hits), tf.repeat(rows[:, None], self.size, axis=1)], axis=0)

    def _sums(self, loss_sums: Any, correct: Any, batch: Batch, stop_vote: Any) -> Any:
        """(4, K) float32."""
        common = [tf.fill([self.size], number) for number in (stop_vote, tf.reduce_sum(batch.mask))]
        return tf.stack([loss_sums, correct, *common])

    def _logits(self, batch: Batch, keep: list[Any] | None) -> Any:
        """All heads on one batch of features -> (K, batch, classes) float32; `keep` as in `apply_head`, or None.

        As in Keras, each layer computes in its dtype; as in `apply_head`, dropout masks have the dtype of their input.
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

    # ------------------------------------------------- best weights, checkpoints

    def keep_best(self, improved: np.ndarray) -> None:
        """As `TrainStep.keep_best`, on the device and with the optimizer."""
        self._copy_best(tf.constant(improved[:, None, None]))
        self._best_iterations[improved] = self._optimizer.iterations.numpy()

    def _copy(self, improved: Any) -> None:
        for best, variable in zip(self._best, self._per_head, strict=True):
            best.assign(tf.where(improved, variable, best))

    def restore_best(self) -> None:
        """As `TrainStep.restore_best`, with a new optimizer for the next phase."""
        for best, variable in zip(self._best, self._trained, strict=False):  # weights come first
            variable.assign(best)
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def state_dict(self, index: int, /) -> Tensors:
        """As `ModelStep.state_dict` for one head."""
        return self._tensors(index, self._per_head, self._optimizer.iterations.numpy())

    def best_state_dict(self, index: int) -> Tensors:
        """As `state_dict`, of the head's best epoch."""
        return self._tensors(index, self._best, self._best_iterations[index])

    def _tensors(self, index: int, variables: Sequence[Any], iterations: Any) -> Tensors:
        """Tensors of a head; `variables` as in `_per_head`."""
        *arrays, rate = [variable[index].numpy() for variable in variables]
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
    """A variable of K heads, each with the value of this one, with the same path."""
    value = np.asarray(variable.value)
    value = value if value.ndim == 2 else value[None]  # a bias
    *scopes, name = variable.path.split("/")
    with keras.name_scope("/".join(scopes)):
        return keras.Variable(np.repeat(value[None], size, axis=0), name=name, dtype=variable.dtype)
