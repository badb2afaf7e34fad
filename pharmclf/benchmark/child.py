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


class ChildDied(RunError):
    """The process ended before its work did; most often the system has killed it for its memory."""


def in_child(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in a process of its own, and wait for it.

    Args:
        work: a function of a module; it, its arguments and its result travel as pickles.

    Raises:
        ChildDied: the process was killed, or ended itself.
        Exception: what the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise ChildDied("its process died, killed perhaps for want of memory") from error
