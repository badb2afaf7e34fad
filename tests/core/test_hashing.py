"""Fingerprints are the same everywhere and for ever, and differ where the content does."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.core import hashing
from pharmclf.core.hashing import fingerprint, sha256_bytes, sha256_file

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_a_known_value_has_its_known_fingerprint():
    """Pinned: a change here orphans every cache, run and checkpoint that users have."""
    value = {"size": 224, "rates": [1e-4, 0.5], "name": "药 ü", "none": None, "yes": True}
    text = '{"name":"\\u836f \\u00fc","none":null,"rates":[0.0001,0.5],"size":224,"yes":true}'
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()[:32] == "2aab1a0a8a0c16d68cb09bd244d2d336"


@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any):
    """A dict filled in another order is the same value; a list in another order is not."""
    keys = list(value)
    random.shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_other_content_gives_another_fingerprint():
    """Values that look alike are told apart."""
    values = [0, 0.0, "0", None, "", False, [], {}, [[]], [0], {"a": 0}, {"a": None}, {"b": 0}, 1, True, "1"]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(number: float):
    """NaN equals nothing, itself included, so nothing may be known by it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"deep": [number]})


@pytest.mark.parametrize("value", [{1, 2}, b"x", Path("x"), np.arange(2), np.int64(1)])
def test_a_value_of_another_type_is_refused(value: Any):
    """Nothing is hashed by its address or its printed form."""
    with pytest.raises(TypeError):
        fingerprint([value])


def test_a_file_and_its_bytes_have_one_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Reading in pieces gives the hash of the whole, for files of any number of pieces."""
    monkeypatch.setattr(hashing, "_CHUNK_BYTES", 4)
    for content in (b"", b"abc", b"abcd", b"abcdefghi"):
        (tmp_path / "file").write_bytes(content)
        assert sha256_file(tmp_path / "file") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()
