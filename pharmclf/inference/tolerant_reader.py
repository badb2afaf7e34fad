"""Reads the images to predict, so that a bad one costs only its own row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pharmclf import storage
from pharmclf.core.errors import error_reason
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import encode_error, load_images

_READS = 16  # concurrent reads of one block from an object store


def read_images(files: ImageSet, image_size: int) -> dict[str, np.ndarray]:
    """Read, decode and resize images, bad ones too.

    Args:
        files: n images.
        image_size: S, side in pixels.

    Returns:
        `image` (n, S, S, 3) uint8, black where `bad` says why it cannot be used; `error` of the storage, as in
        `load_block`.
    """
    paths = files.paths.to_pylist()
    remote = any(storage.is_remote(path) for path in paths)
    images, bad = np.zeros((len(paths), image_size, image_size, 3), np.uint8), [""] * len(paths)

    def read(place: int) -> None:
        try:
            found, reasons = load_images(files.slice(place, 1), image_size)
            images[place], bad[place] = found[0], str(reasons[0])
        except PermissionError as error:
            if remote:  # keys that are refused say nothing of the image
                raise
            bad[place] = f"not read: {error_reason(error, 80)}"

    error = ""
    try:
        with ThreadPoolExecutor(_READS if remote else 1) as pool:
            list(pool.map(read, range(len(paths))))
    except OSError as failure:
        error = encode_error(failure)
    return {"image": images, "bad": np.array(bad), "error": np.full(len(paths), error)}
