"""Data leakage: images of a data set that are copies of images that a model was trained on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pharmclf.data import duplicates
from pharmclf.data.decoded_image import THUMBNAIL_SIDE
from pharmclf.data.image_decoding import InvalidImageError, read_image_info
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.splits import SPLITS, TRAIN

_THREADS = 8


def find_leaked_images(manifest: Manifest, known: Manifest, splits: tuple[str, ...]) -> NDArray[np.int64]:
    """Find usable rows of a data set that are copies of images in splits of another, exact or near duplicates.

    Args:
        manifest: the set to search.
        known: the data set with splits.
        splits: the splits to compare with.

    Returns:
        (n,) row numbers of `manifest`, sorted.
    """
    searched, others = manifest.ok, known.ok[known.ok["split"].isin(splits)]
    equal = searched.index[searched["sha256"].isin(set(others["sha256"]))].to_numpy(np.int64)
    searched = searched[~searched.index.isin(equal)]
    if not len(searched) or not len(others):
        return equal
    hashes = np.array([int(text, 16) for text in [*searched["phash"], *others["phash"]]], dtype=np.uint64)
    sides = ((searched, manifest), (others, known))
    files = ImageSet.join([ImageSet.of_rows(rows, source.white_level) for rows, source in sides])
    pairs = duplicates.near_pairs(
        hashes,
        _thumbnails(files),
        lambda place: files.decode(place, duplicates.CHECK_SIDE),
        sides=np.arange(len(hashes)) < len(searched),
    )
    rows = searched.index.to_numpy(np.int64)
    return np.sort(np.concatenate([equal, rows[sorted({one for one, _ in pairs})]]))


def keep_splits(manifest: Manifest, known: Manifest) -> Manifest:
    """Give images that another run knows, and their near duplicates, the splits that they have there.

    So a run that starts from its model is not tested on what that was trained on. A group of which images are known in
    several splits belongs to the first of train, validation and test.

    Args:
        manifest: with splits.
        known: that of the other run.
    """
    rows = manifest.ok
    kept = rows["sha256"].map(dict(zip(known.ok["sha256"], known.ok["split"], strict=True)))
    kept.loc[find_leaked_images(manifest, known, (TRAIN,)).tolist()] = TRAIN
    first = kept.map({name: place for place, name in enumerate(SPLITS)}).groupby(rows["group"]).transform("min")
    splits = rows["split"].where(first.isna(), first.map(dict(enumerate(SPLITS))))
    return manifest.with_splits(splits)


def _thumbnails(files: ImageSet) -> NDArray[np.uint8]:
    """(n, 32, 32) grey thumbnails; black where a file is changed or missing, which matches no image."""

    def thumbnail(place: int) -> NDArray[np.uint8]:
        try:
            return read_image_info(
                files.content(place), files.paths[place].as_py(), files.white_level[place].as_py()
            ).thumbnail
        except (InvalidImageError, OSError):
            return np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)

    with ThreadPoolExecutor(_THREADS) as threads:
        return np.stack(list(threads.map(thumbnail, range(len(files)))))
