"""The two-phase job as the guides of Keras write it: one process, `image_dataset_from_directory`, `model.fit`.

No run uses it. It shares with a run what makes the job the same: the split, the backbone with its weights, the head,
the learning rates, and the layers that each phase trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pharmclf.benchmark.measure import AccuracyPoint, PhaseTime
from pharmclf.config import AugmentConfig, RunConfig
from pharmclf.models.backbone_split import split_backbone
from pharmclf.models.backbones import build_backbone
from pharmclf.models.devices import gpu_compute_capability, resolve_precision
from pharmclf.models.head import build_head, build_inference_model
from pharmclf.training.phases import Phase, build_phases

_TUNED = tf.data.AUTOTUNE


class BaselineModel(keras.Model):
    """Backbone and head; the backbone always runs in inference mode, for its batch normalisation."""

    def __init__(self, backbone: keras.Model, head: keras.Model) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def call(self, images: Any, training: bool | None = None) -> Any:
        """(batch, S, S, 3) raw 0..255 RGB -> (batch, classes) float32 probabilities."""
        return keras.ops.softmax(self.head(self.backbone(images, training=False), training=training))

    def unfreeze(self, depth: int) -> None:
        """Train the upper `depth` blocks of the backbone and the head; 0: the head alone."""
        suffix = split_backbone(self.backbone, depth).suffix
        upper = {layer.name for layer in suffix.layers} if suffix else set()
        self.backbone.trainable = True
        for layer in self.backbone.layers:
            layer.trainable = layer.name in upper


def augmentation(config: AugmentConfig) -> keras.Sequential | None:
    """Keras's layers with the ranges of a configuration; None where it sets none."""
    fill = {"fill_mode": config.fill}
    layers: list[keras.layers.Layer] = []
    flips = {(True, False): "horizontal", (False, True): "vertical", (True, True): "horizontal_and_vertical"}
    if mode := flips.get((config.horizontal_flip, config.vertical_flip)):
        layers.append(keras.layers.RandomFlip(mode))
    if config.rotation_deg:
        layers.append(keras.layers.RandomRotation(config.rotation_deg / 360, **fill))
    if config.shift:
        layers.append(keras.layers.RandomTranslation(config.shift, config.shift, **fill))
    if config.zoom:
        factor = (-config.zoom, config.zoom)
        layers.append(keras.layers.RandomZoom(factor, factor, **fill))
    if config.shear:
        layers.append(keras.layers.RandomShear(x_factor=config.shear, **fill))
    return keras.Sequential(layers, name="augmentation") if layers else None


def datasets(config: RunConfig, folder: Path, *, cached: bool) -> dict[str, tf.data.Dataset]:
    """The splits as Keras reads them: batches of (n, S, S, 3) float32 in 0..255 and (n, classes) targets.

    Args:
        config: of the run; its augmentation is applied to the training images.
        folder: of `vs_keras.link_splits`.
        cached: keep the decoded images in memory, before the augmentation, as bytes.
    """

    def read(split: str, **settings: Any) -> tf.data.Dataset:
        side = (config.image_size, config.image_size)
        return keras.utils.image_dataset_from_directory(
            folder / split, label_mode="categorical", image_size=side, seed=config.seed, verbose=False, **settings
        )

    def read_cached(split: str) -> tf.data.Dataset:
        def as_bytes(image: Any, target: Any) -> tuple[Any, Any]:
            return tf.cast(tf.round(image), tf.uint8), target

        return read(split, batch_size=None, shuffle=False).map(as_bytes, num_parallel_calls=_TUNED).cache()

    batch = {"batch_size": config.batch_size}
    if cached:
        train, validation = read_cached("train"), read_cached("validation").batch(**batch)
        train = train.shuffle(train.cardinality(), seed=config.seed).batch(**batch)
    else:
        train, validation = read("train", **batch), read("validation", shuffle=False, **batch)
    augment = augmentation(config.augment)

    def apply_augmentation(images: Any, targets: Any) -> tuple[Any, Any]:
        images = tf.cast(images, tf.float32)
        return (augment(images, training=True) if augment else images), targets

    train = train.map(apply_augmentation, num_parallel_calls=_TUNED)
    splits = {"train": train, "validation": validation, "test": read("test", shuffle=False, **batch)}
    return {split: data.prefetch(_TUNED) for split, data in splits.items()}


def build_baseline(config: RunConfig, num_classes: int) -> BaselineModel:
    """The model of a run, with the same weights."""
    keras.config.set_dtype_policy(resolve_precision(config.precision, gpu_compute_capability()))
    keras.utils.set_random_seed(config.seed)
    backbone = build_backbone(config.backbone, config.image_size, config.weights)
    return BaselineModel(backbone, build_head(config.head, backbone.output.shape[-1], num_classes, config.seed))


def compile_phase(model: BaselineModel, config: RunConfig, phase: Phase, steps: int) -> None:
    """Set what a phase trains, and its optimizer; `steps` are those of all its epochs."""
    model.unfreeze(phase.unfreeze_blocks)
    settings, optimizer = phase.settings, config.optimizer
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        warmup = round(settings.warmup * steps)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else settings.learning_rate,
            max(1, steps - warmup),
            alpha=min(1.0, config.stopping.learning_rate_floor / max(settings.learning_rate, 1e-30)),
            warmup_target=settings.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    adam = keras.optimizers.Adam(
        rate, weight_decay=optimizer.weight_decay or None, global_clipnorm=optimizer.clip_norm or None
    )
    if optimizer.weight_decay:
        adam.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) == 1])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=optimizer.label_smoothing)
    model.compile(optimizer=adam, loss=loss, metrics=["accuracy"], jit_compile=config.xla)


def train_baseline(
    model: BaselineModel,
    config: RunConfig,
    data: dict[str, tf.data.Dataset],
    counts: np.ndarray,
    observers: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, PhaseTime]:
    """Train both phases with `fit`, each to its best weights; `counts` are the training images of each class."""
    images, steps = int(counts.sum()), int(data["train"].cardinality())
    weights = None
    if config.optimizer.class_weights == "auto":
        weights = dict(enumerate((images / (len(counts) * np.maximum(counts, 1))).tolist()))
    times = {}
    for phase in build_phases(config):
        began = time.perf_counter()
        compile_phase(model, config, phase, phase.settings.epochs * steps)
        history = model.fit(
            data["train"],
            validation_data=data["validation"],
            epochs=phase.settings.epochs,
            class_weight=weights,
            callbacks=[*observers, *_callbacks(config, phase)],
            shuffle=False,  # the data set is shuffled already
            verbose=0,
        )
        seconds, epochs = time.perf_counter() - began, len(history.epoch)
        rate = images * epochs / seconds
        times[phase.name] = PhaseTime(seconds=seconds, epochs=epochs, images_per_second=rate)
    return times


def _callbacks(config: RunConfig, phase: Phase) -> Iterator[keras.callbacks.Callback]:
    stopping = config.stopping
    patience = stopping.early_patience or phase.settings.epochs + 1  # 0: the best weights are still restored
    yield keras.callbacks.EarlyStopping("val_accuracy", patience=patience, mode="max", restore_best_weights=True)
    if stopping.plateau_patience and phase.settings.schedule == "constant":
        yield keras.callbacks.ReduceLROnPlateau(
            "val_loss",
            factor=stopping.plateau_factor,
            patience=stopping.plateau_patience,
            min_lr=min(stopping.learning_rate_floor, phase.settings.learning_rate),
        )


def predict_baseline(model: BaselineModel, data: dict[str, tf.data.Dataset], folder: Path) -> dict[int, bool]:
    """Predict the test images -> for each row of the manifest, whether the model is right."""
    predicted = model.predict(data["test"], verbose=0).argmax(axis=1)
    files = sorted((folder / "test").glob("*/*"), key=lambda path: (path.parent.name, path.name))
    pairs = zip(files, predicted, strict=True)
    return {int(path.stem): bool(number == int(path.parent.name)) for path, number in pairs}


class AccuracyRecorder(keras.callbacks.Callback):
    """Tests the model after each epoch; the time of these tests does not count."""

    def __init__(self, data: dict[str, tf.data.Dataset], folder: Path, began: float) -> None:
        """Begin.

        Args:
            began: `time.time()` at the start of the process.
        """
        super().__init__()
        self.points: list[AccuracyPoint] = []
        self._data, self._folder, self._began = data, folder, began

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 - Keras's own
        """Add the point of the epoch."""
        now = time.time()
        hits = predict_baseline(self.model, self._data, self._folder)
        values = {name: float((logs or {})[name]) for name in ("val_accuracy", "val_loss")}
        test_accuracy = float(np.mean([*hits.values()]))
        self.points.append(AccuracyPoint(seconds=now - self._began, test_accuracy=test_accuracy, **values))
        self._began += time.time() - now


def save_baseline(model: BaselineModel, location: Path) -> None:
    """Write the trained model, as a run does."""
    build_inference_model(model.backbone, model.head).save(location)
