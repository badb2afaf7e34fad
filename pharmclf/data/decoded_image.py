"""A decoded image, a part of one, the error of one that cannot be decoded, and the bound on its pixels."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pharmclf.core.errors import ConfigError

Pixels = NDArray[np.uint8]
MAX_PIXELS = 100_000_000
"""Bound on the decoded pixels: 100 megapixels take 300 MB of memory. A JPEG counts by its scaled decode."""
MAX_PIXELS_VARIABLE = "PHARMCLF_MAX_MEGAPIXELS"
"""The environment variable that changes the bound, in millions of pixels."""
THUMBNAIL_SIDE = 32  # pixels
LOCATOR_SIZE = 160
"""Side of the images in which products are looked for, pixels."""


class InvalidImageError(ValueError):
    """An image that cannot be used; the text is the reason, short enough for a table."""


class Crop(NamedTuple):
    """A part of an upright image, as shares of its width and height; of a square image it is a square."""

    left: float
    top: float
    side: float
    """Above 0; of the width and of the height."""

    def in_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in an image of this size."""
        right, bottom = min(1.0, self.left + self.side), min(1.0, self.top + self.side)
        return self.left * width, self.top * height, right * width, bottom * height


class DecodedImage(NamedTuple):
    """An image after its full content is decoded."""

    pixels: Pixels
    """(h, w, 3), as stored: before the EXIF orientation."""
    width: int
    """Stored pixels from left to right, before any scaling."""
    height: int
    orientation: int
    """EXIF orientation 1..8."""
    largest: int = 0
    """Largest stored value of an image of 16 bits or more per channel; 0: 8 bits, or values that show their range."""
    without_end: bool = False
    """A JPEG that lacks its end marker and nothing else."""


def check_size(width: int, height: int, decoded: int) -> None:
    """Refuse an image without pixels, or with too many.

    Args:
        width: of the stored image, for the message.
        height: the same.
        decoded: pixels that are held in memory.

    Raises:
        InvalidImageError: it cannot be decoded.
        ConfigError: the variable of the bound is not a number of megapixels.
    """
    if width < 1 or height < 1:
        raise InvalidImageError("unreadable: no pixels")
    if decoded > (most := max_pixels()):
        raise InvalidImageError(
            f"too large: {width}x{height} pixels, {decoded / 1e6:,.0f} megapixels to decode; the bound of this tool is "
            f"{most / 1e6:,.0f}, {MAX_PIXELS_VARIABLE}=NUMBER raises it"
        )


def max_pixels() -> float:
    """The bound on the decoded pixels.

    Raises:
        ConfigError: its variable is not a number of megapixels.
    """
    given = os.environ.get(MAX_PIXELS_VARIABLE)
    if given is None:
        return MAX_PIXELS
    with suppress(ValueError):
        if (megapixels := float(given)) > 0:
            return megapixels * 1e6
    raise ConfigError(
        f"{MAX_PIXELS_VARIABLE}: received {given!r}, expected a number of megapixels above 0, such as 200"
    )
