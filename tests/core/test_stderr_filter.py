"""Output of native libraries is dropped in a block, and in no other place."""

from __future__ import annotations

import os

from pharmclf.core.stderr_filter import is_stderr_suppressed, suppress_native_stderr


def test_overlapping_blocks_restore_stderr_in_any_order():
    """As threads leave them: the one that came first may leave first."""
    before = os.fstat(2)
    first, second = suppress_native_stderr(), suppress_native_stderr()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_stderr_suppressed()
    assert os.path.samestat(os.fstat(2), os.stat(os.devnull))
    second.__exit__(None, None, None)
    assert not is_stderr_suppressed()
    assert os.path.samestat(os.fstat(2), before)
