"""Bytes of an image file -> RGB pixels, by one rule for training, evaluation and export.

JPEG is decoded by libjpeg-turbo at the smallest DCT scale whose sides are still twice the target; all else, and what
libjpeg-turbo refuses, by Pillow, which reads HEIC through pillow-heif. The resize rule decides in both cases: Pillow's
bilinear (an antialiased triangle filter) to a square, whatever the aspect.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import imagehash
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pharmclf.core.errors import ConfigError, single_line
from pharmclf.data import image_containers
from pharmclf.data.pixel_depth import MAX_VALUE, is_wide_colour, scale_colour, scale_grey

Pixels = NDArray[np.uint8]

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""The formats that are read, and how the names of their files end."""
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
}
IMAGE_EXTENSIONS = frozenset(extension for known in EXTENSIONS.values() for extension in known)
LFS_POINTER = "Git LFS pointer in place of the image: run git lfs pull"
_LFS_SIGNATURE = b"version https://git-lfs.github.com/spec/"
MAX_PIXELS = 100_000_000
"""At most, of what is decoded: 100 megapixels are 300 MB of memory. A JPEG counts by its scaled decode."""
MAX_PIXELS_VARIABLE = "PHARMCLF_MAX_MEGAPIXELS"
"""The environment variable that raises the bound, in millions of pixels."""
THUMBNAIL_SIDE = 32
_PROBE_SIDE = 4 * THUMBNAIL_SIDE  # the probe's scaled decode: sides of 128 pixels or more feed the thumbnail
_EXIF_WITHIN_BYTES = 1 << 18
_ORIENTATION_TAG = 0x0112


class InvalidImageError(ValueError):
    """An image that cannot be used; the text is the reason, short enough for a table."""


@dataclass(frozen=True)
class ImageInfo:
    """What the manifest wants to know of an image; its whole content was decoded once to find it out."""

    width: int
    """Pixels from left to right, after the EXIF orientation."""
    height: int
    phash: str
    """Perceptual hash, 16 hexadecimal digits: `imagehash.phash`, of the scaled decode where there is one."""
    thumbnail: Pixels
    """(32, 32) uint8, grey, aspect not preserved."""
    format: str
    """A key of `EXTENSIONS`."""
    wrong_extension: bool
    """The name ends like that of another format."""
    largest: int
    """Largest stored value of an image of 16 bits or more per channel; 0: it has 8, or its own values say its range."""
    without_end: bool
    """A JPEG that lacks its end mark and nothing else."""


class _Decoded(NamedTuple):
    """What is known of an image once its whole content is decoded."""

    pixels: Pixels
    """(h, w, 3), as stored: before the EXIF orientation."""
    width: int
    """Stored pixels from left to right, before any scaling."""
    height: int
    orientation: int
    """EXIF orientation 1..8."""
    largest: int = 0
    """As in `ImageInfo`."""
    without_end: bool = False
    """As in `ImageInfo`."""


def decode(content: bytes, image_size: int, white_level: int = MAX_VALUE) -> Pixels:
    """Decode an image and resize it to a square.

    Args:
        content: the whole file, in any format of `EXTENSIONS`.
        image_size: side of the square, in pixels.
        white_level: the value that is white in files of 16 bits per channel, as `find_white_level` finds it.

    Returns:
        (image_size, image_size, 3) uint8, RGB, EXIF orientation applied, transparency laid on white.

    Raises:
        InvalidImageError: not an image, damaged, larger than `MAX_PIXELS`, or with values above the white level.
    """
    decoded = _decode(content, 2 * image_size, white_level)
    return _orient(resize(decoded.pixels, image_size), decoded.orientation)


def resize(pixels: Pixels, image_size: int) -> Pixels:
    """The resize rule: (height, width, 3) uint8 -> (image_size, image_size, 3) uint8, bilinear, antialiased."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def read_image_info(content: bytes, name: str, white_level: int = MAX_VALUE) -> ImageInfo:
    """Decode all of an image's content and describe it.

    Of the name only the extension counts.

    Raises:
        InvalidImageError: the reason, as the manifest shows it: empty, no image, truncated, too large, unreadable.
    """
    pixels, width, height, orientation, largest, without_end = _decode(content, _PROBE_SIDE, white_level)
    grey = Image.fromarray(pixels).convert("L").resize((THUMBNAIL_SIDE,) * 2, Image.Resampling.LANCZOS)
    thumbnail = _orient(np.array(grey, dtype=np.uint8), orientation)
    kind = detect_format(content) or ""
    extension = os.path.splitext(name)[1].lower()
    return ImageInfo(
        width=height if orientation >= 5 else width,
        height=width if orientation >= 5 else height,
        phash=perceptual_hash(thumbnail),
        thumbnail=thumbnail,
        format=kind,
        wrong_extension=extension in IMAGE_EXTENSIONS and extension not in EXTENSIONS[kind],
        largest=largest,
        without_end=without_end,
    )


def perceptual_hash(thumbnail: Pixels) -> str:
    """Hash of a (32, 32) grey picture's low frequencies, 16 hexadecimal digits; near pictures differ in few bits."""
    return str(imagehash.phash(Image.fromarray(thumbnail)))


def detect_format(content: bytes) -> str | None:
    """The format by the first bytes, a key of `EXTENSIONS`; None: none of them."""
    if content.startswith(b"RIFF"):
        return "WEBP" if content[8:12] == b"WEBP" else None
    if content[4:8] == b"ftyp":
        return image_containers.heif_kind(content)
    return next((kind for kind, starts in _SIGNATURES.items() if content.startswith(starts)), None)


def _decode(content: bytes, least_side: int, white_level: int) -> _Decoded:
    """Decode the whole content.

    Args:
        content: the file.
        least_side: both sides stay at least this long, where the image has them.
        white_level: as in `decode`.
    """
    kind = detect_format(content)
    if kind is None:
        if content.startswith(_LFS_SIGNATURE):
            raise InvalidImageError(LFS_POINTER)
        raise InvalidImageError("no image" if content else "empty")
    if image_containers.is_truncated(content, kind):
        raise InvalidImageError("truncated")
    without_end = False
    if kind == "JPEG":
        decoded = _decode_turbo(content, least_side)
        if decoded is None and image_containers.misses_only_end_marker(content):
            content, without_end = content + image_containers.END_MARKER, True
            decoded = _decode_turbo(content, least_side)
        if decoded is not None:
            return decoded._replace(without_end=without_end)
    return _decode_pillow(content, kind, least_side, white_level)._replace(without_end=without_end)


def _decode_turbo(content: bytes, least_side: int) -> _Decoded | None:
    """A JPEG by libjpeg-turbo; None where Pillow shall judge: CMYK, or anything that is not quite in order."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(content)
        if colourspace not in ("YCbCr", "Gray", "RGB"):
            return None
        least = least_side if min(width, height) > least_side else 0
        _check_size(width, height, _scaled_pixels(content, width, height, least))
        pixels = simplejpeg.decode_jpeg(content, min_height=least, min_width=least)
    except (InvalidImageError, ConfigError):
        raise
    except (ValueError, TypeError):
        return None
    orientation = 1
    if content.find(b"Exif\0\0", 0, _EXIF_WITHIN_BYTES) >= 0:
        with (
            suppress(Exception),
            _PillowWarningFilter(),
            Image.open(io.BytesIO(content), formats=("JPEG",)) as image,
        ):  # header only
            orientation = _orientation(image)  # a header that Pillow dislikes does not spoil pixels that decode
    return _Decoded(pixels, width, height, orientation)


def _scaled_pixels(content: bytes, width: int, height: int, least: int) -> int:
    """Pixels that libjpeg-turbo holds of a JPEG whose scaled sides are at least so long; 0: no scaling."""
    eighths = next((k for k in range(1, 9) if least and min(width, height) * k >= 8 * least), 8)
    scaled = -(-width * eighths // 8) * -(-height * eighths // 8)
    # of a progressive one it holds the coefficients of the whole image; two bytes each, and in most 1.5 for each pixel
    return max(scaled, width * height // 2) if image_containers.is_progressive(content) else scaled


def _decode_pillow(content: bytes, kind: str, least_side: int, white_level: int) -> _Decoded:
    """Any format by Pillow, first frame, at full size; but a JPEG that is too large for that is scaled."""
    try:
        if kind == "HEIF":
            _register_heif()
        with _PillowWarningFilter(), Image.open(io.BytesIO(content), formats=(kind,)) as image:
            width, height = image.size
            if kind == "JPEG" and width * height > MAX_PIXELS:
                image.draft(None, (least_side, least_side))
            _check_size(width, height, image.width * image.height)
            wide_colour = is_wide_colour(image)
            image.load()
            orientation = _orientation(image)  # after the load: Pillow turns a TIFF itself and then forgets the tag
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                grey, largest = scale_grey(image, white_level)
                pixels = np.repeat(grey[:, :, None], 3, axis=2)
            else:
                colours, largest = scale_colour(image, content, white_level) if wide_colour else (image, 0)
                pixels = _to_rgb(colours)
            if largest > white_level:
                raise InvalidImageError(f"values up to {largest} in a file of 16 bits, expected 0 to {white_level}")
            return _Decoded(pixels, width, height, orientation, largest)
    except (InvalidImageError, ConfigError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InvalidImageError("no image" if kind == "BMP" else "unreadable: damaged header") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        text = single_line(error)
        cut = isinstance(error, EOFError) or "truncat" in text.lower()
        raise InvalidImageError("truncated" if cut else f"unreadable: {text[:80]}") from error


def _check_size(width: int, height: int, decoded: int) -> None:
    if width < 1 or height < 1:
        raise InvalidImageError("unreadable: no pixels")
    if decoded > (most := max_pixels()):
        raise InvalidImageError(
            f"too large: {width}x{height} pixels, {decoded / 1e6:,.0f} megapixels to decode; the bound of this tool is "
            f"{most / 1e6:,.0f}, {MAX_PIXELS_VARIABLE}=NUMBER raises it"
        )


def max_pixels() -> float:
    """Pixels of an image that is decoded, at most.

    Raises:
        ConfigError: the variable that sets it is no number of megapixels.
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


@functools.cache
def _register_heif() -> None:
    import pillow_heif  # few sets have such files

    pillow_heif.register_heif_opener(decode_threads=1)  # each core decodes an image of its own already


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) where there is none or the EXIF block is damaged."""
    value = 1
    with suppress(Exception):  # a damaged EXIF block must not cost the image
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (h, w[, 3]) upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> Pixels:
    """(h, w, 3) uint8 of a loaded image of any mode of 8 bits."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"), dtype=np.uint8)


_BOUNDS = ((Image, "MAX_IMAGE_PIXELS"), (PngImagePlugin, "MAX_TEXT_CHUNK"), (PngImagePlugin, "MAX_TEXT_MEMORY"))


class _PillowWarningFilter:
    """Silences Pillow's warnings and lifts its bounds, for which there are ours, while any thread is inside.

    `warnings.catch_warnings` alone is not thread-safe.
    """

    _lock = threading.Lock()
    _inside = 0
    _saved: Any = None
    _bounds: list[Any]

    def __enter__(self) -> None:
        with _PillowWarningFilter._lock:
            if _PillowWarningFilter._inside == 0:
                _PillowWarningFilter._saved = warnings.catch_warnings()
                _PillowWarningFilter._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\.")
                _PillowWarningFilter._bounds = [getattr(module, name) for module, name in _BOUNDS]
                Image.MAX_IMAGE_PIXELS = None  # an image is judged by its header, before it is loaded
                # texts beside the pixels, such as the history of an image editor: as large as pixels may be
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 3 * MAX_PIXELS
            _PillowWarningFilter._inside += 1

    def __exit__(self, *_: object) -> None:
        with _PillowWarningFilter._lock:
            _PillowWarningFilter._inside -= 1
            if _PillowWarningFilter._inside == 0:
                _PillowWarningFilter._saved.__exit__(None, None, None)
                for (module, name), bound in zip(_BOUNDS, _PillowWarningFilter._bounds, strict=True):
                    setattr(module, name, bound)
