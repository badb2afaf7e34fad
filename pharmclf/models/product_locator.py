"""Finds the product in an image without labels or training, and the model that looks at it alone.

A product takes a small part of a photo. The features of a pretrained network, in cells of 16 pixels, differ from those
along the image's border where something lies on the table. What differs is weighted, and its mean and spread give a
square. Several products get one square around all; where nothing differs, it is the whole image.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from pharmclf.config import BackboneName
from pharmclf.data.decoded_image import LOCATOR_SIZE
from pharmclf.models.backbone_split import split_tensors
from pharmclf.models.backbones import LOCATOR, build_backbone
from pharmclf.models.fold_norm import fold_normalization

_STRIDE = 16  # pixels from cell to cell
_OUTLIERS = 3.0  # standard deviations above the border's mean distance from which a cell counts
_SPREAD = 2.0  # standard deviations of the weights from the centre to a side: all of an even disc
_MARGIN = 0.05  # share of the image on each side; half a cell is 0.05
_LEAST_SIDE = 0.15
_LEAST_TOTAL = 0.5  # of all weights: empty tables have up to 0.2, most photos of products 1 to 40
_STEPS = 1024.0  # of a place: a hundredth of a cell, below which rounding decides
_SMALL = 1e-6


def build_locator(name: BackboneName, weights: str) -> keras.Model:
    """The network that finds products.

    Args:
        name: of the backbone whose features are compared.
        weights: pretrained, as `build_backbone` takes them.

    Returns:
        (batch, L, L, 3) float RGB in 0..255 -> (batch, 3) float32: left, top and side of a `Crop`.

    Raises:
        ConfigError: as `build_backbone`.
    """
    backbone = build_backbone(name, LOCATOR_SIZE, weights, LOCATOR)
    tensors = split_tensors(backbone)  # from the top down
    features = next(
        tensor for tensor in tensors if len(tensor.shape) == 4 and tensor.shape[1] * _STRIDE >= LOCATOR_SIZE
    )
    square = _find_square(ops.cast(features, "float32"))
    return fold_normalization(keras.Model(backbone.inputs[0], square, name=LOCATOR))


def _find_square(features: Any) -> Any:
    """(batch, h, w, channels) -> (batch, 3) left, top, side as shares of the image."""
    height, width = features.shape[1:3]
    border = np.zeros((1, height, width, 1), np.float32)
    border[:, [0, -1]] = border[:, :, [0, -1]] = 1.0
    border /= border.sum()
    mean = ops.sum(features * border, axis=(1, 2), keepdims=True)
    variance = ops.sum(ops.square(features - mean) * border, axis=(1, 2), keepdims=True)
    # a channel that is constant along the border must not decide alone
    common = ops.mean(ops.var(features, axis=(1, 2), keepdims=True), axis=3, keepdims=True)
    distance = ops.mean(ops.square(features - mean) / (variance + 0.5 * common + _SMALL), axis=3)  # (batch, h, w)
    edge = border[..., 0]
    usual = ops.sum(distance * edge, axis=(1, 2), keepdims=True)
    deviation = ops.sqrt(ops.sum(ops.square(distance - usual) * edge, axis=(1, 2), keepdims=True))
    weights = ops.relu(distance - usual - _OUTLIERS * deviation)
    total = ops.sum(weights, axis=(1, 2))  # (batch,)
    weights = weights / (ops.reshape(total, (-1, 1, 1)) + _SMALL)
    centre_x, spread_x = _moments(ops.sum(weights, axis=1), width)
    centre_y, spread_y = _moments(ops.sum(weights, axis=2), height)
    side = 2.0 * (_SPREAD * ops.maximum(spread_x, spread_y) + _MARGIN)
    side = ops.where(total > _LEAST_TOTAL, ops.clip(side, _LEAST_SIDE, 1.0), 1.0)
    corners = [ops.minimum(ops.maximum(centre - 0.5 * side, 0.0), 1.0 - side) for centre in (centre_x, centre_y)]
    return ops.floor(ops.stack([*corners, side], axis=1) * _STEPS + 0.5) / _STEPS


def _moments(weights: Any, cells: int) -> tuple[Any, Any]:
    """Mean and standard deviation, (batch,) as shares of the side, of (batch, cells) weights with the sum 1."""
    places = ((np.arange(cells) + 0.5) / cells).astype(np.float32)[None]
    mean = ops.sum(weights * places, axis=1)
    variance = ops.sum(weights * ops.square(ops.expand_dims(mean, 1) - places), axis=1)
    return mean, ops.sqrt(variance)


def build_cropping_model(locator: keras.Model, classifier: keras.Model) -> keras.Model:
    """The saved model of a run that crops: (batch, height, width, 3) raw 0..255 RGB of any size -> probabilities.

    Images are resized and rounded as `image_decoding` does it, so that both crop alike. It consists of Keras operations
    only, so it loads without this package.
    """
    image = keras.Input((None, None, 3), name="image")
    square = locator(_resize(image, LOCATOR_SIZE))
    pixels = _resize(image, classifier.inputs[0].shape[1], square)
    return keras.Model(image, classifier(pixels), name="pharmclf")


def _resize(images: Any, size: int, square: Any = None) -> Any:
    """(batch, height, width, 3) -> (batch, size, size, 3), of a square (batch, 3) or of all: bilinear, antialiased."""
    left, top, side = (0.0, 0.0, 1.0) if square is None else (square[:, place : place + 1] for place in range(3))
    channels_first = ops.transpose(images, (0, 3, 1, 2))
    across = _interpolation(ops.ones_like(images[:, 0, :, 0]), left, side, size)  # (batch, size, width)
    down = _interpolation(ops.ones_like(images[:, :, 0, 0]), top, side, size)  # (batch, size, height)
    # rounded after each direction, and halves upwards, as Pillow does
    narrow = ops.floor(ops.matmul(channels_first, ops.expand_dims(ops.transpose(across, (0, 2, 1)), 1)) + 0.5)
    return ops.transpose(ops.floor(ops.matmul(ops.expand_dims(down, 1), narrow) + 0.5), (0, 2, 3, 1))


def _interpolation(ones: Any, start: Any, side: Any, size: int) -> Any:
    """Share of each input pixel in each output pixel: (batch, pixels) ones -> (batch, size, pixels)."""
    centres = ops.cumsum(ones, axis=1) - 0.5  # the number of pixels is known when the model is called
    pixels = ops.sum(ones, axis=1, keepdims=True)
    step = side * pixels / size  # (batch, 1) input pixels for each output pixel
    outputs = start * pixels + step * (np.arange(size, dtype=np.float32) + 0.5)[None]  # (batch, size)
    support = ops.expand_dims(ops.maximum(step, 1.0), 2)
    distance = ops.abs(ops.expand_dims(centres, 1) - ops.expand_dims(outputs, 2))
    shares = ops.relu(1.0 - distance / support)
    return shares / ops.sum(shares, axis=2, keepdims=True)
