"""Grad-CAM: where in an image a model finds its evidence for a class (Selvaraju et al., 2017).

The map is made on the last feature map with places, the input of the pooling. It is coarse, S/32 on a side for most
backbones, and shows evidence for a class only, none against it. Reads no TensorFlow until it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf.core.compat.keras import tensor_source

if TYPE_CHECKING:
    import keras

_BATCH = 32  # images at a time: their feature maps and gradients are held together


def grad_cam(model: keras.Model, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
    """Show where the evidence for a class lies, image by image.

    The gradient is that of the class's logit: of its probability there is next to none left where the model is sure.

    Args:
        model: a saved model, as `models.head.build_inference_model` makes it.
        images: (n, S, S, 3) uint8, RGB.
        class_numbers: (n,) integers, the class that is asked of each image.

    Returns:
        (n, S, S) float32; 1 at the strongest evidence of each image, 0 where there is none. All 0 where nothing in the
        image speaks for the class.

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
        asked = tf.gather(logits, tf.constant(class_numbers, tf.int32), batch_dims=1)  # (n,); no image sees another
    weights = tf.reduce_mean(tape.gradient(asked, features), axis=(1, 2), keepdims=True)  # (n, 1, 1, channels)
    evidence = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1, keepdims=True))  # (n, h, w, 1)
    maps = tf.image.resize(evidence, images.shape[1:3], method="bilinear")[..., 0]
    return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=(1, 2), keepdims=True)).numpy()


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
    """The first tensor with places on the way back from an output.

    Raises:
        ValueError: the way parts before it.
    """
    while len(tensor.shape) != 4:
        _, inputs = tensor_source(tensor)
        if len(inputs) != 1:
            raise ValueError(f"{tensor.name}: received {len(inputs)} inputs, expected one way back to a feature map")
        tensor = inputs[0]
    return tensor
