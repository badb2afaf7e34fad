"""The cluster that the tests of a file submit jobs to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.ray_head import Head, running_head


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    """A head that asks for a token, with its job server on 127.0.0.1; one for the tests of a file."""
    with running_head(with_token=True) as head:
        yield head
