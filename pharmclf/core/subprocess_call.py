"""Work in a fresh process, so that what it imports, holds and starts is its own, and its memory is true."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from pharmclf.core.errors import RunError

P = ParamSpec("P")
T = TypeVar("T")


class SubprocessDiedError(RunError):
    """The process ended before its work did; most often the system has killed it for its memory."""


def run_in_subprocess(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in a process of its own, and wait for it.

    Args:
        work: a function of a module; it, its arguments and its result travel as pickles.

    Raises:
        SubprocessDiedError: the process was killed, or ended itself.
        Exception: what the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise SubprocessDiedError("its process died, killed perhaps for want of memory") from error
