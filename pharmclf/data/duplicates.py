"""Finds copies of an image: exact, re-encoded, resized or slightly cropped, mirrored, rotated, or in another light.

The same product on the same table is not a copy. A hash cannot distinguish these, so it only proposes pairs. Two images
are copies when one thumbnail can be shifted and scaled onto the other, and then both files at 160 pixels, with a small
residual everywhere. Thresholds measured on 2,000 photographs and 1,200 copies of them (JPEG quality 40, half size,
crops of 2-5 %); the largest residual of a copy and the smallest of another image are given with each.

A second search finds augmented images: mirrors, rotations by any angle, corners filled with black or with the border,
gain and offset of the light. The rings of the thumbnails propose the pairs and the angle; a fit with six motions and
the light decides. It also requires that the fine detail agrees in a third of the blocks, because a product on plain
ground looks much like itself at another angle. So copies on plain ground without grain are not found, nor rotated crops
of more than about 3 %. Measured on the same photographs and 20 changes of 80 of them (mirrors, rotations of 5-20 and
90-270 degrees, brightness 0.5 and 0.7, contrast 0.7 and 1.4, mixtures): all mirrors and rotations found, 99 % of all,
and no pair of two photographs; of 150 that were brightened by 1.2 or 1.3, 89 % and 71 %: white hides the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
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
    register,
    residual,
)
from pharmclf.data.duplicate_candidates import TurnedSearch, hash_search

CHECK_SIDE = 160
"""Side in pixels of the images in the final check."""
Load = Callable[[int], NDArray[np.uint8]]
_Fits = tuple[NDArray[np.int64], Floats, AlignmentOptions]  # pairs (n, 2), placements (n, 2, 3), the degrees of freedom
_SAME_LIGHT = AlignmentOptions(SCALE_AND_SHIFT, light=False, margin=0)
_ANY_LIGHT = AlignmentOptions(AFFINE, light=True, margin=1 / 16)

_MAX_THUMBNAIL_RMS = 4.5  # grey levels at 32 pixels, aligned; copies 4.0, others 2.6 (0.1 %: 4.4)
_GIVE_UP_RMS = 10.0  # the same after three steps
_MAX_TURNED_SHARE = 0.14  # residual rms per contrast at 32 pixels; turned copies 0.08 (99 %), half of the others 0.22
_BLOCK = 8  # the final check considers the worst blocks of 8x8 pixels
_WORST_BLOCKS = 4
_MAX_BLOCK_LEVEL = 5.0  # grey levels, mean of a block; copies 4.7 (99 %), others 17.7
_MAX_BLOCK_DETAIL = 1.7  # residual per local contrast; copies 1.6, others 2.9
_MAX_LEFTOVER_SHARE = 0.25  # residual rms per contrast of the image, for pale ones; copies 0.24 (99 %)
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
    """Pairs (first row, row) of rows with the same key; "" equals nothing."""
    first: dict[str, int] = {}
    return [(first[key], row) for row, key in enumerate(keys) if key and first.setdefault(key, row) != row]


def near_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], load: Load, sides: NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Pairs of rows that show the same image.

    Args:
        hashes: perceptual hashes, (rows,) uint64.
        thumbnails: (rows, 32, 32) uint8, grey.
        load: returns the image of a row, (160, 160, 3) uint8; called from threads. A row for which it raises a
            ValueError or OSError has no copies.
        sides: (rows,), find only pairs of unequal sides; None: all pairs.

    Returns:
        (row, larger row), sorted.
    """
    copies: set[tuple[int, int]] = set()
    load = lru_cache(maxsize=64)(load)  # pairs come sorted by their first row
    with ThreadPoolExecutor(2) as threads:
        for pairs, placements, freedom in _aligned_pairs(hashes, thumbnails, sides):
            new = [number for number, (one, other) in enumerate(pairs.tolist()) if (one, other) not in copies]
            tried = [(one, other) for one, other in pairs[new].tolist()]
            same = threads.map(partial(_is_same_image, freedom=freedom, load=load), tried, placements[new])
            copies.update(pair for pair, yes in zip(tried, same, strict=True) if yes)
    return sorted(copies)


def _aligned_pairs(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], sides: NDArray[np.bool_] | None
) -> Iterator[_Fits]:
    """Yield the candidate pairs whose thumbnails fit."""
    for pairs in hash_search(hashes, thumbnails).pairs(sides):
        starts = np.broadcast_to(IDENTITY, (len(pairs), 2, 3))
        yield from _filter_by_alignment(
            pairs, starts, thumbnails, _SAME_LIGHT, ((2, _GIVE_UP_RMS), (5, _MAX_THUMBNAIL_RMS))
        )
    for pairs, starts in TurnedSearch(thumbnails).pairs(sides):
        yield from _filter_by_alignment(pairs, starts, thumbnails, _ANY_LIGHT, ((2, _MAX_THUMBNAIL_RMS),))


def _filter_by_alignment(
    all_pairs: NDArray[np.int64],
    starts: Floats,
    thumbnails: NDArray[np.uint8],
    freedom: AlignmentOptions,
    stages: tuple[tuple[int, float], ...],
) -> Iterator[_Fits]:
    """Yield the pairs (n, 2), from the placements (n, 2, 3), whose residual is below the limit of each stage."""
    for start in range(0, len(all_pairs), 256):
        pairs, placements = all_pairs[start : start + 256], starts[start : start + 256]
        moving, still = (blur(thumbnails[pairs[:, side]].astype(np.float32))[:, None] for side in (0, 1))
        for steps, limit in stages:
            placements = register(moving, still, placements, steps, freedom)
            difference, inside = residual(moving, still, placements, freedom)
            rms = np.sqrt(np.square(difference).sum(axis=(1, 2, 3)) / inside.sum(axis=(1, 2, 3)).clip(1))
            keep = rms <= limit
            if freedom.light:
                keep &= rms <= _MAX_TURNED_SHARE * (1 + still.std(axis=(1, 2, 3)))
            pairs, placements, moving, still = pairs[keep], placements[keep], moving[keep], still[keep]
        if len(pairs):
            yield pairs, placements, freedom


def _is_same_image(pair: Sequence[int], placement: Floats, freedom: AlignmentOptions, load: Load) -> bool:
    """The final check, on both files at 160 pixels in colour: the residual must be small everywhere."""
    try:
        moving, still = (blur(np.moveaxis(load(row), 2, 0).astype(np.float32)) for row in pair)  # (3, 160, 160)
    except (ValueError, OSError):
        return False
    grey_moving, grey_still = moving.mean(axis=0), still.mean(axis=0)
    steps = 2 if freedom.light else 3
    place = register(grey_moving[None, None], grey_still[None, None], placement[None], steps, freedom)
    difference, overlap = residual(moving[None], still[None], place, freedom)
    difference, inside = difference[0], overlap[0, 0]
    detail, grey_moved = np.hypot(*np.gradient(grey_still)), grey_still - difference.mean(axis=0)
    share = np.sqrt(np.square(difference).sum() / (3 * inside.sum()).clip(1)) / (1 + still.std(axis=(1, 2)).mean())
    level = np.abs(_means(difference)).mean(axis=0)
    relative = _means(np.abs(difference)).mean(axis=0) / (2 + _means(detail[None])[0])
    return bool(
        share <= _MAX_LEFTOVER_SHARE
        and np.sort(level.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_LEVEL
        and np.sort(relative.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_DETAIL
        and (not freedom.light or _agreement(grey_still, grey_moved, inside) >= _MIN_AGREEMENT)
    )


def _agreement(one: Floats, other: Floats, inside: NDArray[np.bool_]) -> float:
    """The share of the blocks inside whose detail, beyond light and slope, is the same in both images (160, 160)."""
    covered: NDArray[np.bool_] = np.asarray(_blocks(inside[None]).all(axis=2))[0]
    line = np.arange(_BLOCK) - (_BLOCK - 1) / 2
    planes = np.stack([np.ones(_BLOCK**2), np.tile(line, _BLOCK), np.repeat(line, _BLOCK)])
    planes /= np.linalg.norm(planes, axis=1, keepdims=True)
    first, second = (
        blocks - blocks @ planes.T @ planes for blocks in (_blocks(v[None])[0][covered] for v in (one, other))
    )
    sizes = first.std(axis=1), second.std(axis=1)
    equal = (first * second).mean(axis=1) >= _MIN_CORRELATION * sizes[0] * sizes[1]
    return float((equal & (sizes[0] >= _MIN_DETAIL)).sum() / max(1, covered.sum()))


def _means(images: Floats) -> Floats:
    """Means of the blocks: (n, 160, 160) -> (n, 400)."""
    means: Floats = _blocks(images).mean(axis=2, dtype=np.float32)
    return means


def _blocks(images: NDArray[Any]) -> NDArray[Any]:
    """The blocks of 8x8 pixels: (n, 160, 160) -> (n, 400, 64)."""
    num, side = len(images), images.shape[1] // _BLOCK
    blocks = images.reshape(num, side, _BLOCK, side, _BLOCK).swapaxes(2, 3)
    return blocks.reshape(num, side * side, _BLOCK * _BLOCK)
