"""From the body of a request to the contents of image files, within the limits. Knows neither Ray nor TensorFlow."""

from __future__ import annotations

import binascii
import json
from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from pharmclf.core.errors import first_line
from pharmclf.core.units import format_count, format_size
from pharmclf.serving.options import Limits

FORMS = "multipart/form-data with a file per image, application/json with images in base64, or one image as image/jpeg"


class RequestError(Exception):
    """A request that gets no answer, with the status of HTTP that says so."""

    def __init__(self, status: int, received: str, expected: str, remedy: str) -> None:
        super().__init__(f"received {received}, expected {expected}. {remedy}")
        self.status = status
        self.content = {"error": str(self), "received": received, "expected": expected, "remedy": remedy}
        """What the client gets as JSON."""


async def read_body(stream: AsyncIterator[bytes], declared: str | None, limits: Limits) -> bytes:
    """Read a body, and no more of it than is allowed.

    Args:
        stream: pieces of the body, as they arrive.
        declared: value of the header Content-Length.

    Raises:
        RequestError: 413, too large; the rest is not read.
    """
    if declared and declared.isdecimal() and int(declared) > limits.bytes:
        raise _too_large(format_size(int(declared)), limits)
    body = bytearray()
    async for piece in stream:
        body += piece
        if len(body) > limits.bytes:
            raise _too_large(f"more than {format_size(limits.bytes)}", limits)
    return bytes(body)


def parse_images(content_type: str, body: bytes, limits: Limits) -> list[bytes]:
    """The contents of the image files in a body, in their order.

    Args:
        content_type: value of the header.

    Raises:
        RequestError: 415, a type that is not supported; 400, a body that is not of its type; 413, too many images.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        images = _parse_multipart(options.get(b"boundary", b""), body, limits)
    elif kind == b"application/json":
        images = _parse_json(body, limits)
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        images = [body]
    else:
        name = kind.decode("latin-1")[:80] or "no content type"
        raise RequestError(415, name, FORMS, "Set the header Content-Type")
    if not images:
        raise RequestError(400, "no image", FORMS, "Send at least one image")
    return images


def _too_large(received: str, limits: Limits) -> RequestError:
    remedy = "Send fewer or smaller images, or start the server with a larger --max-bytes"
    return RequestError(413, received, f"a body of at most {format_size(limits.bytes)}", remedy)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.images:
        most = format_count(limits.images, "image")
        raise RequestError(413, f"more than {most}", f"at most {most}", "Send them in several requests")


def _parse_json(body: bytes, limits: Limits) -> list[bytes]:
    expected = '{"images": ["…", …]} with images in base64'
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"a body that is no JSON: {first_line(error, 80)}", expected, "Mend it") from error
    texts = given.get("images") if isinstance(given, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(400, "another JSON value", expected, "Put the texts into a list with the key images")
    _check_count(len(texts), limits)
    try:
        plain = (text.partition(",")[2] if text.startswith("data:") else text for text in texts)
        return [binascii.a2b_base64("".join(text.split()), strict_mode=True) for text in plain]
    except ValueError as error:  # also of text that is not ASCII
        raise RequestError(400, f"a text that is no base64: {first_line(error, 80)}", expected, "Encode it") from error


def _parse_multipart(boundary: bytes, body: bytes, limits: Limits) -> list[bytes]:
    parts: list[tuple[bytearray, bytearray]] = []  # headers and content of each
    ended = False

    def begin() -> None:
        _check_count(len(parts) + 1, limits)
        parts.append((bytearray(), bytearray()))

    def header(data: bytes, start: int, end: int) -> None:
        parts[-1][0].extend(data[start:end].lower())

    def content(data: bytes, start: int, end: int) -> None:
        parts[-1][1].extend(memoryview(data)[start:end])

    def finish() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": header,
                "on_header_value": header,
                "on_part_data": content,
                "on_end": finish,
            },
        )
        parser.write(body)
    except (MultipartParseError, ValueError) as error:
        reason = f"a body that is no multipart form: {first_line(error, 80)}"
        raise RequestError(400, reason, "one file for each image", "Let your client write the body") from error
    if not ended:
        raise RequestError(400, "a multipart form without its end", "all of it", "Send it again")
    return [bytes(data) for headers, data in parts if b"filename" in headers]
