"""Filters the stderr output of native libraries."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_depth = 0
_original = -1  # copy of standard error while it is dropped


def is_stderr_suppressed() -> bool:
    """Whether what is written to standard error now is dropped."""
    return _depth > 0


@contextlib.contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Drop what native code writes to standard error inside the block; exceptions are raised as usual.

    TensorFlow writes its build options and missing GPUs there, Ray that actors cannot be restarted. No setting of
    theirs hides only these. Blocks of several threads may overlap: the end of the last one restores standard error.
    """
    global _depth, _original
    with _lock:
        if _depth == 0:
            sys.stderr.flush()
            _original = os.dup(2)
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), 2)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                os.dup2(_original, 2)
                os.close(_original)
