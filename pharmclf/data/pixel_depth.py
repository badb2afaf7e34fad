"""Scales images of 16 bits per channel to 8 by the bits that they use: cameras store 10 to 14 bits in such files."""

from __future__ import annotations

import io
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_VALUE = 65535
"""The white level of files of 16 bits per channel that use all of them."""
_LEVELS = (255, 1023, 4095, 16383)
"""White levels of files that use 8, 10, 12 or 14 bits of each value."""
_TOP_BYTE = _LEVELS[-1] >> 8
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def find_white_level(largest: int) -> int:
    """The white level of a set by the largest value of all its files of 16 bits."""
    return next((level for level in _LEVELS if 0 < largest <= level), MAX_VALUE)


def scale_grey(image: Image.Image, white_level: int) -> tuple[NDArray[np.uint8], int]:
    """Scale a grey image of 16 or 32 bits to 8.

    The range of values of 32 bits decides their scale: 0..1, 0..255, or 16 bits.

    Returns:
        (h, w) uint8, and the largest value; 0 where the range is not that of 16 bits.

    Raises:
        ValueError: values outside of these ranges.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= MAX_VALUE):  # NaN fails too
        raise ValueError(f"pixel values from {low:.4g} to {high:.4g}, expected 0 to {MAX_VALUE}")
    if not image.mode.startswith("I;16") and high <= 255:
        return np.rint(values * 255.0 if high <= 1 else values).astype(np.uint8), 0
    return np.rint(np.minimum(values / (white_level / 255.0), 255.0)).astype(np.uint8), int(high)


def is_wide_colour(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16 bits per channel, of which Pillow keeps the upper 8."""
    return image.mode in ("RGB", "RGBA") and ";16" in _rawmode(image)


def scale_colour(image: Image.Image, content: bytes, white_level: int) -> tuple[Image.Image, int]:
    """Scale a colour image of 16 bits per channel to 8.

    Args:
        image: loaded; its bytes are the upper ones of each value.
        content: the file.
        white_level: at `MAX_VALUE` the image stays as Pillow has loaded it.

    Returns:
        The image, and the largest value of its colours, or one above every level where it uses more than 14 bits.
    """
    values = np.asarray(image)
    top = int(values[..., :3].max())
    if top > _TOP_BYTE:
        return image, top * 257
    wide = values[..., :3].astype(np.float64) * 256 + _low_bytes(content, str(image.format))[..., :3]
    largest = int(wide.max())
    if white_level == MAX_VALUE or largest > white_level:
        return image, largest
    scaled = np.rint(wide * (255 / white_level)).astype(np.uint8)
    return Image.fromarray(np.concatenate([scaled, values[..., 3:]], axis=2)), largest


def _low_bytes(content: bytes, kind: str) -> NDArray[np.uint8]:
    """(h, w, channels) lower bytes of each value, which Pillow keeps when it is given the other byte order."""
    with Image.open(io.BytesIO(content), formats=(kind,)) as image:
        rawmode = _rawmode(image)
        other = rawmode[:-1] + _OTHER_BYTE[rawmode[-1]]
        tiles = []
        for tile in image.tile:
            args = other if isinstance(tile.args, str) else (other, *tile.args[1:])
            tiles.append(tile._replace(args=args))
        if rawmode.startswith("LA"):  # Pillow has no such mode for the other byte order
            return np.full((image.height, image.width, 3), 255, np.uint8)
        image.tile = tiles
        return np.asarray(image)


def _rawmode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", [])
    args = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else args[0] if args else "")
