"""Filters the stderr output of native libraries."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_depth = 0


def is_stderr_suppressed() -> bool:
    """Whether what is written to standard error now is dropped."""
    return _depth > 0


@contextlib.contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Drop what native code writes to standard error inside the block; exceptions are raised as usual.

    TensorFlow writes its build options and missing GPUs there, Ray that actors cannot be restarted. No setting of
    theirs hides only these.
    """
    global _depth
    sys.stderr.flush()
    original = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
