"""One phase on the device: which variables it trains, and its training and validation steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.core.compat.keras import PreReducedGradients
from pharmclf.data.augment import apply_transforms
from pharmclf.models.backbone_split import split_backbone
from pharmclf.models.head import apply_head, dropout_shapes
from pharmclf.training.collectives import Workers
from pharmclf.training.gradient_accumulation import accumulate_gradients
from pharmclf.training.microbatch import even_microbatch_size

_INITIAL_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000  # finite steps after which the loss scale doubles


class Batch(NamedTuple):
    """One worker's share of one step, on the device."""

    inputs: Any  # (local batch, S, S, 3) uint8, or kept activations (local batch, *cut)
    transforms: Any  # (local batch, 8) float32, see data/augment.py
    labels: Any  # (local batch,) int64
    mask: Any  # (local batch,) float32, 0 for padding, and for rows whose image is quarantined
    weights: Any  # (local batch,) float32, the class weight of the row, 0 where the mask is
    count: Any  # () float32, rows of the global batch over all workers, as the plan has it
    global_step: Any  # () int64, number of the training step in the run, which dropout is drawn from


@dataclass(frozen=True)
class StepResult:
    """What a step came to, summed over all workers."""

    loss_sum: float
    correct: float
    stop_votes: float
    images: float
    """Rows that count: those of the plan without the quarantined."""
    by_class: np.ndarray | None = None
    """(2, classes) correct rows and rows of each class; of a validation step whose epochs are chosen by them."""

    @classmethod
    def of(cls, sums: Any) -> StepResult:
        """Read the sums off the device; waits for the step, and raises what went wrong in it."""
        values = sums.numpy()
        by_class = values[4:].astype(np.float64).reshape(2, -1) if len(values) > 4 else None
        loss_sum, correct, stop_votes, images = (float(value) for value in values[:4])
        return cls(loss_sum, correct, stop_votes, images, by_class)


class PreReducedAdam(PreReducedGradients, keras.optimizers.Adam):
    """Adam for gradients that are summed over the workers already."""


class TrainStep:
    """The device's part of one phase."""

    def __init__(
        self,
        config: RunConfig,
        workers: Workers,
        backbone: keras.Model,
        head: keras.Model,
        depth: int,
        precision: str,
        *,
        cached: bool = False,
        microbatch: int = 0,
    ) -> None:
        """Build the phase in the strategy's scope. (all ranks)

        Args:
            backbone: image -> pooled features.
            head: pooled features -> logits.
            depth: blocks of the backbone that are trained.
            precision: float32, mixed_float16 or mixed_bfloat16.
            cached: batches hold what the frozen part gives, not images.
            microbatch: most rows that a device computes at once; 0: its whole share. No step depends on it, but for
                rounding: no row depends on another one, and sums are divided by the count of the global batch.
        """
        self.microbatch = microbatch
        self.config, self.workers, self.head = config, workers, head
        cut = split_backbone(backbone, depth)
        self.cached = cached
        self.prefix, self.suffix = None if cached else cut.prefix, cut.suffix
        self.trained: list[keras.Variable] = [*cut.trained, *head.trainable_variables]
        trained = {id(variable) for variable in self.trained}
        self.frozen: list[keras.Variable] = [v for v in backbone.variables if id(v) not in trained]
        self.smoothing = config.optimizer.label_smoothing
        with workers.strategy.scope():
            self.optimizer = PreReducedAdam(0.0, weight_decay=config.optimizer.weight_decay or None, name="adam")
            if config.optimizer.weight_decay:  # biases and normalisation are not decayed
                self.optimizer.exclude_from_weight_decay([v for v in self.trained if len(v.shape) == 1])
            self.optimizer.build(self.trained)
            self.loss_scale: Any = None  # a variable under mixed_float16
            if precision == "mixed_float16":
                self.loss_scale = tf.Variable(_INITIAL_LOSS_SCALE, trainable=False, name="loss_scale")
                self.finite_steps = tf.Variable(0, trainable=False, name="finite_steps", dtype=tf.int64)
        self._gradients = tf.function(self._forward_backward, autograph=False, jit_compile=config.xla or None)
        self.train_step = tf.function(self._train_step, autograph=False)
        self.validation_step = tf.function(self._validation_step, autograph=False)

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next step. (all ranks)"""
        self.optimizer.learning_rate.assign(value)

    # ------------------------------------------------------------------ steps

    def _train_step(self, batch: Batch, stop_vote: Any) -> Any:
        """One training step -> (loss sum, correct, stop votes, images) over all workers. (all ranks)"""
        gradients, sums = self.workers.run(self._replica_gradients, batch, stop_vote)
        # how many rows of the global batch count is known with the sums; without a quarantined one this is times 1
        whole = batch.count / tf.maximum(sums[3], 1.0)
        gradients = [gradient * whole for gradient in gradients]
        if self.loss_scale is None:
            self.workers.run(self._apply, self._clip(gradients))
            return sums
        gradients = [gradient / self.loss_scale for gradient in gradients]
        # the gradients are summed already, so that every worker decides alike
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])

        def take() -> Any:
            self.workers.run(self._apply, self._clip(gradients))
            grown = self.finite_steps + 1 >= _LOSS_SCALE_GROWTH_STEPS
            self.loss_scale.assign(tf.where(grown, self.loss_scale * 2.0, self.loss_scale))
            self.finite_steps.assign(tf.where(grown, tf.zeros_like(self.finite_steps), self.finite_steps + 1))
            return tf.constant(True)

        def skip() -> Any:
            self.loss_scale.assign(self.loss_scale * 0.5)
            self.finite_steps.assign(0)
            return tf.constant(False)

        tf.cond(finite, take, skip)
        return sums

    def _replica_gradients(self, batch: Batch, stop_vote: Any) -> tuple[list[Any], Any]:
        scale = 1.0 if self.loss_scale is None else self.loss_scale

        def of_rows(rows: Batch, keep: list[Any]) -> list[Any]:
            inputs = tf.cast(rows.inputs, tf.float32)
            if not self.cached:  # kept activations are of moved pictures
                inputs = apply_transforms(inputs, rows.transforms, self.config.augment.fill)
            return self._gradients(inputs, rows, keep, scale)

        shapes = [*(variable.shape for variable in self.trained), (), ()]
        masks = self._dropout_masks(batch.global_step)
        *gradients, loss_sum, correct = self._accumulate(of_rows, batch, masks, shapes)
        *gradients, sums = self.workers.all_reduce_sum(
            [*gradients, tf.stack([loss_sum, correct, stop_vote, tf.reduce_sum(batch.mask)])]
        )
        return gradients, sums

    def _forward_backward(self, inputs: Any, batch: Batch, keep: list[Any], scale: Any) -> list[Any]:
        frozen = inputs if self.prefix is None else self.prefix(inputs, training=False)
        with tf.GradientTape() as tape:
            features = frozen if self.suffix is None else self.suffix(frozen, training=False)
            losses, correct = per_example_loss_and_correct(apply_head(self.head, features, keep), batch, self.smoothing)
            loss_sum = tf.reduce_sum(losses * batch.weights)
            objective = loss_sum / batch.count * scale
        gradients = tape.gradient(objective, [variable.value for variable in self.trained])
        return [*gradients, loss_sum, correct]

    def _clip(self, gradients: list[Any]) -> list[Any]:
        norm = self.config.optimizer.clip_norm
        return tf.clip_by_global_norm(gradients, norm)[0] if norm > 0 else gradients

    def _apply(self, gradients: list[Any]) -> None:
        self.optimizer.apply(gradients, self.trained)

    def _dropout_masks(self, ordinal: Any) -> list[Any]:
        """This worker's rows of masks that are drawn for the whole global batch from (seed, step, layer)."""
        total, local = self.config.batch_size, -(-self.config.batch_size // self.workers.world)
        first = self.workers.rank * local
        masks = []
        for layer, (units, rate) in enumerate(dropout_shapes(self.head)):
            drawn = dropout_uniforms(self.config.seed, layer, ordinal, (total, units))
            drawn = tf.pad(drawn, [[0, local * self.workers.world - total], [0, 0]])[first : first + local]
            masks.append(keep_mask(drawn, rate))
        return masks

    def _validation_step(self, batch: Batch, stop_vote: Any = 0.0) -> Any:
        """One validation step -> (loss sum, correct, stop votes, images) over all workers. (all ranks)

        The loss is the plain cross-entropy, whatever label smoothing and class weights do to that of the training.
        Where classes are weighed, the correct rows and the rows of each class follow.
        """
        return self.workers.run(self._replica_validation, batch, stop_vote)

    def _replica_validation(self, batch: Batch, stop_vote: Any) -> Any:
        balanced = self.config.optimizer.class_weights != "off"

        def of_rows(rows: Batch, _: list[Any]) -> list[Any]:
            x = tf.cast(rows.inputs, tf.float32)
            for part in (self.prefix, self.suffix, self.head):
                x = x if part is None else part(x, training=False)
            losses, correct = per_example_loss_and_correct(x, rows, 0.0)
            sums = [tf.reduce_sum(losses * rows.weights), correct]
            return [*sums, *class_sums(x, rows)] if balanced else sums

        classes = self.head.output.shape[-1:]
        shapes = [(), (), *([classes, classes] if balanced else [])]
        loss_sum, correct, *by_class = self._accumulate(of_rows, batch, [], shapes)
        sums = tf.stack([loss_sum, correct, stop_vote, tf.reduce_sum(batch.mask)])
        return self.workers.all_reduce_sum([tf.concat([sums, *by_class], axis=0)])[0]

    def _accumulate(
        self, of_rows: Callable[[Batch, list[Any]], list[Any]], batch: Batch, keep: list[Any], shapes: list[Any]
    ) -> list[Any]:
        """What `of_rows` gives for a batch and its dropout masks, or the sums of what it gives for its pieces."""
        rows = batch.mask.shape[0]
        piece = even_microbatch_size(rows, self.microbatch)
        if piece == rows:
            return of_rows(batch, keep)
        of_each_row = {name: getattr(batch, name) for name in ("inputs", "transforms", "labels", "mask", "weights")}
        return accumulate_gradients(
            lambda part: of_rows(batch._replace(**part[0]), part[1]), (of_each_row, keep), piece, shapes
        )

    # ------------------------------------------------------------ checkpoints

    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights by path."""
        return {variable.path: variable.numpy() for variable in self.trained}

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put back what `weights` gave. (all ranks)

        Raises:
            ValueError: names or shapes are others.
        """
        load_variables({variable.path: variable for variable in self.trained}, arrays)

    def state_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """What a checkpoint holds: trained weights by path; optimizer and loss scale by place and path."""
        return {
            "weights": self.weights(),
            "optimizer": {name: variable.numpy() for name, variable in self._optimizer_variables().items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Put back what `state_dict` gave. (all ranks)

        Raises:
            ValueError: names or shapes are others.
        """
        self.load_weights(tensors["weights"])
        load_variables(self._optimizer_variables(), tensors["optimizer"])

    def _optimizer_variables(self) -> dict[str, Any]:
        named: dict[str, Any] = {f"{i:05d}/{v.path}": v for i, v in enumerate(self.optimizer.variables)}
        if self.loss_scale is not None:
            named |= {"loss_scale": self.loss_scale, "finite_steps": self.finite_steps}
        return named


def per_example_loss_and_correct(logits: Any, batch: Batch, smoothing: Any) -> tuple[Any, Any]:
    """The loss of every row, and how many rows are right.

    Args:
        logits: (..., batch, classes); leading axes are of heads side by side.
        smoothing: the share of a target that is spread over all classes, a number or (..., 1, 1).

    Returns:
        (..., batch) float32 and (...) float32, rows that the mask leaves out not counted.
    """
    num_classes = logits.shape[-1]
    targets = tf.one_hot(batch.labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes
    hits = tf.cast(tf.argmax(logits, axis=-1) == batch.labels, tf.float32)
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))
    return losses, tf.reduce_sum(hits * batch.mask, axis=-1)


def class_sums(logits: Any, batch: Batch) -> tuple[Any, Any]:
    """Correct rows and rows of each class, padding not counted.

    Args:
        logits: (..., batch, classes); leading axes are of heads side by side.

    Returns:
        (..., classes) float32 and (classes,) float32.
    """
    rows = tf.one_hot(batch.labels, logits.shape[-1]) * batch.mask[:, None]
    hits = tf.cast(tf.argmax(logits, axis=-1) == batch.labels, tf.float32)
    return tf.tensordot(hits, rows, axes=1), tf.reduce_sum(rows, axis=0)


def dropout_uniforms(seed: int, layer: int, ordinal: Any, shape: tuple[int, int]) -> Any:
    """Uniform numbers for a dropout layer and the whole global batch, from (seed, layer, step)."""
    key = tf.stack([tf.constant(seed * 16 + layer, tf.int64), ordinal])
    return tf.random.stateless_uniform(shape, key, alg="philox")


def keep_mask(drawn: Any, rate: Any) -> Any:
    """0 where a unit is dropped and 1 / (1 - rate) elsewhere; a rate, or one for each head as (..., 1, 1)."""
    return tf.cast(drawn >= np.float32(rate), tf.float32) / np.float32(1.0 - rate)


def load_variables(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Assign arrays to variables of the same names; all of `arrays` must find a place, and all variables a value.

    Raises:
        ValueError: names or shapes are others.
    """
    if set(variables) != set(arrays):
        odd = sorted(set(variables) ^ set(arrays))
        raise ValueError(f"the checkpoint's tensors are not the model's: {', '.join(odd[:3])} and {len(odd)} in all")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ValueError(f"{name}: shape {arrays[name].shape} in the checkpoint, {variable.shape} in the model")
        variable.assign(arrays[name])
