"""Augmentation: one projective transform per image, a pure function of (seed, view, row).

The numbers come from a counter-based hash, so a row gets the same view in any batch, on any worker and after any
resume. They are drawn here in numpy; the pixels move on the device, a batch at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.stateless_rng import uniforms

if TYPE_CHECKING:
    from pharmclf.config import AugmentConfig

_NUM_DRAWS = 8  # angle, shift x, shift y, shear, zoom x, zoom y, horizontal flip, vertical flip


def projective_transforms(
    config: AugmentConfig, image_size: int, seed: int, view: int, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The transform of each row's image, from an output pixel to the input pixel that it shows.

    Args:
        config: the ranges; every draw is uniform within its range.
        image_size: side of the images in pixels.

    Returns:
        (n, 8) float32, the coefficients of TensorFlow's ImageProjectiveTransformV3.
    """
    draw = uniforms(seed, view, rows, _NUM_DRAWS)
    symmetric = 2.0 * draw - 1.0
    angle = np.deg2rad(config.rotation_deg) * symmetric[:, 0]
    shift_x, shift_y = (config.shift * image_size * symmetric[:, axis] for axis in (1, 2))
    shear = config.shear * symmetric[:, 3]
    zoom_x, zoom_y = (1.0 + config.zoom * symmetric[:, axis] for axis in (4, 5))
    zoom_x = np.where(config.horizontal_flip & (draw[:, 6] < 0.5), -zoom_x, zoom_x)
    zoom_y = np.where(config.vertical_flip & (draw[:, 7] < 0.5), -zoom_y, zoom_y)

    # rotation · shear · zoom about the centre of the image, then the shift
    cosine, sine = np.cos(angle), np.sin(angle)
    a0, a1 = cosine * zoom_x, (cosine * shear - sine) * zoom_y
    b0, b1 = sine * zoom_x, (sine * shear + cosine) * zoom_y
    centre = (image_size - 1) / 2.0
    a2 = centre + shift_x - (a0 + a1) * centre
    b2 = centre + shift_y - (b0 + b1) * centre
    zero = np.zeros_like(a0)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1).astype(np.float32)


def identity_transforms(count: int) -> NDArray[np.float32]:
    """Transforms that change nothing: (count, 8) float32."""
    return np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (count, 1))


def resize_batch(images: NDArray[np.uint8], side: int) -> Any:
    """Resize images on the device.

    Args:
        images: (n, S, S, 3) uint8.
        side: in pixels.

    Returns:
        (n, side, side, 3) uint8, bilinear, antialiased.
    """
    if images.shape[1] == side:
        return images
    import tensorflow as tf

    return tf.cast(tf.round(tf.image.resize(images, (side, side), antialias=True)), tf.uint8)


def apply_transforms(images: Any, transforms: Any, fill: str) -> Any:
    """Move the pixels, on the device and inside a graph.

    Args:
        images: (n, S, S, 3) float tensor.
        transforms: (n, 8) float32 tensor, see `projective_transforms`.
        fill: pixels beyond the edge: "nearest", "reflect" or "constant" (black).

    Returns:
        (n, S, S, 3), bilinear, of the type of `image_decoding`.
    """
    import tensorflow as tf  # slow to import, and planning does not need it

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill.upper(),
    )
