"""Augmentation: a projective transform, light, blur, noise and a hidden part, pure functions of (seed, view, row).

The numbers come from a counter-based hash, so a row gets the same view in any batch, on any worker and after any
resume. They are drawn here in numpy; the pixels change on the device, a batch at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.stateless_rng import uniforms

if TYPE_CHECKING:
    from pharmclf.config import AugmentConfig

_NUM_DRAWS = 8  # angle, shift x, shift y, shear, zoom x, zoom y, horizontal flip, vertical flip
_PIXEL_DRAWS = 15  # brightness, contrast, red, green, blue; blur or not, how much; noise, its place x, y; a part is
# hidden or not, its area, shape, place x, y
_GREY = 127.5
_MOST_STRETCHED = 3.0  # the longer side of a hidden rectangle as a multiple of the shorter one
_BLUR_REACH = 3.0  # standard deviations


def draw_augmentations(
    config: AugmentConfig, image_size: int, seed: int, view: int, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What `augment_images` does to each row's image.

    Args:
        config: the ranges; every draw is uniform within its range.
        image_size: side of the images in pixels.

    Returns:
        (n, 8) float32 of `projective_transforms`; followed, where the configuration changes pixels, by the columns
        gain of red, green, blue; offset in levels; deviation of the blur in pixels; deviation of the noise in levels;
        its place x, y in pixels; left, top, right, bottom of the hidden rectangle in pixels: (n, 20).
    """
    moved = projective_transforms(config, image_size, seed, view, rows)
    if not config.changes_pixels:
        return moved
    draw = uniforms(seed, view, rows, _NUM_DRAWS + _PIXEL_DRAWS)[:, _NUM_DRAWS:].T
    bright, contrast, *colors = (
        1.0 + limit * (2.0 * each - 1.0)
        for limit, each in zip((config.brightness, config.contrast, *[config.color] * 3), draw, strict=False)
    )
    blur = np.where(draw[5] < 0.5, config.blur * image_size * draw[6], 0.0)
    noise = (config.noise * draw[7], *np.floor(draw[8:10] * image_size))
    area = np.where(draw[10] < 0.5, config.erase * draw[11], 0.0)
    stretch = _MOST_STRETCHED ** (draw[12] - 0.5)  # so that width and height are alike
    width, height = (np.minimum(np.sqrt(area) * factor, 1.0) for factor in (stretch, 1.0 / stretch))
    left, top = draw[13] * (1.0 - width), draw[14] * (1.0 - height)
    corners = [np.round(image_size * edge) for edge in (left, top, left + width, top + height)]
    gains = [bright * contrast * color for color in colors]
    changed = [*gains, _GREY * bright * (1.0 - contrast), blur, *noise, *corners]
    return np.concatenate([moved, np.stack(changed, axis=1)], axis=1, dtype=np.float32)


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


def augment_images(images: Any, drawn: Any, config: AugmentConfig, seed: int) -> Any:
    """Augment a batch, on the device and inside a graph: move, light, blur, hide, noise.

    Args:
        images: (n, S, S, 3) float tensor in 0..255.
        drawn: (n, 8) or (n, 20) float32 tensor of `draw_augmentations`.
        config: the one that it was drawn for.
        seed: of the run.

    Returns:
        (n, S, S, 3), within 0..255.
    """
    images = apply_transforms(images, drawn[:, :8], config.fill)
    if not config.changes_pixels:
        return images
    import tensorflow as tf

    side = images.shape[1]
    gain, offset, blur, noise, place, corners = tf.split(drawn[:, 8:], (3, 1, 1, 1, 2, 4), axis=1)
    if config.brightness or config.contrast or config.color:
        images = images * gain[:, None, None] + offset[:, None, None]
    if config.blur:
        images = _blur(images, blur, round(_BLUR_REACH * config.blur * side) or 1)
    if config.erase:
        along = tf.range(side, dtype=tf.float32)
        left, top, right, bottom = tf.unstack(corners[:, :, None], axis=1)
        across, down = (along >= left) & (along < right), (along >= top) & (along < bottom)
        images = tf.where((down[:, :, None] & across[:, None, :])[..., None], _GREY, images)
    if config.noise:
        images += noise[:, None, None] * _noise_fields(side, seed, place)
    return tf.clip_by_value(images, 0.0, 255.0)


def _blur(images: Any, deviation: Any, reach: int) -> Any:
    """Gaussian blur of a deviation (n, 1) in pixels for each image; beyond the edge the image is mirrored."""
    import tensorflow as tf

    count, side = tf.shape(images)[0], images.shape[1]
    distance = tf.range(-reach, reach + 1, dtype=tf.float32)
    kernel = tf.exp(-0.5 * (distance / tf.maximum(deviation, 1e-3)) ** 2)  # (n, taps)
    kernel = tf.repeat(tf.transpose(kernel / tf.reduce_sum(kernel, axis=1, keepdims=True)), 3, axis=1)
    # each channel of each image is a channel of one image, with a kernel for it alone
    x = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "SYMMETRIC")
    x = tf.reshape(tf.transpose(x, [1, 2, 0, 3]), [1, side + 2 * reach, side + 2 * reach, 3 * count])
    for axis in (0, 1):
        x = tf.nn.depthwise_conv2d(x, tf.expand_dims(kernel, axis)[..., None], [1, 1, 1, 1], "VALID")
    return tf.transpose(tf.reshape(x, [side, side, count, 3]), [2, 0, 1, 3])


def _noise_fields(side: int, seed: int, place: Any) -> Any:
    """(n, side, side, 3) noise of deviation 1: one field that depends on the seed alone, moved to (n, 2) places."""
    import tensorflow as tf

    first, second = np.moveaxis(uniforms(seed, 0, np.arange(side * side), 6).reshape(side, side, 2, 3), 2, 0)
    field = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box and Muller 1958
    x, y = tf.unstack(place, axis=1)
    zero, one = tf.zeros_like(x), tf.ones_like(x)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.tile(tf.constant(field[None], tf.float32), [tf.shape(place)[0], 1, 1, 1]),
        transforms=tf.stack([one, zero, x, zero, one, y, zero, zero], axis=1),
        output_shape=[side, side],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="WRAP",
    )


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
