"""Grad-CAM: where in an image a model finds its evidence for a class (Selvaraju et al., 2017).

The map is made on the last feature map, the input of the pooling. It is coarse, S/32 on a side for most backbones, and
shows evidence for a class only, none against it. TensorFlow is imported when a map is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from pharmclf import storage
from pharmclf.core.compat.keras import tensor_source
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices

if TYPE_CHECKING:
    import keras

_BATCH = 32  # images at a time: their feature maps and gradients are in memory together
_CPUS = 0.1  # of the Ray actor, which computes for a second or two while others predict


class Explainer:
    """Heatmaps of a saved model, computed in this process, or in a Ray actor that starts while others predict."""

    def __init__(self, location: str, *, on_ray: bool) -> None:
        """Start to load the model, on Ray in the background.

        Args:
            location: of a `.keras` file.
            on_ray: whether it is loaded in a Ray actor, or in this process when heatmaps are first requested.
        """
        self._location = location
        self._local_model: _GradCamModel | None = None
        self._loaded: keras.Model | None = None
        self._actor: Any = ray.remote(num_cpus=_CPUS, num_gpus=0)(_GradCamModel).remote(location) if on_ray else None

    def use(self, model: keras.Model) -> None:
        """Explain a model that this process has loaded from the same file."""
        self._loaded = model

    def heatmaps(self, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
        """Grad-CAM of images for classes; see `grad_cam`."""
        if not len(images):
            return np.zeros(images.shape[:3], np.float32)
        if self._loaded is not None:
            return _classifier_cam(self._loaded, images, class_numbers)
        if self._actor is not None:
            return np.asarray(ray.get(self._actor.heatmaps.remote(images, class_numbers)))
        self._local_model = self._local_model or _GradCamModel(self._location)
        return self._local_model.heatmaps(images, class_numbers)

    def __enter__(self) -> Explainer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actor is not None:
            ray.kill(self._actor)


class _GradCamModel:
    """A saved model, loaded once."""

    def __init__(self, location: str) -> None:
        with suppress_native_stderr():
            import keras

            configure_devices(deterministic=False, gpus=False)  # the process of a trained model keeps its GPUs
            with storage.local_file(location) as path:
                self._model = keras.saving.load_model(path, compile=False, safe_mode=True)

    def heatmaps(self, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
        return _classifier_cam(self._model, images, class_numbers)


def _classifier_cam(model: keras.Model, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
    """As `grad_cam`; of a model that crops, for images that are cropped."""
    from pharmclf.models.backbones import CLASSIFIER, inner_model

    return grad_cam(inner_model(model, CLASSIFIER), images, class_numbers)


def grad_cam(model: keras.Model, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
    """Heatmaps of the evidence for a class, image by image.

    The gradient is that of the class's logit: that of its probability nearly vanishes where the model is sure.

    Args:
        model: a saved model, as `models.head.build_inference_model` makes it.
        images: (n, S, S, 3) uint8, RGB.
        class_numbers: (n,) integers, the class whose evidence is shown of each image.

    Returns:
        (n, S, S) float32; 1 at the strongest evidence of each image, 0 where there is none. All 0 where the image has
        no evidence for the class.

    Raises:
        ValueError: arrays that do not fit each other or the model, or a model without a feature map.
    """
    _check(model, images, class_numbers)
    parts = [np.zeros((0, *images.shape[1:3]), np.float32)]
    if len(images):
        below, above = _split(model)
        for first in range(0, len(images), _BATCH):
            here = slice(first, first + _BATCH)
            parts.append(_heatmaps(below, above, images[here], class_numbers[here]))
    return np.concatenate(parts)


def _check(model: keras.Model, images: np.ndarray, class_numbers: np.ndarray) -> None:
    if images.shape[1:] != model.inputs[0].shape[1:]:
        raise ValueError(f"images: received shape {images.shape}, expected (n, *{model.inputs[0].shape[1:]})")
    if np.shape(class_numbers) != (len(images),):
        raise ValueError(f"class_numbers: received shape {np.shape(class_numbers)}, expected ({len(images)},)")
    num_classes = model.outputs[0].shape[-1]
    if len(images) and not (np.min(class_numbers) >= 0 and np.max(class_numbers) < num_classes):
        raise ValueError(f"class_numbers: received {class_numbers}, expected 0 to {num_classes - 1}")


def _heatmaps(below: keras.Model, above: keras.Model, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
    """(n, S, S) float32, 0..1, of one batch."""
    import tensorflow as tf

    features = tf.cast(below(images.astype(np.float32), training=False), tf.float32)  # (n, h, w, channels)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(features)
        logits = above(features, training=False)
        selected = tf.gather(logits, tf.constant(class_numbers, tf.int32), batch_dims=1)  # (n,), independent images
    weights = tf.reduce_mean(tape.gradient(selected, features), axis=(1, 2), keepdims=True)  # (n, 1, 1, channels)
    evidence = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1, keepdims=True))  # (n, h, w, 1)
    maps = tf.image.resize(evidence, images.shape[1:3], method="bilinear")[..., 0]
    return np.asarray(tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=(1, 2), keepdims=True)))


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The model in two: image -> last feature map, and feature map -> logits."""
    import keras

    operation, inputs = tensor_source(model.outputs[0])
    logits = inputs[0] if isinstance(operation, keras.layers.Softmax) else model.outputs[0]
    features = _last_feature_map(logits)
    if features is model.inputs[0]:
        raise ValueError(f"model {model.name}: no layer of it makes a feature map (batch, height, width, channels)")
    return keras.Model(model.inputs[0], features), keras.Model(features, logits)


def _last_feature_map(tensor: Any) -> Any:
    """The first tensor (batch, height, width, channels) on the path back from an output, which must not branch."""
    while len(tensor.shape) != 4:
        _, inputs = tensor_source(tensor)
        if len(inputs) != 1:
            raise ValueError(f"{tensor.name}: received {len(inputs)} inputs, expected one path back to a feature map")
        tensor = inputs[0]
    return tensor
