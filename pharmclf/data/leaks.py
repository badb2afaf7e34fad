"""Copies across data sets: images of a set from another source that the model has been trained on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pharmclf.data import duplicates
from pharmclf.data.image_set import ImageSet
from pharmclf.data.images import THUMBNAIL_SIDE, BadImage, probe
from pharmclf.data.manifest import Manifest

_MAX_BITS = 20  # of 64; the distance of the hashes up to which a pair is looked at, as among the rows of one set
_BLOCK = 1024
_THREADS = 8


def known_images(manifest: Manifest, known: Manifest, splits: tuple[str, ...]) -> NDArray[np.int64]:
    """Usable rows of a data set that are copies of images in splits of another: byte for byte, or near duplicates.

    Args:
        manifest: the set that is looked through.
        known: the data set with splits.
        splits: those of its splits that count.

    Returns:
        (n,) row numbers of `manifest`, sorted.
    """
    mine, theirs = manifest.ok, known.ok[known.ok["split"].isin(splits)]
    equal = mine.index[mine["sha256"].isin(set(theirs["sha256"]))].to_numpy(np.int64)
    mine = mine[~mine.index.isin(equal)]
    ours, others = (_hashes(table["phash"].tolist()) for table in (mine, theirs))
    near_mine, near_theirs = _near(ours, others)
    if not len(near_mine):
        return equal
    hashes = np.concatenate([ours[near_mine], others[near_theirs]])
    sides = ((mine.iloc[near_mine], manifest), (theirs.iloc[near_theirs], known))
    files = ImageSet.join([ImageSet.of_rows(rows, whole.white_level) for rows, whole in sides])
    pairs = duplicates.near_pairs(hashes, _thumbnails(files), lambda place: files.decode(place, duplicates.CHECK_SIDE))
    copies = {one for one, other in pairs if one < len(near_mine) <= other}
    rows = mine.index.to_numpy(np.int64)[near_mine]
    return np.sort(np.concatenate([equal, rows[sorted(copies)]]))


def _hashes(texts: list[str]) -> NDArray[np.uint64]:
    return np.array([int(text, 16) for text in texts], dtype=np.uint64)


def _near(ours: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places on both sides that have a hash within reach on the other."""
    mine, theirs = np.zeros(len(ours), bool), np.zeros(len(others), bool)
    for start in range(0, len(ours), _BLOCK):
        close = np.bitwise_count(ours[start : start + _BLOCK, None] ^ others[None]) <= _MAX_BITS
        mine[start : start + _BLOCK] = close.any(axis=1)
        theirs |= close.any(axis=0)
    return np.flatnonzero(mine), np.flatnonzero(theirs)


def _thumbnails(files: ImageSet) -> NDArray[np.uint8]:
    """(n, 32, 32) grey thumbnails; black where a file has changed or gone, which no picture is like."""

    def thumbnail(place: int) -> NDArray[np.uint8]:
        try:
            return probe(files.content(place), files.paths[place].as_py(), files.white_level[place].as_py()).thumbnail
        except (BadImage, OSError):
            return np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)

    with ThreadPoolExecutor(_THREADS) as threads:
        return np.stack(list(threads.map(thumbnail, range(len(files)))))
