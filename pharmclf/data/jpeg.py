"""Decodes JPEG with libjpeg-turbo, and reads from its markers how it is coded and whether it is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator

import simplejpeg

from pharmclf.core.errors import ConfigError
from pharmclf.data.decoded_image import DecodedImage, InvalidImageError, check_size
from pharmclf.data.pillow_decoder import header_orientation

END_MARKER = b"\xff\xd9"
"""The last two bytes of a JPEG."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # inside a scan, FF00 and FFD0 to FFD7 are data
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN, _STANDALONE = 0xDA, frozenset({0x01, 0xD8, 0xD9})
_COEFFICIENTS = 64
_EXIF_WITHIN_BYTES = 1 << 18


def decode_jpeg(content: bytes, least_side: int) -> DecodedImage | None:
    """Decode a JPEG at the smallest DCT scale whose sides are at least so long; None where Pillow must decide.

    Pillow decides on CMYK, and on any file that is not quite in order.

    Raises:
        InvalidImageError: too many pixels.
    """
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(content)
        if colourspace not in ("YCbCr", "Gray", "RGB"):
            return None
        least = least_side if min(width, height) > least_side else 0
        check_size(width, height, _scaled_pixels(content, width, height, least))
        pixels = simplejpeg.decode_jpeg(content, min_height=least, min_width=least)
    except (InvalidImageError, ConfigError):
        raise
    except (ValueError, TypeError):
        return None
    has_exif = content.find(b"Exif\0\0", 0, _EXIF_WITHIN_BYTES) >= 0
    return DecodedImage(pixels, width, height, header_orientation(content) if has_exif else 1)


def _scaled_pixels(content: bytes, width: int, height: int, least: int) -> int:
    """Pixels that libjpeg-turbo holds of a JPEG whose scaled sides are at least so long; 0: no scaling."""
    eighths = next((k for k in range(1, 9) if least and min(width, height) * k >= 8 * least), 8)
    scaled = -(-width * eighths // 8) * -(-height * eighths // 8)
    # coded in refinements: it holds the coefficients of the full image, two bytes each, and mostly 1.5 for each pixel
    is_progressive = any(code in _PROGRESSIVE for code, _ in _segments(content, frame_only=True))
    return max(scaled, width * height // 2) if is_progressive else scaled


def misses_only_end_marker(content: bytes) -> bool:
    """Whether a JPEG that does not decode has every pixel, and would decode with an end marker."""
    if content.endswith(END_MARKER):
        return False
    try:
        _decode_small(content)
    except (ValueError, TypeError) as error:
        if "Premature end of JPEG" not in str(error):
            return False
    else:
        return False
    try:
        _decode_small(content + END_MARKER)  # missing data are an error here
    except (ValueError, TypeError):
        return False
    return _has_all_scans(content)


def _decode_small(content: bytes) -> None:
    """Decode a JPEG at the smallest scale; what is not quite in order is a ValueError."""
    colours = simplejpeg.decode_jpeg_header(content)[2]
    simplejpeg.decode_jpeg(content, "CMYK" if colours in ("CMYK", "YCCK") else "RGB", min_height=1, min_width=1)


def _segments(content: bytes, *, frame_only: bool = False) -> Iterator[tuple[int, bytes]]:
    """The marker segments of a JPEG: (code, what they hold); `frame_only`: the frame's header alone."""
    place = 2
    while marker := _MARKER.search(content, place):
        code, place = marker[1][0], marker.end()
        if code in _STANDALONE:
            continue
        size = int.from_bytes(content[place : place + 2], "big")
        if not frame_only or code in _FRAMES:
            yield code, content[place + 2 : place + size]
        if frame_only and code in (*_FRAMES, _SCAN):
            return
        place += max(size, 2)


def _has_all_scans(content: bytes) -> bool:
    """Whether the scans of a JPEG hold every coefficient of every component to its last bit.

    A file that is cut between two scans decodes without an error, but coarse, or grey.
    """
    missing: dict[int, set[int]] = {}
    progressive = False
    for code, body in _segments(content):
        if code in _FRAMES:
            progressive = code in _PROGRESSIVE
            missing = {body[place]: set(range(_COEFFICIENTS)) for place in range(6, len(body) - 2, 3)}
        elif code == _SCAN and body:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count] if progressive else (0, _COEFFICIENTS - 1, 0)
            for component in body[1 : 1 + 2 * count : 2]:
                if bits & 0x0F == 0:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
