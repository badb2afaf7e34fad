"""Decodes image files to RGB pixels, by one rule for training, evaluation and export.

JPEG is decoded by libjpeg-turbo at the smallest DCT scale whose sides are at least twice the target. Other formats, and
the files that libjpeg-turbo refuses, are decoded by Pillow. Both are resized by the same rule: Pillow's bilinear (an
antialiased triangle filter) to a square, without regard to the aspect ratio.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from pharmclf.core.errors import first_line
from pharmclf.data.decoded_image import THUMBNAIL_SIDE, Crop, DecodedImage, Pixels
from pharmclf.data.decoded_image import InvalidImageError as InvalidImageError
from pharmclf.data.jpeg import END_MARKER, decode_jpeg, misses_only_end_marker
from pharmclf.data.pillow_decoder import convert_image, decode_pillow
from pharmclf.data.pixel_depth import MAX_VALUE

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
"""The supported formats and their file extensions."""
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
_INFO_SIDE = 4 * THUMBNAIL_SIDE  # least side of the scaled decode from which the thumbnail is made
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF = frozenset({b"avif", b"avis"})
_HEIC_OR_AVIF = frozenset({b"mif1", b"msf1"})


@dataclass(frozen=True)
class ImageInfo:
    """Properties of an image for the manifest, found by decoding its full content."""

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
    """The name has the extension of another format."""
    largest: int
    """As in `DecodedImage`."""
    without_end: bool
    """As in `DecodedImage`."""


def decode(content: bytes, image_size: int, white_level: int = MAX_VALUE, crop: Crop | None = None) -> Pixels:
    """Decode an image and resize it, or a part of it, to a square.

    Args:
        content: the file, in any format of `EXTENSIONS`.
        image_size: side of the square, in pixels.
        white_level: the value that is white in files of 16 bits per channel, as `find_white_level` finds it.
        crop: the part; None: the whole image.

    Returns:
        (image_size, image_size, 3) uint8, RGB, EXIF orientation applied, transparency on white.

    Raises:
        InvalidImageError: not an image, damaged, larger than the bound, or with values above the white level.
    """
    least_side = 2 * image_size if crop is None else math.ceil(2 * image_size / crop.side)
    return _to_square(_decode(content, least_side, white_level), image_size, crop)


def decode_upright(content: bytes, longest_side: int, white_level: int = MAX_VALUE) -> Pixels:
    """Decode an image for people, with its aspect ratio.

    Args:
        content: as in `decode`.
        longest_side: bound on both sides, in pixels; smaller images keep their size.
        white_level: as in `decode`.

    Returns:
        (height, width, 3) uint8, RGB, EXIF orientation applied, transparency on white.

    Raises:
        InvalidImageError: as `decode`.
    """
    decoded = _decode(content, longest_side, white_level)
    image = Image.fromarray(_orient(decoded.pixels, decoded.orientation))
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return np.array(image, dtype=np.uint8)


def prepare_image(
    image: Image.Image, image_size: int, white_level: int = MAX_VALUE, crop: Crop | None = None
) -> Pixels:
    """As `decode`, for an image that Pillow has opened; pixels of a JPEG may differ by rounding.

    Raises:
        InvalidImageError: damaged, or with values above the white level.
    """
    try:
        image.load()
        decoded = convert_image(image, white_level)
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidImageError(f"unreadable: {first_line(error, 80)}") from error
    return _to_square(decoded, image_size, crop)


def _to_square(decoded: DecodedImage, image_size: int, crop: Crop | None) -> Pixels:
    if crop is None:
        return _orient(resize(decoded.pixels, image_size), decoded.orientation)
    return resize(_orient(decoded.pixels, decoded.orientation), image_size, crop)


def resize(pixels: Pixels, image_size: int, crop: Crop | None = None) -> Pixels:
    """The resize rule: (height, width, 3) uint8 -> (image_size, image_size, 3) uint8, bilinear, antialiased."""
    if crop is None and pixels.shape[:2] == (image_size, image_size):
        return pixels
    box = crop.in_pixels(pixels.shape[1], pixels.shape[0]) if crop else None
    resized = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR, box)
    return np.array(resized, dtype=np.uint8)


def read_image_info(content: bytes, name: str, white_level: int = MAX_VALUE) -> ImageInfo:
    """Decode the full content of an image and describe it; of its name only the extension is used.

    Raises:
        InvalidImageError: the reason, as the manifest shows it: empty, no image, truncated, too large, unreadable.
    """
    pixels, width, height, orientation, largest, without_end = _decode(content, _INFO_SIDE, white_level)
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
    """Hash of a (32, 32) grey image's low frequencies, 16 hexadecimal digits; similar images differ in few bits."""
    return str(imagehash.phash(Image.fromarray(thumbnail)))


def detect_format(content: bytes) -> str | None:
    """The format by the first bytes, a key of `EXTENSIONS`; None: unknown."""
    if content.startswith(b"RIFF"):
        return "WEBP" if content[8:12] == b"WEBP" else None
    if content[4:8] == b"ftyp":
        return _heif_kind(content)
    return next((kind for kind, starts in _SIGNATURES.items() if content.startswith(starts)), None)


def _decode(content: bytes, least_side: int, white_level: int) -> DecodedImage:
    """Decode the full content; a JPEG is scaled down to sides of at least `least_side` pixels."""
    kind = detect_format(content)
    if kind is None:
        if content.startswith(_LFS_SIGNATURE):
            raise InvalidImageError(LFS_POINTER)
        raise InvalidImageError("no image" if content else "empty")
    if _is_truncated(content, kind):
        raise InvalidImageError("truncated")
    without_end = False
    if kind == "JPEG":
        decoded = decode_jpeg(content, least_side)
        if decoded is None and misses_only_end_marker(content):
            content, without_end = content + END_MARKER, True
            decoded = decode_jpeg(content, least_side)
        if decoded is not None:
            return decoded._replace(without_end=without_end)
    return decode_pillow(content, kind, least_side, white_level)._replace(without_end=without_end)


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (h, w[, 3]) upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _heif_kind(content: bytes) -> str | None:
    """HEIF or AVIF, by the brands of an ISO base media file; None: another kind of it, such as a video."""
    major, size = content[8:12], int.from_bytes(content[:4], "big")
    brands = {major, *(content[start : start + 4] for start in range(16, min(size, len(content), 1024), 4))}
    if major in _AVIF or (major not in _HEIC and brands & _AVIF):
        return "AVIF"
    return "HEIF" if brands & (_HEIC | _HEIC_OR_AVIF) else None


def _is_truncated(content: bytes, kind: str) -> bool:
    """Whether a file is shorter than its own length fields say; False for formats without them."""
    if kind == "WEBP":
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    if kind not in ("HEIF", "AVIF"):
        return False
    place = 0
    while place + 8 <= len(content):  # box by box
        size = int.from_bytes(content[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(content[place + 8 : place + 16], "big")
        if size == 0:  # up to the end of the file
            return False
        place += max(size, 8)
    return place > len(content)
