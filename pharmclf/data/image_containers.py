"""What the bytes of an image file say before any pixel is decoded: its kind, whether it is cut, how a JPEG is coded."""

from __future__ import annotations

import re
from collections.abc import Iterator

import simplejpeg

END_MARKER = b"\xff\xd9"
"""The last two bytes of a JPEG."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within a scan, FF00 and FFD0 to FFD7 are data
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN, _STANDALONE = 0xDA, frozenset({0x01, 0xD8, 0xD9})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF = frozenset({b"avif", b"avis"})
_HEIC_OR_AVIF = frozenset({b"mif1", b"msf1"})
_COEFFICIENTS = 64


def heif_kind(content: bytes) -> str | None:
    """HEIF or AVIF, by the brands of an ISO base media file; None: another kind of it, such as a video."""
    major, size = content[8:12], int.from_bytes(content[:4], "big")
    brands = {major, *(content[start : start + 4] for start in range(16, min(size, len(content), 1024), 4))}
    if major in _AVIF or (major not in _HEIC and brands & _AVIF):
        return "AVIF"
    return "HEIF" if brands & (_HEIC | _HEIC_OR_AVIF) else None


def is_truncated(content: bytes, kind: str) -> bool:
    """Whether a file is shorter than its own lengths say; False where the kind has none."""
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


def is_progressive(content: bytes) -> bool:
    """Whether a JPEG is coded in refinements of the whole image, all of which a decoder holds at once."""
    return any(code in _PROGRESSIVE for code, _ in _segments(content, frame_only=True))


def misses_only_end_marker(content: bytes) -> bool:
    """Whether a JPEG that does not decode would with an end mark behind it, every pixel being there."""
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
        _decode_small(content + END_MARKER)  # data that are missing are an error here
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
    while found := _MARKER.search(content, place):
        code, place = found[1][0], found.end()
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
