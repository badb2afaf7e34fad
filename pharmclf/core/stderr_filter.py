"""Filters the stderr output of native libraries."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Drop what is written to standard error below Python; errors still come out as exceptions.

    TensorFlow says there what it is built for and that it found no GPU, Ray that actors cannot be restarted; no setting
    of theirs silences it without hiding more.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
