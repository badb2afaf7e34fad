"""Finds pairs of near vectors without a look at all pairs, and the same pairs as such a look finds.

Rows that lie close together share a box, and a box is compared only with the rows within the radius of it. Bands of the
hashes would not do: where 20 of 64 bits may differ, most pairs agree in some three bits by chance.
Rows of equal vectors are one entry, so that 100,000 equal white pages cost no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pharmclf.monitoring.cores import usable_cores

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Measure = Callable[[Rows, Rows], tuple[Rows, Floats]]
"""Of pairs of rows (n,), (n,): the places of those that are wanted, (m,), and their distances, (m,)."""

_Pairs = tuple[Rows, Rows, Floats]  # rows (n,), larger rows (n,), distances (n,)
MAX_NEAREST = 32
"""Pairs of a row that are found, the nearest: bounds the work where all images are alike."""
_BOX_SIZE = 512
_TILE = 64, 512  # entries that are compared at once, in the cache of a core
_MAX_PAIRS = 32768  # that are measured at once
_MAX_FILTERED = 4096  # entries that are compared with a box at once, in the cache of a core
_MAX_WAITING = 2**18  # pairs of a box that wait for it
_NUM_PARTS = 64  # that threads share
_MIN_PART_SIZE = 4096
_NUM_AXES = 16  # of the largest variance; the length of the rest is one more
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads the bits of a sum
_BOX_AXES = 8  # of them bound a box: more cost more time than they save
_MARGIN = 1.001  # of the radius, for the rounding of float32


@dataclass(frozen=True, eq=False)
class NearVectors:
    """What two vectors need to be a pair."""

    vectors: Floats
    """(rows, dimensions)."""
    radius: float
    """The Euclidean distance of a pair is this or less."""
    prepare: Callable[[Rows], Measure]
    """Called with rows (n,), returns what measures pairs that begin with one of them; rows of equal vectors and equal
    hashes must be the same to it."""
    hashes: NDArray[np.uint64] | None = None
    """(rows,) of which the pair differs in at most `max_bits`; None: any."""
    max_bits: int = 64

    def pairs(self, sides: NDArray[np.bool_] | None = None) -> Iterator[Rows]:
        """Yield pairs (n, 2) of a row and a larger row: of each row the 32 nearest, the smaller ones of equal distance.

        Args:
            sides: (rows,), find only pairs of unequal sides; None: all pairs.
        """
        if len(self.vectors) < 2:
            return
        columns = [column for column in (self.vectors, self.hashes, sides) if column is not None]
        search = _Search(self, _Entries.join_equal(columns))
        everything = np.arange(len(search.first))
        roots = [(everything, everything)]
        if sides is not None:
            on_side = sides[search.first]
            roots = [(everything[side], everything[~side]) for side in (on_side, ~on_side)]
        size = max(_MIN_PART_SIZE, len(everything) // _NUM_PARTS)
        parts = [part for root in roots for part in search.split(*root, size)]
        with threadpool_limits(1), ThreadPoolExecutor(usable_cores()) as threads:
            for found in threads.map(search.search, parts):
                yield from found

    def compare_all(self, sides: NDArray[np.bool_] | None = None) -> Iterator[Rows]:
        """Yield the same pairs by a look at all: slow, for comparison."""
        rows = np.arange(len(self.vectors))
        squares = np.einsum("ij,ij->i", self.vectors, self.vectors)
        for start in range(0, len(rows), _TILE[0]):
            ones, others = rows[start : start + _TILE[0]], rows[start:]
            gaps = squares[ones, None] + squares[others] - 2 * self.vectors[ones] @ self.vectors[others].T
            near = (gaps <= (self.radius * _MARGIN) ** 2) & (ones[:, None] < others)
            if sides is not None:
                near &= sides[ones, None] != sides[others]
            if self.hashes is not None:
                near &= np.bitwise_count(self.hashes[ones, None] ^ self.hashes[others]) <= self.max_bits
            one, other = np.nonzero(near)
            one, other = ones[one], others[other]
            keep, distances = self.prepare(ones)(one, other)
            yield np.stack(_nearest(one[keep], other[keep], distances)[:2], axis=1)


@dataclass(frozen=True)
class _Entries:
    """Rows, where many equal ones are one entry; entries in the order of their last row."""

    rows: Rows
    """(rows,) entry after entry, ascending in each."""
    start: Rows
    """(entries + 1,) index in `rows` of the first row of each entry."""

    @staticmethod
    def join_equal(columns: Sequence[NDArray[np.generic]]) -> _Entries:
        """Join rows that are equal in all columns, (rows, ...), where more are equal than a row is paired with."""
        last, sums = np.arange(len(columns[0])), np.zeros(len(columns[0]), np.uint64)
        for values in (values for column in columns for values in column.reshape(len(last), -1).T):
            sums = sums * _ODD + pd.util.hash_array(np.ascontiguousarray(values))
        many = np.flatnonzero(pd.Series(sums).groupby(sums).transform("size") > MAX_NEAREST)
        content = pd.Series([b"".join(column[row].tobytes() for column in columns) for row in many], many, object)
        for equal in content.groupby(content, sort=False).indices.values():
            if len(equal) > MAX_NEAREST:
                last[many[equal]] = many[equal[-1]]
        sizes = np.unique(last, return_counts=True)[1]
        return _Entries(np.argsort(last, kind="stable"), np.append(0, np.cumsum(sizes)))

    def of(self, entry: int) -> Rows:
        """The rows of an entry, ascending."""
        return self.rows[self.start[entry] : self.start[entry + 1]]

    def expand(self, one: Rows, other: Rows, distances: Floats) -> _Pairs:
        """Pairs of entries (n,), (n,) with their distances as pairs of rows, of each row the 32 nearest."""
        single = self.start[one + 1] == self.start[one] + 1
        pieces = [(self.rows[self.start[one[single]]], other[single], distances[single])]
        for entry in np.unique(one[~single]):
            pieces += self._unsated(self.of(entry), other[one == entry], distances[one == entry])
        rows, other, distances = (np.concatenate(column) for column in zip(*pieces, strict=True))
        place = np.searchsorted(self._keys, other * len(self.rows) + rows, "right")  # of the first larger row
        counts = np.minimum(self.start[other + 1] - place, MAX_NEAREST)
        rows, distances, place = (np.repeat(column, counts) for column in (rows, distances, place))
        place += np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return _nearest(rows, self.rows[place], distances)

    @cached_property
    def _keys(self) -> Rows:
        """(rows,) ascending: the entry and the row in one number."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start)) * len(self.rows) + self.rows

    def _unsated(self, rows: Rows, others: Rows, distances: Floats) -> Iterator[_Pairs]:
        """Yield the rows of one entry, each with those of the other entries that may hold one of its 32 nearest."""
        nearest = np.zeros(0, np.int64)  # the largest 32 rows of the entries so far
        for distance in np.unique(distances):
            if len(nearest) == MAX_NEAREST:
                rows = rows[rows >= nearest[0]]  # others have 32 nearer ones
            if not len(rows):
                return
            near = others[distances == distance]
            yield np.repeat(rows, len(near)), np.tile(near, len(rows)), np.full(len(rows) * len(near), distance)
            ends = [self.of(entry)[-MAX_NEAREST:] for entry in near]
            nearest = np.sort(np.concatenate([nearest, *ends]))[-MAX_NEAREST:]


class _Search:
    """The points of the entries: a projection of their vectors that makes no distance larger, and -1/2 its square."""

    def __init__(self, wanted: NearVectors, entries: _Entries) -> None:
        self.wanted, self.entries = wanted, entries
        self.first = entries.rows[entries.start[:-1]]
        self.last = entries.rows[entries.start[1:] - 1]
        self.limit = np.float32((wanted.radius * _MARGIN) ** 2)
        self.hashes = None if wanted.hashes is None else wanted.hashes[self.first]
        sample = wanted.vectors[:: 1 + len(wanted.vectors) // 10_000].astype(np.float64)
        axes = np.linalg.eigh(np.cov(sample, rowvar=False))[1][:, : -_NUM_AXES - 1 : -1].astype(np.float32)
        centre = sample.mean(axis=0).astype(np.float32)
        self.points = np.empty((axes.shape[1] + 2, len(self.first)), np.float32)
        for start in range(0, len(self.first), _MAX_PAIRS):
            vectors = wanted.vectors[self.first[start : start + _MAX_PAIRS]] - centre
            near = vectors @ axes
            rest = np.linalg.norm(vectors - near @ axes.T, axis=1, keepdims=True)
            half = (np.square(near).sum(axis=1, keepdims=True) + np.square(rest)) / 2
            self.points[:, start : start + _MAX_PAIRS] = np.hstack([near, rest, -half]).T

    def split(self, ones: Rows, others: Rows, size: int) -> Iterator[tuple[Rows, Rows]]:
        """Split entries into boxes of `size` or fewer, each with those of the others that are near to it."""
        waiting = [(ones, others)]
        while waiting:
            ones, others = waiting.pop()
            if not len(ones) or not len(others):
                continue
            points = self.points[:_BOX_AXES].take(ones, axis=1)
            least, most = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
            near = []
            for start in range(0, len(others), _MAX_FILTERED):
                places = self.points[:_BOX_AXES].take(others[start : start + _MAX_FILTERED], axis=1)
                places -= places.clip(least, most)
                near.append(np.square(places, out=places).sum(axis=0) <= self.limit)
            others = others[np.concatenate(near)]
            if len(ones) <= size:
                yield ones, others
                continue
            halves = np.argpartition(points[(most - least).argmax()], len(ones) // 2)
            waiting += [(np.sort(ones[half]), others) for half in np.array_split(halves, 2)]

    def search(self, part: tuple[Rows, Rows]) -> list[Rows]:
        """The pairs of rows that begin in a part, box by box."""
        return [self._search_box(*box) for box in self.split(*part, _BOX_SIZE)]

    def _search_box(self, ones: Rows, others: Rows) -> Rows:
        measure = self.wanted.prepare(self.first[ones])
        ones = ones[np.argsort(self.first[ones])]
        last, points = self.last[others], self.points.take(others, axis=1)
        products = np.empty(_TILE, np.float32)
        nearest: _Pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        waiting: list[tuple[Rows, Rows]] = []
        count = 0
        for start in range(0, len(ones), _TILE[0]):
            block = ones[start : start + _TILE[0]]
            own = self.points[:, block].T
            least = -self.limit / 2 - own[:, -1:]  # a product and two halves are minus half of the squared distance
            own[:, -1] = 1
            for left in range(int(np.searchsorted(last, self.first[block[0]], "right")), len(others), _TILE[1]):
                tile = points[:, left : left + _TILE[1]]
                near = np.matmul(own, tile, out=products[: len(block), : tile.shape[1]]) >= least
                one, other = np.divmod(near.ravel().nonzero()[0], tile.shape[1])
                one, other = block[one], others[left + other]
                if self.hashes is not None:  # the points reject more, and faster
                    keep = np.bitwise_count(self.hashes[one] ^ self.hashes[other]) <= self.wanted.max_bits
                    one, other = one[keep], other[keep]
                waiting.append((one, other))
                count += len(one)
                if count > _MAX_WAITING:
                    nearest, waiting, count = self._nearer(nearest, waiting, measure), [], 0
        return np.stack(self._nearer(nearest, waiting, measure)[:2], axis=1)

    def _nearer(self, nearest: _Pairs, pairs: list[tuple[Rows, Rows]], measure: Measure) -> _Pairs:
        """The nearest pairs of rows, after more pairs of entries."""
        if not pairs:
            return nearest
        one, other = (np.concatenate(column) for column in zip(*pairs, strict=True))
        after = self.first[one] < self.last[other]
        one, other = one[after], other[after]
        for start in range(0, len(one), _MAX_PAIRS):
            some = slice(start, start + _MAX_PAIRS)
            keep, distances = measure(self.first[one[some]], self.first[other[some]])
            more = self.entries.expand(one[some][keep], other[some][keep], distances)
            nearest = _nearest(*(np.concatenate(column) for column in zip(*[nearest, more], strict=True)))
        return nearest


def _nearest(rows: Rows, others: Rows, distances: Floats) -> _Pairs:
    """Of each row the 32 nearest pairs; rows ascending."""
    order = np.lexsort((others, distances, rows))
    rows, others, distances = rows[order], others[order], distances[order]
    keep = np.arange(len(rows)) - np.searchsorted(rows, rows) < MAX_NEAREST
    return rows[keep], others[keep], distances[keep]
