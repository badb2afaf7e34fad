"""Training and validation steps of one model: which variables a phase trains, and its program on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.data.augment import augment_images
from pharmclf.models.backbone_split import split_backbone
from pharmclf.models.backbones import build_backbone, cached_backbone, read_model
from pharmclf.models.fold_norm import FoldedNetwork
from pharmclf.models.head import apply_head, build_head, dropout_shapes, load_head
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext, known_labels
from pharmclf.training.gradient_accumulation import accumulate_gradients
from pharmclf.training.microbatch import even_microbatch_size
from pharmclf.training.train_step import (
    Batch,
    PreReducedAdam,
    Tensors,
    class_sums,
    dropout_uniforms,
    keep_mask,
    load_variables,
    per_example_loss_and_correct,
)

_INITIAL_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000  # finite steps after which the loss scale doubles


class ModelStep:
    """`TrainStep` of one model in one phase."""

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
            microbatch: most rows that a device computes at once; 0: its whole share. Steps depend on it by rounding
                only: no row depends on another one, and sums are divided by the count of the global batch.
        """
        self.microbatch = microbatch
        self.config, self.workers, self.head = config, workers, head
        cut = split_backbone(backbone, depth)
        self.cached = cached
        self.prefix = FoldedNetwork(cut.prefix, frozen=True) if cut.prefix and not cached else None
        self.suffix = FoldedNetwork(cut.suffix, frozen=False) if cut.suffix else None
        self.trained: list[keras.Variable] = [*cut.trained, *head.trainable_variables]
        trained = {id(variable) for variable in self.trained}
        self.frozen: list[keras.Variable] = [v for v in backbone.variables if id(v) not in trained]
        self.smoothing = config.optimizer.label_smoothing
        self.best_weights: dict[str, np.ndarray] | None = None
        """Those of the best epoch, if this process has trained it."""
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

    def set_learning_rates(self, rates: np.ndarray) -> None:
        """As `TrainStep.set_learning_rates`. (all ranks)"""
        self.optimizer.learning_rate.assign(rates[0])

    # ------------------------------------------------------------------ steps

    def _train_step(self, batch: Batch, stop_vote: Any) -> Any:
        """One training step -> (loss sum, correct, stop votes, images) over all workers. (all ranks)"""
        gradients, sums = self.workers.run(self._replica_gradients, batch, stop_vote)
        # the sums say how many rows of the global batch count; without quarantined ones the factor is 1
        correction = batch.count / tf.maximum(sums[3], 1.0)
        gradients = [gradient * correction for gradient in gradients]
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

    def _replica_gradients(self, batch: Batch, stop_vote: Any) -> tuple[Sequence[Any], Any]:
        scale = 1.0 if self.loss_scale is None else self.loss_scale

        def of_rows(rows: Batch, keep: list[Any]) -> list[Any]:
            inputs = tf.cast(rows.inputs, tf.float32)
            if not self.cached:  # cached features are those of augmented images
                inputs = augment_images(inputs, rows.transforms, self.config.augment, self.config.seed)
            gradients_and_sums: list[Any] = self._gradients(inputs, rows, keep, scale)
            return gradients_and_sums

        shapes = [*(variable.shape for variable in self.trained), (), ()]
        masks = self._dropout_masks(batch.global_step)
        *gradients, loss_sum, correct = self._accumulate(of_rows, batch, masks, shapes)
        sums = tf.stack([loss_sum, correct, stop_vote, tf.reduce_sum(batch.mask)])
        return self.workers.all_reduce_gradients(gradients, sums)

    def _forward_backward(self, inputs: Any, batch: Batch, keep: list[Any], scale: Any) -> list[Any]:
        frozen = inputs if self.prefix is None else self.prefix(inputs)
        with tf.GradientTape() as tape:
            features = frozen if self.suffix is None else self.suffix(frozen)
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

    def _dropout_masks(self, global_step: Any) -> list[Any]:
        """This worker's rows of masks that are drawn for the global batch from (seed, step, layer)."""
        total, local = self.config.batch_size, -(-self.config.batch_size // self.workers.world)
        first = self.workers.rank * local
        masks = []
        for layer, (units, rate) in enumerate(dropout_shapes(self.head)):
            drawn = dropout_uniforms(self.config.seed, layer, global_step, (total, units))
            drawn = tf.pad(drawn, [[0, local * self.workers.world - total], [0, 0]])[first : first + local]
            masks.append(keep_mask(drawn, rate))
        return masks

    def _validation_step(self, batch: Batch, stop_vote: Any = 0.0) -> Any:
        """One validation step -> (loss sum, correct, stop votes, images) over all workers. (all ranks)

        The loss is the plain cross-entropy, without label smoothing and class weights. If classes are weighted, the
        correct rows and the rows of each class follow.
        """
        return self.workers.run(self._replica_validation, batch, stop_vote)

    def _replica_validation(self, batch: Batch, stop_vote: Any) -> Any:
        balanced = self.config.optimizer.class_weights != "off"

        def of_rows(rows: Batch, _: list[Any]) -> list[Any]:
            x = tf.cast(rows.inputs, tf.float32)
            for part in (self.prefix, self.suffix):
                x = x if part is None else part(x)
            logits = self.head(x, training=False)
            losses, correct = per_example_loss_and_correct(logits, rows, 0.0)
            sums = [tf.reduce_sum(losses * rows.weights), correct]
            return [*sums, *class_sums(logits, rows)] if balanced else sums

        classes = self.head.output.shape[-1:]
        shapes = [(), (), *([classes, classes] if balanced else [])]
        loss_sum, correct, *by_class = self._accumulate(of_rows, batch, [], shapes)
        sums = tf.stack([loss_sum, correct, stop_vote, tf.reduce_sum(batch.mask)])
        return self.workers.all_reduce_sum([tf.concat([sums, *by_class], axis=0)])[0]

    def _accumulate(
        self, of_rows: Callable[[Batch, list[Any]], list[Any]], batch: Batch, keep: list[Any], shapes: list[Any]
    ) -> list[Any]:
        """The result of `of_rows` for a batch and its dropout masks, summed over micro-batches."""
        rows = batch.mask.shape[0]
        microbatch = even_microbatch_size(rows, self.microbatch)
        if microbatch == rows:
            return of_rows(batch, keep)
        of_each_row = {name: getattr(batch, name) for name in ("inputs", "transforms", "labels", "mask", "weights")}
        return accumulate_gradients(
            lambda part: of_rows(batch._replace(**part[0]), part[1]), (of_each_row, keep), microbatch, shapes
        )

    # ------------------------------------------------- best weights, checkpoints

    def keep_best(self, improved: np.ndarray) -> None:
        """As `TrainStep.keep_best`. (all ranks)"""
        if improved[0]:
            self.best_weights = self.weights()

    def restore_best(self) -> None:
        """As `TrainStep.restore_best`. (all ranks)"""
        if self.best_weights is not None:
            self.load_weights(self.best_weights)

    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights by path."""
        return {variable.path: variable.numpy() for variable in self.trained}

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `weights`. (all ranks)

        Raises:
            ValueError: names or shapes differ.
        """
        load_variables({variable.path: variable for variable in self.trained}, arrays)

    def state_dict(self, _index: int = 0, /) -> Tensors:
        """As `TrainStep.state_dict`; with the loss scale under mixed_float16."""
        optimizer = {name: variable.numpy() for name, variable in self._optimizer_variables().items()}
        return {"weights": self.weights(), "optimizer": optimizer}

    def load_state_dict(self, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Restore `state_dict`. (all ranks)

        Raises:
            ValueError: names or shapes differ.
        """
        self.load_weights(tensors["weights"])
        load_variables(self._optimizer_variables(), tensors["optimizer"])

    def _optimizer_variables(self) -> dict[str, Any]:
        named: dict[str, Any] = {f"{i:05d}/{v.path}": v for i, v in enumerate(self.optimizer.variables)}
        if self.loss_scale is not None:
            named |= {"loss_scale": self.loss_scale, "finite_steps": self.finite_steps}
        return named


def build_networks(job: TrainingContext, workers: Workers, precision: str) -> tuple[keras.Model, keras.Model]:
    """Backbone (image -> pooled features) and head (features -> logits). (all ranks)"""
    config = job.config
    keras.config.set_dtype_policy(precision)
    with workers.strategy.scope():
        source = config.backbone, config.image_size, config.weights
        if workers.world == 1:
            backbone = cached_backbone(*source, str(job.fingerprints.get("weights")))
        else:  # its variables belong to the strategy
            backbone = build_backbone(*source)
        head = build_head(config.head, backbone.output.shape[-1], len(job.class_names), config.seed)
    if config.init_from:
        load_head(head, read_model(config.init_from), known_labels(config.init_from), job.class_names)
    return backbone, head
