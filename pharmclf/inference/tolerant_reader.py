"""Reads the images to predict, so that a bad one costs only its own row."""

from __future__ import annotations

import numpy as np

from pharmclf.core.errors import error_reason
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import encode_error, load_images


def read_images(files: ImageSet, image_size: int) -> dict[str, np.ndarray]:
    """Read, decode and resize images, bad ones too.

    Args:
        files: n images.
        image_size: S, side in pixels.

    Returns:
        `image` (n, S, S, 3) uint8, black where `bad` says why it cannot be used; `error` of the storage, as in
        `load_block`.
    """
    images, bad = np.zeros((len(files), image_size, image_size, 3), np.uint8), [""] * len(files)
    is_remote = files.is_remote

    def read(place: int) -> None:
        try:
            found, reasons = load_images(files.slice(place, 1), image_size)
            images[place], bad[place] = found[0], str(reasons[0])
        except PermissionError as error:
            if is_remote:  # keys that are refused say nothing of the image
                raise
            bad[place] = f"not read: {error_reason(error, 80)}"

    error = ""
    try:
        files.map(read)
    except OSError as failure:
        error = encode_error(failure)
    return {"image": images, "bad": np.array(bad, str), "error": np.full(len(files), error)}
