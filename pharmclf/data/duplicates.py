"""Copies: one image byte for byte, re-encoded, resized or slightly cropped, mirrored, turned, or in another light.

Not copies: the same product on the same table. A hash cannot tell these apart, so it only proposes pairs; a pair counts
when one thumbnail can be shifted and scaled onto the other, and then both files at 160 pixels, with hardly anything
left over anywhere. Thresholds measured on 2,000 photographs and 1,200 copies of them (JPEG quality 40, half size, crops
of 2-5 %); the largest leftover of a copy and the smallest of another image are given with each.

A second search finds what augmentation makes of an image: mirrors, turns by any angle, corners filled with black or
with the border, gain and offset of the light. The rings of the thumbnails propose the pairs and the turn; a fit with
six motions and the light decides, and asks for more: the fine detail has to agree in a third of the blocks, because a
product on plain ground looks much like itself at another angle. So copies on plain ground without grain are not found,
nor turned crops of more than about 3 %. Measured on the same photographs and 20 changes of 80 of them (mirrors, turns
of 5-20 and 90-270 degrees, brightness 0.5 and 0.7, contrast 0.7 and 1.4, mixtures): all mirrors and turns found, 99 %
of all, and no pair of two photographs; of 150 that were brightened by 1.2 or 1.3, 89 % and 71 %: white hides the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.alignment import (
    AFFINE,
    IDENTITY,
    SCALE_AND_SHIFT,
    AlignmentOptions,
    Floats,
    blur,
    jacobian,
    register,
    residual,
)
from pharmclf.data.image_decoding import THUMBNAIL_SIDE

CHECK_SIDE = 160
"""Side in pixels of the images that `load` gives to the last check."""
Load = Callable[[int], NDArray[np.uint8]]
_Fits = tuple[NDArray[np.int64], Floats, AlignmentOptions]  # pairs (n, 2), placements (n, 2, 3), what was free to fit
_SAME_LIGHT = AlignmentOptions(SCALE_AND_SHIFT, light=False, margin=0)
_ANY_LIGHT = AlignmentOptions(AFFINE, light=True, margin=1 / 16)

_MAX_BITS = 20  # of 64; 98 % of the crops of 5 % lie within, 93 % within 16
_MAX_COARSE = 17.0  # rms of 8x8 means in grey levels, before any alignment; copies 16.9, half of all other pairs 43
_MAX_COARSE_MOVED = 10.0  # what of it no small shift and scale explains; copies 8.5 (99 %), others 12.3 (half)
_MAX_COARSE_SHARE = 0.5  # the same per contrast; copies 0.4 (99 %), others 0.9 (half)
_ANY_BASIS = np.eye(64, 4, dtype=np.float32) * 1e-3  # flat pictures have no slopes to make a basis of
_MAX_NEAREST = 32  # pairs of a row that are looked at, nearest first: bounds the work where all pictures are alike
_MAX_THUMBNAIL_RMS = 4.5  # grey levels at 32 pixels, aligned; copies 4.0, others 2.6 (0.1 %: 4.4)
_GIVE_UP_RMS = 10.0  # the same after three steps
_RADII = (2, 4, 6, 8, 10, 12, 14)  # pixels of the thumbnail; turns leave the disc of 16 in the image
_ANGLES = 32  # points on a ring
_WAVES = 9  # around a ring, from the constant on
_TURNS = 64  # angles that are tried: the best lies within 3 degrees of the true one
_MIN_CONTRAST = 2.0  # grey levels, weighted; flat discs are like nothing
_MIN_ALIKE = 0.975  # product of the waves' sizes, 0..1; turned copies 0.989 (99 %), others 0.979 (0.01 %)
_MIN_ALIKE_TURNED = 0.95  # the same at the best angle; turned copies 0.959 (99 %), others 0.946 (0.01 %)
_MAX_TURNED_SHARE = 0.14  # leftover rms per contrast at 32 pixels; turned copies 0.08 (99 %), half of the others 0.22
_BLOCK = 8  # the last check looks at the worst blocks of 8x8 pixels
_WORST_BLOCKS = 4
_MAX_BLOCK_LEVEL = 5.0  # grey levels, mean of a block; copies 4.7 (99 %), others 17.7
_MAX_BLOCK_DETAIL = 1.7  # leftover per local contrast; copies 1.6, others 2.9
_MAX_LEFTOVER_SHARE = 0.25  # leftover rms per contrast of the image, for pale ones; copies 0.24 (99 %)
_MIN_DETAIL = 0.15  # grey levels, standard deviation in a block beyond a plane; coding noise makes 0.1
_MIN_CORRELATION = 0.5  # of that detail in both images
_MIN_AGREEMENT = 1 / 3  # share of such blocks; turned copies 0.43, drawn products on plain ground 0.22


def group_rows(num_rows: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Join rows by pairs: (rows,) int64, the smallest row number of each row's group."""
    parent = list(range(num_rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(row) for row in range(num_rows)], dtype=np.int64)


def equal_pairs(keys: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (first row, row) of rows with the same key; "" is equal to nothing."""
    first: dict[str, int] = {}
    return [(first[key], row) for row, key in enumerate(keys) if key and first.setdefault(key, row) != row]


def near_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], load: Load, sides: NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Pairs of rows that show the same image.

    Args:
        hashes: perceptual hashes, (rows,) uint64.
        thumbnails: (rows, 32, 32) uint8, grey.
        load: gives the image of a row, (160, 160, 3) uint8; called from threads. A ValueError or OSError of it means
            that the row has no copies.
        sides: (rows,), only pairs of unequal sides are looked for; None: all pairs.

    Returns:
        (row, larger row), sorted.
    """
    found: set[tuple[int, int]] = set()
    load = lru_cache(maxsize=64)(load)  # pairs come sorted by their first row
    with ThreadPoolExecutor(2) as threads:
        for pairs, placements, freedom in _aligned_pairs(hashes, thumbnails, sides):
            new = [number for number, (one, other) in enumerate(pairs.tolist()) if (one, other) not in found]
            tried = [(one, other) for one, other in pairs[new].tolist()]
            same = threads.map(partial(_is_same_image, freedom=freedom, load=load), tried, placements[new])
            found.update(pair for pair, yes in zip(tried, same, strict=True) if yes)
    return sorted(found)


def candidate_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Pairs (n, 2) of near hash whose 8x8 means differ little, but for a small shift and scale; in pieces.

    A row comes with its 32 nearest larger rows at most.
    """
    num_rows, rows, columns = len(hashes), 256, 2048
    coarse = thumbnails.reshape(num_rows, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)
    for top in range(0, num_rows, rows):
        own = coarse[top : top + rows]
        moves = np.linalg.qr(jacobian(own, np.float32(1))[:, :SCALE_AND_SHIFT].transpose(0, 2, 1) + _ANY_BASIS)[0]
        pieces, distances = [], []
        for left in range(top, num_rows, columns):
            bits = np.bitwise_count(hashes[top : top + rows, None] ^ hashes[None, left : left + columns])
            near = np.flatnonzero(bits <= _MAX_BITS)
            for start in range(0, len(near), 32768):
                one, other = np.divmod(near[start : start + 32768], bits.shape[1])
                pairs = np.stack([one + top, other + left], axis=1)
                gap = (coarse[pairs[:, 1]] - own[one]).reshape(-1, 64, 1)
                keep = _is_wanted(pairs, sides) & (np.square(gap).mean(axis=(1, 2)) <= _MAX_COARSE**2)
                pairs, gap, move = pairs[keep], gap[keep], moves[one[keep]]
                distance = np.sqrt(np.square(gap - move @ (move.transpose(0, 2, 1) @ gap)).mean(axis=(1, 2)))
                contrast = own[one[keep]].std(axis=(1, 2)) + 1
                keep = (distance <= _MAX_COARSE_MOVED) & (distance <= _MAX_COARSE_SHARE * contrast)
                pieces.append(pairs[keep])
                distances.append(distance[keep])
        if pieces:
            yield _nearest(np.concatenate(pieces), np.concatenate(distances))


def turned_pairs(
    thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Pairs (n, 2) that are alike after a turn or a mirror, in any light, with the placements (n, 2, 3); in pieces.

    A row comes with its 32 nearest larger rows at most.
    """
    num_rows, rows, columns = len(thumbnails), 256, 2048
    spectra = np.empty((num_rows, len(_RADII), _WAVES), np.complex64)
    for start in range(0, num_rows, columns):
        spectra[start : start + columns] = _spectra(thumbnails[start : start + columns])
    sizes = np.abs(spectra).reshape(num_rows, -1)  # their product is the most that any turn can make of two rows
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
    """Each pair once, and no row with itself; with sides only those of unequal sides."""
    once = pairs[:, 0] < pairs[:, 1]
    return once if sides is None else once & (sides[pairs[:, 0]] != sides[pairs[:, 1]])


def _nearest(pairs: NDArray[np.int64], distances: Floats) -> NDArray[np.int64]:
    """The pairs without those beyond a row's 32 nearest."""
    pairs = pairs[np.lexsort((distances, pairs[:, 0]))]
    place = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])  # 0: the row's nearest
    return pairs[place < _MAX_NEAREST]


def _spectra(thumbnails: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Waves around the rings of the middle disc, (n, rings, waves), of unit length; 0 where the disc is flat.

    A turn shifts the phases of a ring, a mirror conjugates them, and a gain and an offset leave no trace.
    """
    num = len(thumbnails)
    rings = (thumbnails.reshape(num, -1).astype(np.float32) @ _disc()).reshape(num, len(_RADII), _ANGLES)
    area = np.array(_RADII, np.float32) / sum(_RADII)
    rings -= (rings.mean(axis=2) * area).sum(axis=1)[:, None, None]
    waves = np.fft.rfft(rings, axis=2)[:, :, :_WAVES] / _ANGLES
    waves *= np.sqrt(2 * area[:, None]) * np.arange(1, _WAVES + 1)  # fine detail tells more than light and shade
    waves[:, :, 0] /= np.sqrt(2)  # a constant has one wave, all others two of half the size
    length = np.sqrt(np.square(np.abs(waves)).sum(axis=(1, 2), keepdims=True))
    return np.asarray(np.where(length > _MIN_CONTRAST, waves / length.clip(_MIN_CONTRAST), 0), np.complex64)


@cache
def _disc() -> Floats:
    """Bilinear weights, (32 x 32, rings x angles): the pixels' share in each point of the rings."""
    angles = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    middle, radii = (THUMBNAIL_SIDE - 1) / 2, np.array(_RADII)[:, None]
    x, y = (middle + radii * wave(angles) for wave in (np.cos, np.sin))  # (rings, angles)
    pixels = np.arange(THUMBNAIL_SIDE)[:, None, None]
    weights = [(1 - np.abs(pixels - v)).clip(0) for v in (y, x)]  # (32, rings, angles)
    disc = (weights[0][:, None] * weights[1][None]).reshape(THUMBNAIL_SIDE**2, -1).T
    return blur(disc.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)).reshape(-1, THUMBNAIL_SIDE**2).T.copy()


def _match_turned(pairs: NDArray[np.int64], spectra: NDArray[np.complex64]) -> tuple[NDArray[np.int64], Floats]:
    """The pairs that are alike at some angle, mirrored or not, and the placements (n, 2, 3) of the best."""
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


def _aligned_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None
) -> Iterator[_Fits]:
    """Candidate pairs whose thumbnails fit onto each other."""
    for pairs in candidate_pairs(hashes, thumbnails, sides):
        starts = np.broadcast_to(IDENTITY, (len(pairs), 2, 3))
        yield from _filter_by_alignment(
            pairs, starts, thumbnails, _SAME_LIGHT, ((2, _GIVE_UP_RMS), (5, _MAX_THUMBNAIL_RMS))
        )
    for pairs, starts in turned_pairs(thumbnails, sides):
        yield from _filter_by_alignment(pairs, starts, thumbnails, _ANY_LIGHT, ((2, _MAX_THUMBNAIL_RMS),))


def _filter_by_alignment(
    all_pairs: NDArray[np.int64],
    starts: Floats,
    thumbnails: NDArray[np.uint8],
    freedom: AlignmentOptions,
    stages: tuple[tuple[int, float], ...],
) -> Iterator[_Fits]:
    """Those of the pairs (n, 2), with starts (n, 2, 3), whose leftover is small after each stage of so many steps."""
    for start in range(0, len(all_pairs), 256):
        pairs, placements = all_pairs[start : start + 256], starts[start : start + 256]
        moving, still = (blur(thumbnails[pairs[:, side]].astype(np.float32))[:, None] for side in (0, 1))
        for steps, limit in stages:
            placements = register(moving, still, placements, steps, freedom)
            rest, inside = residual(moving, still, placements, freedom)
            rms = np.sqrt(np.square(rest).sum(axis=(1, 2, 3)) / inside.sum(axis=(1, 2, 3)).clip(1))
            keep = rms <= limit
            if freedom.light:
                keep &= rms <= _MAX_TURNED_SHARE * (1 + still.std(axis=(1, 2, 3)))
            pairs, placements, moving, still = pairs[keep], placements[keep], moving[keep], still[keep]
        if len(pairs):
            yield pairs, placements, freedom


def _is_same_image(pair: Sequence[int], placement: Floats, freedom: AlignmentOptions, load: Load) -> bool:
    """The last check, on both files at 160 pixels in colour: nothing may be left over anywhere."""
    try:
        moving, still = (blur(np.moveaxis(load(row), 2, 0).astype(np.float32)) for row in pair)  # (3, 160, 160)
    except (ValueError, OSError):
        return False
    grey_moving, grey_still = moving.mean(axis=0), still.mean(axis=0)
    steps = 2 if freedom.light else 3
    place = register(grey_moving[None, None], grey_still[None, None], placement[None], steps, freedom)
    rest, overlap = residual(moving[None], still[None], place, freedom)
    rest, inside = rest[0], overlap[0, 0]
    detail = np.hypot(*np.gradient(grey_still))
    share = np.sqrt(np.square(rest).sum() / (3 * inside.sum()).clip(1)) / (1 + still.std(axis=(1, 2)).mean())
    level = np.abs(_means(rest)).mean(axis=0)
    relative = _means(np.abs(rest)).mean(axis=0) / (2 + _means(detail[None])[0])
    return bool(
        share <= _MAX_LEFTOVER_SHARE
        and np.sort(level.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_LEVEL
        and np.sort(relative.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_DETAIL
        and (not freedom.light or _agreement(grey_still, grey_still - rest.mean(axis=0), inside) >= _MIN_AGREEMENT)
    )


def _agreement(one: Floats, other: Floats, inside: NDArray[np.bool_]) -> float:
    """The share of the blocks inside whose detail, beyond light and slope, is the same in both images (160, 160)."""
    whole: NDArray[np.bool_] = np.asarray(_blocks(inside[None]).all(axis=2))[0]
    line = np.arange(_BLOCK) - (_BLOCK - 1) / 2
    planes = np.stack([np.ones(_BLOCK**2), np.tile(line, _BLOCK), np.repeat(line, _BLOCK)])
    planes /= np.linalg.norm(planes, axis=1, keepdims=True)
    first, second = (
        blocks - blocks @ planes.T @ planes for blocks in (_blocks(v[None])[0][whole] for v in (one, other))
    )
    sizes = first.std(axis=1), second.std(axis=1)
    equal = (first * second).mean(axis=1) >= _MIN_CORRELATION * sizes[0] * sizes[1]
    return float((equal & (sizes[0] >= _MIN_DETAIL)).sum() / max(1, whole.sum()))


def _means(images: Floats) -> Floats:
    """Means of the blocks: (n, 160, 160) -> (n, 400)."""
    return _blocks(images).mean(axis=2, dtype=np.float32)


def _blocks(images: NDArray[Any]) -> NDArray[Any]:
    """The blocks of 8x8 pixels: (n, 160, 160) -> (n, 400, 64)."""
    num, side = len(images), images.shape[1] // _BLOCK
    blocks = images.reshape(num, side, _BLOCK, side, _BLOCK).swapaxes(2, 3)
    return blocks.reshape(num, side * side, _BLOCK * _BLOCK)
