"""Bytes of an image file -> RGB pixels, by one rule for training, evaluation and export.

JPEG is decoded by libjpeg-turbo at the smallest DCT scale whose sides are still twice the target; all else, and what
libjpeg-turbo refuses, by Pillow. The resize rule decides in both cases: Pillow's bilinear (an antialiased triangle
filter) to a square, whatever the aspect.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""The formats that are read, and how the names of their files end."""
_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
}
IMAGE_EXTENSIONS = frozenset(extension for known in EXTENSIONS.values() for extension in known)
LFS_POINTER = "Git LFS pointer in place of the image: run git lfs pull"
_LFS_START = b"version https://git-lfs.github.com/spec/"
MAX_PIXELS = 100_000_000
"""Larger images are refused by their header: 100 megapixels are 300 MB of memory when decoded."""
THUMBNAIL_SIDE = 32
_PROBE_SIDE = 4 * THUMBNAIL_SIDE  # the probe's scaled decode: sides of 128 pixels or more feed the thumbnail
_EXIF_WITHIN_BYTES = 1 << 18
_ORIENTATION_TAG = 0x0112


class BadImage(ValueError):
    """An image that cannot be used; the text is the reason, short enough for a table."""


@dataclass(frozen=True)
class Probe:
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


def decode(content: bytes, image_size: int) -> Pixels:
    """Decode an image and resize it to a square.

    Args:
        content: the whole file, in any format of `EXTENSIONS`.
        image_size: side of the square, in pixels.

    Returns:
        (image_size, image_size, 3) uint8, RGB, EXIF orientation applied, transparency laid on white.

    Raises:
        BadImage: not an image, damaged, or larger than `MAX_PIXELS`.
    """
    pixels, _, _, orientation = _decode(content, 2 * image_size)
    return _orient(resize(pixels, image_size), orientation)


def resize(pixels: Pixels, image_size: int) -> Pixels:
    """The resize rule: (height, width, 3) uint8 -> (image_size, image_size, 3) uint8, bilinear, antialiased."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def probe(content: bytes, name: str) -> Probe:
    """Decode all of an image's content and describe it.

    Of the name only the extension counts.

    Raises:
        BadImage: the reason, as it stands in the manifest: empty, no image, truncated, decompression bomb, unreadable.
    """
    pixels, width, height, orientation = _decode(content, _PROBE_SIDE)
    grey = Image.fromarray(pixels).convert("L").resize((THUMBNAIL_SIDE,) * 2, Image.Resampling.LANCZOS)
    thumbnail = _orient(np.array(grey, dtype=np.uint8), orientation)
    kind = sniff(content) or ""
    extension = os.path.splitext(name)[1].lower()
    return Probe(
        width=height if orientation >= 5 else width,
        height=width if orientation >= 5 else height,
        phash=perceptual_hash(thumbnail),
        thumbnail=thumbnail,
        format=kind,
        wrong_extension=extension in IMAGE_EXTENSIONS and extension not in EXTENSIONS[kind],
    )


def perceptual_hash(thumbnail: Pixels) -> str:
    """Hash of a (32, 32) grey picture's low frequencies, 16 hexadecimal digits; near pictures differ in few bits."""
    return str(imagehash.phash(Image.fromarray(thumbnail)))


def sniff(content: bytes) -> str | None:
    """The format by the first bytes, a key of `EXTENSIONS`; None: none of them."""
    if content.startswith(b"RIFF"):
        return "WEBP" if content[8:12] == b"WEBP" else None
    return next((kind for kind, starts in _STARTS.items() if content.startswith(starts)), None)


def _decode(content: bytes, least_side: int) -> tuple[Pixels, int, int, int]:
    """Decode the whole content.

    Args:
        content: the file.
        least_side: both sides stay at least this long, where the image has them; 0: no scaling.

    Returns:
        (h, w, 3) uint8 before orientation, the stored width and height in pixels, the EXIF orientation 1..8.
    """
    kind = sniff(content)
    if kind is None:
        if content.startswith(_LFS_START):
            raise BadImage(LFS_POINTER)
        raise BadImage("no image" if content else "empty")
    if kind == "WEBP" and int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise BadImage("truncated")
    if kind == "JPEG":
        decoded = _decode_turbo(content, least_side)
        if decoded is not None:
            return decoded
    return _decode_pillow(content, kind)


def _decode_turbo(content: bytes, least_side: int) -> tuple[Pixels, int, int, int] | None:
    """A JPEG by libjpeg-turbo; None where Pillow shall judge: CMYK, or anything that is not quite in order."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(content)
        if colourspace not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_size(width, height)
        least = least_side if least_side and min(width, height) > least_side else 0
        pixels = simplejpeg.decode_jpeg(content, min_height=least, min_width=least)
    except BadImage:
        raise
    except (ValueError, TypeError):
        return None
    orientation = 1
    if content.find(b"Exif\0\0", 0, _EXIF_WITHIN_BYTES) >= 0:
        with suppress(Exception), _Quiet(), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:  # header only
            orientation = _orientation(image)  # a header that Pillow dislikes does not spoil pixels that decode
    return pixels, width, height, orientation


def _decode_pillow(content: bytes, kind: str) -> tuple[Pixels, int, int, int]:
    """Any format by Pillow, first frame, at full size."""
    try:
        with _Quiet(), Image.open(io.BytesIO(content), formats=(kind,)) as image:
            _check_size(*image.size)
            image.load()
            orientation = _orientation(image)  # after the load: Pillow turns a TIFF itself and then forgets the tag
            return _to_rgb(image), *image.size, orientation
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage("decompression bomb") from None
    except UnidentifiedImageError:
        raise BadImage("no image" if kind == "BMP" else "unreadable: damaged header") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        cut = isinstance(error, EOFError) or "truncat" in text.lower()
        raise BadImage("truncated" if cut else f"unreadable: {text[:80]}") from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage("unreadable: no pixels")
    if width * height > MAX_PIXELS:
        raise BadImage(f"decompression bomb: {width}x{height} pixels")


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
    """(h, w, 3) uint8 of a loaded image of any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float64)
        grey = wide / 257.0 if image.mode.startswith("I;16") else _scale_wide(wide)
        return np.repeat(np.rint(grey).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _scale_wide(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels of 32 bit to 0..255, by the range they keep to: 0..1, 0..255 or 0..65535."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN fails too
        raise BadImage(f"unreadable: pixel values from {low:.4g} to {high:.4g}, expected 0 to 65535")
    if high <= 1:
        return values * 255.0
    return values / 257.0 if high > 255 else values


class _Quiet:
    """Silences Pillow's own warnings while any thread is inside; `warnings.catch_warnings` alone is not thread-safe."""

    _lock = threading.Lock()
    _inside = 0
    _saved: Any = None

    def __enter__(self) -> None:
        with _Quiet._lock:
            if _Quiet._inside == 0:
                _Quiet._saved = warnings.catch_warnings()
                _Quiet._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            _Quiet._inside += 1

    def __exit__(self, *_: object) -> None:
        with _Quiet._lock:
            _Quiet._inside -= 1
            if _Quiet._inside == 0:
                _Quiet._saved.__exit__(None, None, None)
