"""Registers two images: finds the affine map, and the gain and offset of the light, that align them.

A placement is a (2, 3) matrix. It maps the position of a pixel in the still image, x and y from -1 to 1 and a 1, to a
position in the moving image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

IDENTITY = np.eye(2, 3, dtype=np.float32)
SCALE_AND_SHIFT = 4
AFFINE = 6
_MAX_CHANGE = 0.15  # of each entry of a placement: 15 % of the scale and of the half side, 8.6 degrees
_DARKEST, _LIGHTEST = 4, 251  # grey levels beyond these may have been clipped
_MAX_GAIN = 2.0


class AlignmentOptions(NamedTuple):
    """The allowed differences of two images."""

    motions: int
    """`SCALE_AND_SHIFT` or `AFFINE`."""
    light: bool
    """Also in a gain and an offset that all pixels and channels share."""
    margin: float
    """Share of the side at each border that is ignored: the corners of a rotated image are filled."""


def register(moving: Floats, still: Floats, start: Floats, steps: int, freedom: AlignmentOptions) -> Floats:
    """Take Gauss-Newton steps towards the placement that aligns `moving` with `still`.

    Args:
        moving: (pairs, 1, side, side) grey levels.
        still: the same.
        start: (pairs, 2, 3) placements.
        steps: their number.
        freedom: the allowed differences.

    Returns:
        Better placements, (pairs, 2, 3), each entry within ±0.15 of the start's.
    """
    num, _, side, _ = moving.shape
    motions = freedom.motions
    size = motions + 2 * freedom.light
    damping = np.eye(size, dtype=np.float32) * (1e-3 * side * side)
    placements = start
    for _ in range(steps):
        warped, inside = warp(moving, placements, freedom.margin)
        if freedom.light:
            warped = _match_light(warped, still, inside)
        columns = np.empty((num, size, side * side), np.float32)
        columns[:, :motions] = jacobian(warped[:, 0], inside[:, 0])[:, :motions]
        if freedom.light:  # fitted together with the motion, or a moving edge would look like a change of light
            columns[:, motions] = (warped * inside).reshape(num, side * side)
            columns[:, motions + 1] = 64 * inside.reshape(num, side * side)
        gap = ((still - warped) * inside).reshape(num, side * side, 1)
        hessian = columns @ columns.transpose(0, 2, 1) + damping
        change = np.linalg.solve(hessian, columns @ gap)[..., 0]
        placements = np.clip(_compose(placements, change[:, :motions]), start - _MAX_CHANGE, start + _MAX_CHANGE)
    return placements


def jacobian(images: Floats, weight: Any) -> Floats:
    """Derivatives of images (n, side, side) by small motions: (n, 6, side x side).

    Scale and shift in x, the same in y, then the shear of x along y and of y along x.
    """
    num, side = images.shape[:2]
    across = _pixel_centres(side)
    down, right = (slope * (side / 2) * weight for slope in np.gradient(images, axis=(1, 2)))
    along = across[:, None]
    motions = [right * across, right, down * along, down, right * along, down * across]
    return np.stack(motions, axis=1).reshape(num, AFFINE, side * side)


def residual(
    moving: Floats, still: Floats, placements: Floats, freedom: AlignmentOptions
) -> tuple[Floats, NDArray[np.bool_]]:
    """The difference of two images in their overlap, and the overlap.

    Args:
        moving: (pairs, channels, side, side) grey levels.
        still: the same.
        placements: (pairs, 2, 3).
        freedom: the allowed differences.

    Returns:
        Grey levels, (pairs, channels, side, side), 0 outside of the overlap; and the overlap, (pairs, 1, side, side).
    """
    warped, inside = warp(moving, placements, freedom.margin)
    if not freedom.light:
        return (still - warped) * inside, inside
    gap = still - _match_light(warped, still, inside)
    gap = np.where(warped >= _LIGHTEST, np.minimum(gap, 0), gap)  # clipped at white: it may have been lighter
    gap = np.where(warped <= _DARKEST, np.maximum(gap, 0), gap)
    return np.asarray(gap * inside, np.float32), inside


def warp(images: Floats, placements: Floats, margin: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Images (n, channels, side, side) through placements, bilinear; and which pixels are inside of them."""
    num, channels, side, _ = images.shape
    middle, unit = (side - 1) / 2, _pixel_centres(side)
    a, b, c, d, e, f = placements.reshape(num, 6).T[:, :, None, None] * np.float32(side / 2)
    along = unit[:, None]
    x = a * unit + b * along + (c + np.float32(middle))  # (n, side, side)
    y = d * unit + e * along + (f + np.float32(middle))
    border = round(margin * side)
    least, most = border, side - 1 - border
    inside = (x >= least) & (x <= most) & (y >= least) & (y <= most)
    for outer in (slice(0, border), slice(side - border, side)):
        inside[:, outer] = inside[:, :, outer] = False
    x, y = x.clip(0, side - 1), y.clip(0, side - 1)
    left, top = (np.minimum(v.astype(np.int32), side - 2) for v in (x, y))
    x_part, y_part = (x - left)[:, None], (y - top)[:, None]
    first = np.arange(num * channels).reshape(num, channels, 1, 1) * side * side
    place, pixels = first + (top * side + left)[:, None], images.ravel()

    def look(offset: int) -> Floats:
        return np.asarray(pixels[offset:].take(place), np.float32)

    upper = look(0) + (look(1) - look(0)) * x_part
    lower = look(side) + (look(side + 1) - look(side)) * x_part
    return np.asarray(upper + (lower - upper) * y_part, np.float32), inside[:, None]


def blur(images: Floats) -> Floats:
    """Weights 1 2 1 along both axes of (n, side, side): alignment needs slopes, and no coding noise."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4, np.float32)


def _compose(placements: Floats, change: Floats) -> Floats:
    """Placements after a small motion of the still image."""
    motion = np.zeros((len(change), AFFINE), np.float32)
    motion[:, : change.shape[1]] = change
    small = motion[:, [0, 4, 1, 5, 2, 3]].reshape(-1, 2, 3)  # in the order of a placement
    moved = placements + placements[:, :, :2] @ small
    return np.asarray(moved, np.float32)


def _match_light(warped: Floats, still: Floats, inside: NDArray[np.bool_]) -> Floats:
    """`warped` in the light of `still`: the gain and offset that fit best where neither is clipped, clipped again."""
    fit = inside & (warped > _DARKEST) & (warped < _LIGHTEST) & (still > _DARKEST) & (still < _LIGHTEST)
    axes = (1, 2, 3)
    count = fit.sum(axis=axes, keepdims=True).clip(1)
    mean_warped, mean_still = ((v * fit).sum(axis=axes, keepdims=True) / count for v in (warped, still))
    spread = (warped - mean_warped) * fit
    covariance = (spread * (still - mean_still)).sum(axis=axes, keepdims=True) / count
    variance = np.square(spread).sum(axis=axes, keepdims=True) / count
    gain = ((covariance + 1) / (variance + 1)).clip(1 / _MAX_GAIN, _MAX_GAIN)
    return np.asarray(((warped - mean_warped) * gain + mean_still).clip(0, 255), np.float32)


def _pixel_centres(side: int) -> Floats:
    """Pixel centres from -1 to 1, (side,)."""
    return ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
