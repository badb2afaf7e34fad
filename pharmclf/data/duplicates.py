"""Copies: the same picture, byte for byte or re-encoded, resized or slightly cropped (up to about 5 % of each side).

Not copies: the same product on the same table. A hash cannot tell these apart, so it only proposes pairs; a pair counts
when one thumbnail can be shifted and scaled onto the other, and then both files at 160 pixels, with hardly anything
left over anywhere. Thresholds measured on 2,000 photographs and 1,200 copies of them (JPEG quality 40, half size, crops
of 2-5 %); the largest leftover of a copy and the smallest of another picture stand behind each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECK_SIDE = 160
"""Side in pixels of the pictures that `load` gives to the last check."""
Load = Callable[[int], NDArray[np.uint8]]
_Floats = NDArray[np.float32]

_MAX_BITS = 20  # of 64; 98 % of the crops of 5 % lie within, 93 % within 16
_MAX_COARSE = 17.0  # rms of 8x8 means in grey levels, before any alignment; copies 16.9, half of all other pairs 43
_MAX_COARSE_MOVED = 10.0  # what of it no small shift and scale explains; copies 8.5 (99 %), others 12.3 (half)
_MAX_COARSE_SHARE = 0.5  # the same per contrast; copies 0.4 (99 %), others 0.9 (half)
_ANY_BASIS = np.eye(64, 4, dtype=np.float32) * 1e-3  # flat pictures have no slopes to make a basis of
_MAX_NEAREST = 32  # pairs of a row that are looked at, nearest first: bounds the work where all pictures are alike
_MAX_THUMBNAIL_RMS = 4.5  # grey levels at 32 pixels, aligned; copies 4.0, others 2.6 (0.1 %: 4.4)
_GIVE_UP_RMS = 10.0  # the same after three steps
_MAX_SHIFT = 0.15  # of the half side, and of the scale
_BLOCK = 8  # the last check looks at the worst blocks of 8x8 pixels
_WORST_BLOCKS = 4
_MAX_BLOCK_LEVEL = 5.0  # grey levels, mean of a block; copies 4.7 (99 %), others 17.7
_MAX_BLOCK_DETAIL = 1.7  # leftover per local contrast; copies 1.6, others 2.9
_MAX_LEFTOVER_SHARE = 0.25  # leftover rms per contrast of the picture, for pale ones; copies 0.24 (99 %)


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


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], load: Load) -> list[tuple[int, int]]:
    """Pairs of rows that show the same picture.

    Args:
        hashes: perceptual hashes, (rows,) uint64.
        thumbnails: (rows, 32, 32) uint8, grey.
        load: gives the picture of a row, (160, 160, 3) uint8; called from threads. A ValueError or OSError of it means
            that the row has no copies.

    Returns:
        (row, larger row), sorted.
    """
    found: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as threads:
        for pairs, placements in _aligned(hashes, thumbnails):
            same = threads.map(lambda pair, place: _is_same(pair, place, load), pairs.tolist(), placements)
            found += [(int(one), int(other)) for (one, other), yes in zip(pairs, same, strict=True) if yes]
    return sorted(found)


def candidate_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Pairs (n, 2) of near hash whose 8x8 means differ little, but for a small shift and scale; in pieces.

    A row comes with its 32 nearest larger rows at most.
    """
    num_rows, rows, columns = len(hashes), 256, 2048
    coarse = thumbnails.reshape(num_rows, 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)
    for top in range(0, num_rows, rows):
        own = coarse[top : top + rows]
        moves = np.linalg.qr(_jacobian(own, np.float32(1)).transpose(0, 2, 1) + _ANY_BASIS)[0]  # (rows, 64, 4)
        pieces, distances = [], []
        for left in range(top, num_rows, columns):
            bits = np.bitwise_count(hashes[top : top + rows, None] ^ hashes[None, left : left + columns])
            near = np.flatnonzero(bits <= _MAX_BITS)
            for start in range(0, len(near), 32768):
                one, other = np.divmod(near[start : start + 32768], bits.shape[1])
                pairs = np.stack([one + top, other + left], axis=1)
                gap = (coarse[pairs[:, 1]] - own[one]).reshape(-1, 64, 1)
                keep = (pairs[:, 0] < pairs[:, 1]) & (np.square(gap).mean(axis=(1, 2)) <= _MAX_COARSE**2)
                pairs, gap, move = pairs[keep], gap[keep], moves[one[keep]]
                distance = np.sqrt(np.square(gap - move @ (move.transpose(0, 2, 1) @ gap)).mean(axis=(1, 2)))
                contrast = own[one[keep]].std(axis=(1, 2)) + 1
                keep = (distance <= _MAX_COARSE_MOVED) & (distance <= _MAX_COARSE_SHARE * contrast)
                pieces.append(pairs[keep])
                distances.append(distance[keep])
        if pieces:
            pairs = np.concatenate(pieces)
            pairs = pairs[np.lexsort((np.concatenate(distances), pairs[:, 0]))]
            place = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])  # 0: the row's nearest
            yield pairs[place < _MAX_NEAREST]


def _aligned(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], _Floats]]:
    """Candidate pairs (n, 2) whose thumbnails fit onto each other, with the placements (n, 4)."""
    for piece in candidate_pairs(hashes, thumbnails):
        for start in range(0, len(piece), 256):
            pairs = piece[start : start + 256]
            moving, still = (_blur(thumbnails[pairs[:, side]].astype(np.float32)) for side in (0, 1))
            placements = np.zeros((len(pairs), 4), np.float32)
            for steps, limit in ((2, _GIVE_UP_RMS), (5, _MAX_THUMBNAIL_RMS)):
                placements = _register(moving, still, placements, steps)
                leftover, inside = _leftover(moving, still, placements)
                rms = np.sqrt(np.square(leftover).sum(axis=(1, 2)) / inside.sum(axis=(1, 2)).clip(1))
                keep = rms <= limit
                pairs, placements, moving, still = pairs[keep], placements[keep], moving[keep], still[keep]
            if len(pairs):
                yield pairs, placements


def _is_same(pair: Sequence[int], placement: _Floats, load: Load) -> bool:
    """The last check, on both files at 160 pixels in colour: nothing may be left over anywhere."""
    try:
        moving, still = (_blur(np.moveaxis(load(row), 2, 0).astype(np.float32)) for row in pair)  # (3, 160, 160)
    except (ValueError, OSError):
        return False
    grey_moving, grey_still = moving.mean(axis=0)[None], still.mean(axis=0)[None]
    place = np.repeat(_register(grey_moving, grey_still, placement[None], 3), 3, axis=0)
    leftover, inside = _leftover(moving, still, place)
    detail = np.hypot(*np.gradient(grey_still[0]))
    share = np.sqrt(np.square(leftover).sum() / inside.sum()) / (1 + still.std(axis=(1, 2)).mean())
    level = np.abs(_blocks(leftover)).mean(axis=0)
    relative = _blocks(np.abs(leftover)).mean(axis=0) / (2 + _blocks(detail[None])[0])
    return bool(
        share <= _MAX_LEFTOVER_SHARE
        and np.sort(level.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_LEVEL
        and np.sort(relative.ravel())[-_WORST_BLOCKS:].mean() <= _MAX_BLOCK_DETAIL
    )


def _register(moving: _Floats, still: _Floats, placements: _Floats, steps: int) -> _Floats:
    """Gauss-Newton steps towards the scale and shift that lay `moving` onto `still`.

    Args:
        moving: (pairs, side, side) grey levels.
        still: the same.
        placements: (pairs, 4): scale - 1 and shift in x, the same in y, in half sides.
        steps: how many.

    Returns:
        Better placements, (pairs, 4), each within ±0.15.
    """
    side = moving.shape[1]
    damping = np.eye(4, dtype=np.float32) * (1e-3 * side * side)
    for _ in range(steps):
        warped, inside = _warp(moving, placements)
        jacobian = _jacobian(warped, inside)
        hessian = jacobian @ jacobian.transpose(0, 2, 1) + damping
        descent = jacobian @ (still - warped).reshape(len(still), side * side, 1)
        placements = np.clip(placements + np.linalg.solve(hessian, descent)[..., 0], -_MAX_SHIFT, _MAX_SHIFT)
    return placements


def _jacobian(pictures: _Floats, weight: Any) -> _Floats:
    """What a little scale and shift in x, and in y, do to pictures (n, side, side): (n, 4, side x side)."""
    num, side = pictures.shape[:2]
    unit = _unit(side)
    down, right = (slope * (side / 2) * weight for slope in np.gradient(pictures, axis=(1, 2)))
    return np.stack([right * unit, right, down * unit[:, None], down], axis=1).reshape(num, 4, side * side)


def _leftover(moving: _Floats, still: _Floats, placements: _Floats) -> tuple[_Floats, NDArray[np.bool_]]:
    """What differs where the two pictures overlap, (pairs, side, side), 0 elsewhere; and where they overlap."""
    warped, inside = _warp(moving, placements)
    return (still - warped) * inside, inside


def _warp(pictures: _Floats, placements: _Floats) -> tuple[_Floats, NDArray[np.bool_]]:
    """Pictures (n, side, side) seen through placements, bilinear; and where the view lies inside of them."""
    side = pictures.shape[1]
    middle, unit = (side - 1) / 2, _unit(side)
    x = (unit * (1 + placements[:, 0:1]) + placements[:, 1:2]) * (side / 2) + middle  # (n, side)
    y = (unit * (1 + placements[:, 2:3]) + placements[:, 3:4]) * (side / 2) + middle
    inside = ((x >= 0) & (x <= side - 1))[:, None, :] & ((y >= 0) & (y <= side - 1))[:, :, None]
    x, y = x.clip(0, side - 1), y.clip(0, side - 1)
    left, top = (np.minimum(v.astype(np.int32), side - 2) for v in (x, y))
    x_part, y_part = (x - left)[:, None, :], (y - top)[:, :, None]
    number = np.arange(len(pictures))[:, None]
    rows = pictures[number, top] * (1 - y_part) + pictures[number, top + 1] * y_part
    columns = np.broadcast_to(left[:, None, :], rows.shape)
    warped = np.take_along_axis(rows, columns, 2) * (1 - x_part) + np.take_along_axis(rows, columns + 1, 2) * x_part
    return warped.astype(np.float32), inside


def _unit(side: int) -> _Floats:
    """Pixel centres from -1 to 1, (side,)."""
    return ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)


def _blur(pictures: _Floats) -> _Floats:
    """Weights 1 2 1 along both axes of (n, side, side): alignment needs slopes, and coding noise should not count."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4, np.float32)


def _blocks(pictures: _Floats) -> _Floats:
    """Means of the blocks: (n, 160, 160) -> (n, 20, 20)."""
    num, side = len(pictures), pictures.shape[1] // _BLOCK
    return pictures.reshape(num, side, _BLOCK, side, _BLOCK).mean(axis=(2, 4), dtype=np.float32)
