"""Decodes images with Pillow, which reads HEIC through pillow-heif."""

from __future__ import annotations

import functools
import io
import threading
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pharmclf.core.errors import ConfigError, single_line
from pharmclf.data.decoded_image import MAX_PIXELS, DecodedImage, InvalidImageError, Pixels, check_size, max_pixels
from pharmclf.data.pixel_depth import is_wide_colour, scale_colour, scale_grey

_ORIENTATION_TAG = 0x0112
_BOUNDS = ((Image, "MAX_IMAGE_PIXELS"), (PngImagePlugin, "MAX_TEXT_CHUNK"), (PngImagePlugin, "MAX_TEXT_MEMORY"))


def decode_pillow(content: bytes, kind: str, least_side: int, white_level: int) -> DecodedImage:
    """Decode the first frame of an image of any format, at full size; a JPEG that is too large for that is scaled.

    Args:
        content: the file.
        kind: its format, a key of `image_decoding.EXTENSIONS`.
        least_side: both sides of a scaled JPEG stay at least this long.
        white_level: as in `image_decoding.decode`.

    Raises:
        InvalidImageError: the reason.
    """
    try:
        if kind == "HEIF":
            _register_heif()
        with PillowWarningFilter(), Image.open(io.BytesIO(content), formats=(kind,)) as image:
            width, height = image.size
            if kind == "JPEG" and width * height > max_pixels():
                image.draft(None, (least_side, least_side))
            check_size(width, height, image.width * image.height)
            wide_colour = is_wide_colour(image)
            image.load()
            return convert_image(image, white_level, content if wide_colour else b"")._replace(
                width=width, height=height
            )
    except (InvalidImageError, ConfigError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InvalidImageError("no image" if kind == "BMP" else "unreadable: damaged header") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        text = single_line(error)
        cut = isinstance(error, EOFError) or "truncat" in text.lower()
        raise InvalidImageError("truncated" if cut else f"unreadable: {text[:80]}") from error


def convert_image(image: Image.Image, white_level: int, wide_colours: bytes = b"") -> DecodedImage:
    """Convert a loaded image of any mode to RGB of 8 bits, transparency on white.

    Args:
        image: loaded.
        white_level: as in `image_decoding.decode`.
        wide_colours: the file of an image with 16 bits per channel, of which Pillow keeps 8; b"": another one.

    Raises:
        InvalidImageError: values above the white level.
        ValueError: grey values outside of 0 to 65,535.
    """
    orientation = read_orientation(image)  # after the load: Pillow turns a TIFF itself and then forgets the tag
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey, largest = scale_grey(image, white_level)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        colours, largest = scale_colour(image, wide_colours, white_level) if wide_colours else (image, 0)
        pixels = _to_rgb(colours)
    if largest > white_level:
        raise InvalidImageError(f"values up to {largest} in a file of 16 bits, expected 0 to {white_level}")
    return DecodedImage(pixels, image.width, image.height, orientation, largest)


def header_orientation(content: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG, of which only the header is read; 1 (upright) where there is none."""
    with suppress(Exception), PillowWarningFilter(), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return read_orientation(image)
    return 1  # a header that Pillow refuses does not spoil pixels that decode


@functools.cache
def _register_heif() -> None:
    import pillow_heif  # few sets have such files

    pillow_heif.register_heif_opener(decode_threads=1)  # each core decodes another image already


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) where there is none or the EXIF block is damaged."""
    value = 1
    with suppress(Exception):  # a damaged EXIF block must not cost the image
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Pixels:
    """(h, w, 3) uint8 of a loaded image of any mode of 8 bits."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"), dtype=np.uint8)


class PillowWarningFilter:
    """Silences Pillow's warnings and replaces its bounds by ours, while any thread is inside.

    `warnings.catch_warnings` alone is not thread-safe.
    """

    _lock = threading.Lock()
    _inside = 0
    _saved: Any = None
    _bounds: list[Any]

    def __enter__(self) -> None:
        with PillowWarningFilter._lock:
            if PillowWarningFilter._inside == 0:
                PillowWarningFilter._saved = warnings.catch_warnings()
                PillowWarningFilter._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\.")
                PillowWarningFilter._bounds = [getattr(module, name) for module, name in _BOUNDS]
                Image.MAX_IMAGE_PIXELS = None  # an image is judged by its header, before it is loaded
                # texts next to the pixels, such as the history of an image editor: as large as pixels may be
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 3 * MAX_PIXELS
            PillowWarningFilter._inside += 1

    def __exit__(self, *_: object) -> None:
        with PillowWarningFilter._lock:
            PillowWarningFilter._inside -= 1
            if PillowWarningFilter._inside == 0:
                PillowWarningFilter._saved.__exit__(None, None, None)
                for (module, name), bound in zip(_BOUNDS, PillowWarningFilter._bounds, strict=True):
                    setattr(module, name, bound)
