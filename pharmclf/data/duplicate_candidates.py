"""Proposes pairs of images that may be copies, from perceptual hashes and 32-pixel thumbnails.

`hash_search` finds images of near hash whose coarse pixels fit up to a small shift and scale. `TurnedSearch` finds
images that fit after a rotation or a mirror, in any light, from the spectra of rings in the thumbnails.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.alignment import SCALE_AND_SHIFT, Floats, blur, jacobian
from pharmclf.data.decoded_image import THUMBNAIL_SIDE
from pharmclf.data.near_vectors import Measure, NearVectors

_MAX_BITS = 20  # of 64; 98 % of the crops of 5 % differ by no more, 93 % by no more than 16
_MAX_COARSE = 17.0  # rms of 8x8 means in grey levels, before any alignment; copies 16.9, half of all other pairs 43
_MAX_COARSE_MOVED = 10.0  # what of it no small shift and scale explains; copies 8.5 (99 %), others 12.3 (half)
_MAX_COARSE_SHARE = 0.5  # the same per contrast; copies 0.4 (99 %), others 0.9 (half)
_ANY_BASIS = np.eye(64, 4, dtype=np.float32) * 1e-3  # flat images have no slopes for a basis
_RADII = (2, 4, 6, 8, 10, 12, 14)  # pixels of the thumbnail; rotations keep the disc of 16 in the image
_ANGLES = 32  # points on a ring
_WAVES = 9  # around a ring, from the constant on
_TURNS = 64  # angles that are tried: the best lies within 3 degrees of the true one
_MIN_CONTRAST = 2.0  # grey levels, weighted; flat discs match nothing
_MIN_ALIKE = 0.975  # product of the waves' sizes, 0..1; turned copies 0.989 (99 %), others 0.979 (0.01 %)
_MIN_ALIKE_TURNED = 0.95  # the same at the best angle; turned copies 0.959 (99 %), others 0.946 (0.01 %)


def hash_search(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> NearVectors:
    """The search for images of near hash whose 8x8 means differ little, up to a small shift and scale."""
    coarse = thumbnails.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)

    def prepare(rows: NDArray[np.int64]) -> Measure:
        order = np.argsort(rows)
        block = coarse[rows]
        moves = np.linalg.qr(jacobian(block, np.float32(1))[:, :SCALE_AND_SHIFT].transpose(0, 2, 1) + _ANY_BASIS)[0]
        contrast = block.std(axis=(1, 2)) + 1

        def measure(one: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
            gap = (coarse[other] - coarse[one]).reshape(-1, 64, 1)
            keep = np.flatnonzero(np.square(gap).mean(axis=(1, 2)) <= _MAX_COARSE**2)
            gap, place = gap[keep], order[np.searchsorted(rows, one[keep], sorter=order)]
            moved = moves[place].transpose(0, 2, 1) @ gap
            rest = np.einsum("ijk,ijk->i", gap, gap) - np.einsum("ijk,ijk->i", moved, moved)
            near = rest <= 64.1 * _MAX_COARSE_MOVED**2  # the same up to rounding, for a fraction of the time
            keep, gap, place, moved = keep[near], gap[near], place[near], moved[near]
            distance = np.sqrt(np.square(gap - moves[place] @ moved).mean(axis=(1, 2)))
            near = (distance <= _MAX_COARSE_MOVED) & (distance <= _MAX_COARSE_SHARE * contrast[place])
            return keep[near], distance[near]

        return measure

    flat = coarse.reshape(len(coarse), 64)
    return NearVectors(flat, 8 * _MAX_COARSE, prepare, hashes, _MAX_BITS)


class TurnedSearch:
    """The search for images that are alike after a rotation or a mirror, in any light."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        spectra = np.empty((len(thumbnails), len(_RADII), _WAVES), np.complex64)
        for start in range(0, len(thumbnails), 2048):
            spectra[start : start + 2048] = _spectra(thumbnails[start : start + 2048])
        self._rows = np.flatnonzero(spectra.any(axis=(1, 2)))  # others are flat
        self._spectra = spectra[self._rows]
        # their products bound the similarity at any rotation
        sizes = np.abs(self._spectra).reshape(len(self._rows), len(_RADII) * _WAVES)

        def measure(one: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
            product = np.einsum("ij,ij->i", sizes[one], sizes[other])
            keep = np.flatnonzero(product >= _MIN_ALIKE)
            return keep, -product[keep]

        self.search = NearVectors(sizes, np.sqrt(2 - 2 * _MIN_ALIKE), lambda _: measure)

    def pairs(self, sides: NDArray[np.bool_] | None = None) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yield pairs (n, 2) and their placements (n, 2, 3), of each row with at most 32 larger ones, the nearest."""
        for pairs in self.search.pairs(None if sides is None else sides[self._rows]):
            for start in range(0, len(pairs), 1024):
                turned, placements = _match_turned(pairs[start : start + 1024], self._spectra)
                yield self._rows[turned], placements


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
