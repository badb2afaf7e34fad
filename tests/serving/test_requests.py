"""Bodies of requests: three forms with the same images, and each fault with its status."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import as_json, form

from pharmclf.serving.options import Limits
from pharmclf.serving.requests import RequestError, parse_images, read_body

LIMITS = Limits(images=3, bytes=1000)


@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_the_images_of_a_form_and_of_json_are_those_that_were_sent(contents: list[bytes]):
    """To the byte, in their order."""
    for body, kind in (form(contents), as_json(contents)):
        assert parse_images(kind, body, LIMITS) == contents
    assert parse_images("image/png", contents[0], LIMITS) == contents[:1]


def test_data_urls_and_wrapped_base64_are_read():
    text = base64.encodebytes(b"x" * 100).decode()
    assert "\n" in text.strip()
    body = json.dumps({"images": [text, "data:image/png;base64," + text]}).encode()
    assert parse_images("application/json; charset=utf-8", body, LIMITS) == [b"x" * 100] * 2


def test_fields_of_a_form_that_are_no_files_are_no_images():
    body, kind = form([b"a"])
    field = b'--B0undary\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    assert parse_images(kind, field + body, LIMITS) == [b"a"]


WHOLE, FORM = form([b"a", b"b"])
CASES = {
    "no type": ("", b"a", 415),
    "another type": ("text/plain", b"a", 415),
    "no JSON": ("application/json", b"{", 400),
    "bytes as JSON": ("application/json", b"\xff\xd8\xff", 400),
    "deep JSON": ("application/json", b"[" * 100_000, 400),
    "a list": ("application/json", b"[]", 400),
    "numbers": ("application/json", b'{"images": [1]}', 400),
    "no base64": ("application/json", b'{"images": ["*"]}', 400),
    "base64 of other letters": ("application/json", '{"images": ["ä"]}'.encode(), 400),
    "no images": ("application/json", b'{"images": []}', 400),
    "many in JSON": (*reversed(as_json([b"a"] * 4)), 413),
    "many in a form": (*reversed(form([b"a"] * 4)), 413),
    "no boundary": ("multipart/form-data", WHOLE, 400),
    "another boundary": ("multipart/form-data; boundary=other", WHOLE, 400),
    "a form that is cut": (FORM, WHOLE[:-20], 400),
    "an empty form": (FORM, b"", 400),
    "a form without files": (FORM, WHOLE.replace(b"filename", b"filesize"), 400),
}


@pytest.mark.parametrize("case", CASES)
def test_a_body_that_is_not_of_its_type_is_refused(case: str):
    """With what was received, what is expected and the remedy."""
    kind, body, status = CASES[case]
    with pytest.raises(RequestError) as refused:
        parse_images(kind, body, LIMITS)
    assert refused.value.status == status
    assert all(refused.value.content.values())


@given(st.binary(max_size=400), st.sampled_from(["application/json", FORM, "multipart/form-data; boundary=a"]))
def test_any_bytes_are_images_or_refused(body: bytes, kind: str):
    try:
        images, status = parse_images(kind, body, LIMITS), 200
    except RequestError as error:
        images, status = [], error.status
    assert bool(images) == (status == 200)
    assert status < 500


def test_a_body_is_read_up_to_its_limit_and_no_further():
    """The header says it at once; without one the piece that goes over it is the last that is read."""
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield b"x" * 100

    async def exact() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 100

    assert asyncio.run(read_body(exact(), None, LIMITS)) == b"x" * 1000
    for declared, most in (("1001", 0), (None, 11), ("7", 11), ("abc", 11)):
        pieces = 0
        with pytest.raises(RequestError) as refused:
            asyncio.run(read_body(endless(), declared, LIMITS))
        assert (refused.value.status, pieces) == (413, most)
