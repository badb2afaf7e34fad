"""Proposes pairs of images that may be copies, from perceptual hashes and 32-pixel thumbnails.

`hash_pairs` finds images of near hash whose coarse pixels fit up to a small shift and scale. `turned_pairs` finds
images that fit after a rotation or a mirror, in any light, from the spectra of rings in the thumbnails.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.alignment import SCALE_AND_SHIFT, Floats, blur, jacobian
from pharmclf.data.decoded_image import THUMBNAIL_SIDE

_MAX_BITS = 20  # of 64; 98 % of the crops of 5 % differ by no more, 93 % by no more than 16
_MAX_COARSE = 17.0  # rms of 8x8 means in grey levels, before any alignment; copies 16.9, half of all other pairs 43
_MAX_COARSE_MOVED = 10.0  # what of it no small shift and scale explains; copies 8.5 (99 %), others 12.3 (half)
_MAX_COARSE_SHARE = 0.5  # the same per contrast; copies 0.4 (99 %), others 0.9 (half)
_ANY_BASIS = np.eye(64, 4, dtype=np.float32) * 1e-3  # flat images have no slopes for a basis
_MAX_NEAREST = 32  # pairs of a row that are checked, nearest first: bounds the work where all images are alike
_RADII = (2, 4, 6, 8, 10, 12, 14)  # pixels of the thumbnail; rotations keep the disc of 16 in the image
_ANGLES = 32  # points on a ring
_WAVES = 9  # around a ring, from the constant on
_TURNS = 64  # angles that are tried: the best lies within 3 degrees of the true one
_MIN_CONTRAST = 2.0  # grey levels, weighted; flat discs match nothing
_MIN_ALIKE = 0.975  # product of the waves' sizes, 0..1; turned copies 0.989 (99 %), others 0.979 (0.01 %)
_MIN_ALIKE_TURNED = 0.95  # the same at the best angle; turned copies 0.959 (99 %), others 0.946 (0.01 %)


def hash_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs (n, 2) of near hash whose 8x8 means differ little, up to a small shift and scale.

    A row is paired with at most 32 larger rows, the nearest.
    """
    num_rows, rows, columns = len(hashes), 256, 2048
    coarse = thumbnails.reshape(num_rows, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)
    for top in range(0, num_rows, rows):
        block = coarse[top : top + rows]
        moves = np.linalg.qr(jacobian(block, np.float32(1))[:, :SCALE_AND_SHIFT].transpose(0, 2, 1) + _ANY_BASIS)[0]
        pieces, distances = [], []
        for left in range(top, num_rows, columns):
            bits = np.bitwise_count(hashes[top : top + rows, None] ^ hashes[None, left : left + columns])
            near = np.flatnonzero(bits <= _MAX_BITS)
            for start in range(0, len(near), 32768):
                one, other = np.divmod(near[start : start + 32768], bits.shape[1])
                pairs = np.stack([one + top, other + left], axis=1)
                gap = (coarse[pairs[:, 1]] - block[one]).reshape(-1, 64, 1)
                keep = _is_wanted(pairs, sides) & (np.square(gap).mean(axis=(1, 2)) <= _MAX_COARSE**2)
                pairs, gap, move = pairs[keep], gap[keep], moves[one[keep]]
                distance = np.sqrt(np.square(gap - move @ (move.transpose(0, 2, 1) @ gap)).mean(axis=(1, 2)))
                contrast = block[one[keep]].std(axis=(1, 2)) + 1
                keep = (distance <= _MAX_COARSE_MOVED) & (distance <= _MAX_COARSE_SHARE * contrast)
                pieces.append(pairs[keep])
                distances.append(distance[keep])
        if pieces:
            yield _nearest(np.concatenate(pieces), np.concatenate(distances))


def turned_pairs(
    thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Yield pairs (n, 2) that are alike after a rotation or a mirror, in any light, and placements (n, 2, 3).

    A row is paired with at most 32 larger rows, the nearest.
    """
    num_rows, rows, columns = len(thumbnails), 256, 2048
    spectra = np.empty((num_rows, len(_RADII), _WAVES), np.complex64)
    for start in range(0, num_rows, columns):
        spectra[start : start + columns] = _spectra(thumbnails[start : start + columns])
    sizes = np.abs(spectra).reshape(num_rows, -1)  # their product bounds the similarity at any rotation
    for top in range(0, num_rows, rows):
        pieces, alike = [], []
        for left in range(top, num_rows, columns):
            product = sizes[top : top + rows] @ sizes[left : left + columns].T
            near = np.flatnonzero(product >= _MIN_ALIKE)
            one, other = np.divmod(near, product.shape[1])
            pairs = np.stack([one + top, other + left], axis=1)
            keep = _is_wanted(pairs, sides)
            pieces.append(pairs[keep])
            alike.append(product.ravel()[near[keep]])
        pairs = _nearest(np.concatenate(pieces), -np.concatenate(alike))
        for start in range(0, len(pairs), 1024):
            yield _match_turned(pairs[start : start + 1024], spectra)


def _is_wanted(pairs: NDArray[np.int64], sides: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Each pair once, and no row with itself; given sides, only pairs of unequal sides."""
    once = pairs[:, 0] < pairs[:, 1]
    return once if sides is None else once & (sides[pairs[:, 0]] != sides[pairs[:, 1]])


def _nearest(pairs: NDArray[np.int64], distances: Floats) -> NDArray[np.int64]:
    """Keep the 32 nearest pairs of each row."""
    pairs = pairs[np.lexsort((distances, pairs[:, 0]))]
    place = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])  # 0: the row's nearest
    return pairs[place < _MAX_NEAREST]


def _spectra(thumbnails: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Waves around the rings of the middle disc, (n, rings, waves), of unit length; 0 where the disc is flat.

    A rotation shifts the phases of a ring, a mirror conjugates them, and gain and offset have no effect.
    """
    num = len(thumbnails)
    rings = (thumbnails.reshape(num, -1).astype(np.float32) @ _disc()).reshape(num, len(_RADII), _ANGLES)
    area = np.array(_RADII, np.float32) / sum(_RADII)
    rings -= (rings.mean(axis=2) * area).sum(axis=1)[:, None, None]
    waves = np.fft.rfft(rings, axis=2)[:, :, :_WAVES] / _ANGLES
    waves *= np.sqrt(2 * area[:, None]) * np.arange(1, _WAVES + 1)  # fine detail identifies more than light and shade
    waves[:, :, 0] /= np.sqrt(2)  # a constant has one wave, all others two of half the size
    length = np.sqrt(np.square(np.abs(waves)).sum(axis=(1, 2), keepdims=True))
    return np.asarray(np.where(length > _MIN_CONTRAST, waves / length.clip(_MIN_CONTRAST), 0), np.complex64)


@cache
def _disc() -> Floats:
    """Bilinear weights, (32 x 32, rings x angles): the weight of each pixel in each point of the rings."""
    angles = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    middle, radii = (THUMBNAIL_SIDE - 1) / 2, np.array(_RADII)[:, None]
    x, y = (middle + radii * wave(angles) for wave in (np.cos, np.sin))  # (rings, angles)
    pixels = np.arange(THUMBNAIL_SIDE)[:, None, None]
    weights = [(1 - np.abs(pixels - v)).clip(0) for v in (y, x)]  # (32, rings, angles)
    disc = (weights[0][:, None] * weights[1][None]).reshape(THUMBNAIL_SIDE**2, -1).T
    return blur(disc.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)).reshape(-1, THUMBNAIL_SIDE**2).T.copy()


def _match_turned(pairs: NDArray[np.int64], spectra: NDArray[np.complex64]) -> tuple[NDArray[np.int64], Floats]:
    """The pairs that are alike at some angle, mirrored or not, and the placements (n, 2, 3) at the best angle."""
    one, other = (spectra[pairs[:, side]] for side in (0, 1))
    weight = np.full(_WAVES, 0.5, np.float32)
    weight[0] = 1
    products = np.stack([(one.conj() * image).sum(axis=1) * weight for image in (other, other.conj())], axis=1)
    alike = np.fft.irfft(products, _TURNS, axis=2) * _TURNS  # (n, 2, turns)
    best = alike.reshape(len(pairs), -1).argmax(axis=1)
    pairs, best = (v[alike.max(axis=(1, 2)) >= _MIN_ALIKE_TURNED] for v in (pairs, best))
    mirror, turn = np.divmod(best, _TURNS)
    angle = 2 * np.pi * turn / _TURNS
    cos, sin, flip = np.cos(angle), np.sin(angle), 1 - 2 * mirror
    zero = np.zeros(len(pairs))
    placements = np.stack([cos, sin * flip, zero, -sin, cos * flip, zero], axis=1)
    return pairs, placements.reshape(-1, 2, 3).astype(np.float32)
