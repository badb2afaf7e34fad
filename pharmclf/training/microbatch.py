"""Finds how many rows a device of this machine computes at once: in a child process, which may die of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from pharmclf.config import RunConfig, to_dict
from pharmclf.core.errors import ConfigError, RunError, describe_exit
from pharmclf.core.signals import StopRequested
from pharmclf.models.devices import memory_limit_mb
from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.training.phases import build_phases

MARGIN = 0.1
"""A try computes this share more rows than it stands for."""
CPU_SHARE = 0.8
"""Of the free memory of a machine without a GPU, what its workers may take together; images are read there too."""
_PROBES = (8, 4)  # parts of a share, tried first where memory is measured
_DOUBT = 0.1  # how much more than likely is tried all the same: a size below may be half as large
_BUDGET_SHARE = 0.95  # of a GPU's memory; the rest lies in pieces too small for use
_CAP_ROWS = 1024
_CAP_BATCHES = 4
_MEMORY = re.compile(
    r"out.of.memory|\boom\b|resource.?exhausted|bad_alloc|cannot allocate memory|failed to (re)?alloc|alloc_failed"
    r"|could not allocate|unable to allocate|memory allocation",
    re.IGNORECASE,
)


class MicrobatchSearchError(RunError):
    """What fits could not be found out, and not for want of memory."""


def even_microbatch_size(rows: int, most: int) -> int:
    """Rows of each piece where a share is divided into as few pieces of at most so many rows as it takes.

    Args:
        rows: of the share.
        most: rows of a piece; 0: no bound.
    """
    return -(-rows // -(-rows // most)) if 0 < most < rows else rows


def with_safety_margin(rows: int) -> int:
    """Rows that a try computes for its claim that so many fit."""
    return rows + -(-rows * round(MARGIN * 100) // 100)


def max_candidate_rows(share: int, batch_size: int, *, gpu: bool) -> int:
    """The most rows that are tried: a GPU's limit is worth knowing beyond its share, a processor's is not."""
    return max(share, min(_CAP_BATCHES * batch_size, _CAP_ROWS)) if gpu else share


def candidate_sizes(share: int, cap: int) -> list[int]:
    """Sizes of which one is the answer, rising: below the share those that divide it evenly, above it its quarters."""
    below = {-(-share // pieces) for pieces in range(1, share + 1)}
    above = set(range(share, cap + 1, -(-share // 4)))
    return sorted(below | above)


def extrapolate_max_rows(taken: Mapping[int, int], budget: int) -> int | None:
    """The most rows that should fit, by the memory that some have taken: the line through the two largest numbers.

    Args:
        taken: rows -> bytes at most, of tries that fitted.
        budget: bytes that there are.

    Returns:
        0 or more; None: fewer than two are known, or the larger number took no more.
    """
    if len(taken) < 2:
        return None
    fewer, more = sorted(taken)[-2:]
    if taken[more] <= taken[fewer]:
        return None
    tried = with_safety_margin(more)
    each = (taken[more] - taken[fewer]) / (tried - with_safety_margin(fewer))
    return max(0, math.floor((tried + (_BUDGET_SHARE * budget - taken[more]) / each) / (1 + MARGIN)))


def largest_that_fits_by_memory(
    share: int, cap: int, fits: Callable[[int], bool], likely: Callable[[], int | None]
) -> int:
    """As `largest_that_fits`, where tries that fit tell of the memory that they took: fewer tries, and fewer that fail.

    On a GPU one that fails takes half a minute: TensorFlow waits for memory, and another process begins.

    Args:
        share: as there.
        cap: as there.
        fits: as there.
        likely: the most rows that should fit by the tries so far; None: not known.
    """
    sizes = candidate_sizes(share, cap)
    low, high = -1, len(sizes)
    for part in _PROBES:
        place = bisect_left(sizes, -(-share // part))
        if low < place < high:
            low, high = (place, high) if fits(sizes[place]) else (low, place)
    trusted = True
    while high - low > 1:
        place = (low + high) // 2
        if trusted and (rows := likely()) is not None:
            place = min(high, bisect_right(sizes, rows)) - 1
            if place <= low and sizes[low + 1] > (1 + _DOUBT) * rows:
                break  # what is larger should not fit
            place = max(place, low + 1)
        if fits(sizes[place]):
            low = place
        else:
            high, trusted = place, False  # memory in pieces, say
    return sizes[low] if low >= 0 else 0


def largest_that_fits(share: int, cap: int, fits: Callable[[int], bool]) -> int:
    """The largest of `candidate_sizes` that fits, found by doubling or halving from the share on, then by bisection.

    Where the share itself does not fit, no number of rows that does fit makes fewer pieces of it.

    Args:
        share: rows of one worker, 1 or more; they are tried first.
        cap: the most rows that are tried.
        fits: tries a size; whatever is smaller than one that fits is taken to fit too.

    Returns:
        A size that was tried and fits; 0: not even one row does.
    """
    sizes = candidate_sizes(share, cap)
    low, high = -1, len(sizes)  # places of what fits, and of what does not
    place = bisect_left(sizes, share)
    while low < place < high:
        if fits(sizes[place]):
            low = place
            if high == len(sizes):
                place = max(low + 1, bisect_right(sizes, 2 * sizes[low]) - 1)
        else:
            high = place
            if low < 0:
                place = min(high - 1, bisect_left(sizes, -(-sizes[high] // 2)))
    while high - low > 1:
        place = (low + high) // 2
        low, high = (place, high) if fits(sizes[place]) else (low, place)
    return sizes[low] if low >= 0 else 0


def format_result(phase: str, rows: int, share: int, cap: int) -> str:
    """What was found for a phase, in a line for the console.

    Args:
        phase: its name.
        rows: the most that fit.
        share: rows of one worker.
        cap: the most that were tried.
    """
    if rows < share:
        piece = even_microbatch_size(share, rows)
        pieces = f"{-(-share // piece)} pieces of {piece}"
        return f"{phase}: of {share} images a device holds {rows} at once: computed in {pieces}, the same steps"
    more = ""
    if rows > share:
        more = f"; the device could take {rows}" + (" or more" if rows >= cap - cap // 8 else "")
    return f"{phase}: {share} images fit the device at once{more}"


def is_oom_message(text: str) -> bool:
    """Whether an error says that memory ran out."""
    return _MEMORY.search(text) is not None


def classify_exit(code: int, errors: str, *, bounded: bool = False) -> str:
    """Why a process that tried died: "" for want of memory; else what is known of it.

    Args:
        code: that it ended with; -N: signal N.
        errors: what it wrote to standard error.
        bounded: whether the system refused it memory beyond a bound, which few libraries survive.
    """
    killed = code == -signal.SIGKILL or (bounded and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS))
    if killed or is_oom_message(errors):  # the kernel kills whom it lacks the memory for
        return ""
    return describe_exit(code, errors)


def min_over_nodes(found: list[Mapping[str, int]]) -> dict[str, int]:
    """The most rows of each phase that fit on every node."""
    return {phase: min(rows[phase] for rows in found) for phase in found[0]}


_PROBE_TIMEOUT_S = 900.0  # for the answer to a try, with the start of the process
_POLL_S = 0.5
_TAIL_BYTES = 20_000  # of what a process has written to standard error


def find_max_microbatch(
    config: RunConfig, num_classes: int, share: int, workers_here: int, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """The most rows of each phase that a device of this machine computes at once.

    Tries compute a tenth more than they stand for (`MARGIN`), on images, whether the run will have kept
    activations or not: those take less.

    Args:
        config: of the run.
        num_classes: of its images.
        share: rows of one worker.
        workers_here: workers that share this machine's memory, where it has no GPU.
        stopped: asked every half second whether to give up.

    Returns:
        device: its name; cap: the most rows that were tried; rows: by name of the phase, 0 where not one fits.

    Raises:
        ConfigError: bad input that only the networks show.
        MicrobatchSearchError: an error that is none of memory.
        StopRequested: a stop was requested.
    """
    with _ProbeProcess(config, num_classes, _memory_bytes(workers_here), stopped) as child:
        device = child.device()
        cap = max_candidate_rows(share, config.batch_size, gpu=device["gpu"])
        found = {}
        for phase in build_phases(config):

            def fits(rows: int, name: str = phase.name) -> bool:
                return child.fits(name, rows, share)

            def likely(name: str = phase.name) -> int | None:
                return extrapolate_max_rows(child.taken[name], device["memory_bytes"])

            measured = device["gpu"] and device["memory_bytes"]
            found[phase.name] = (
                largest_that_fits_by_memory(share, cap, fits, likely)
                if measured
                else largest_that_fits(share, cap, fits)
            )
    return {"device": device["device"], "cap": cap, "rows": found}


def _memory_bytes(workers_here: int) -> int:
    """What a worker on processors may take beside TensorFlow and its networks; a GPU bounds itself."""
    if limit := memory_limit_mb():
        return limit << 20
    free = psutil.virtual_memory().available
    if group := ControlGroup().memory():
        free = min(free, group[1] - group[0])
    return int(max(0, free) * CPU_SHARE / workers_here)


class _ProbeProcess:
    """The process that tries; a new one after each that memory has killed or may have harmed."""

    def __init__(self, config: RunConfig, num_classes: int, memory_bytes: int, stopped: Callable[[], bool]) -> None:
        self._first = {"config": to_dict(config), "classes": num_classes, "memory_bytes": memory_bytes}
        self._stopped = stopped
        self._alive = self._bounded = False
        self._process: subprocess.Popen[bytes]
        self._talk: Any
        self.taken: defaultdict[str, dict[int, int]] = defaultdict(dict)
        """Of each phase, rows that fitted -> bytes that they took; without a GPU none is known."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> _ProbeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def device(self) -> dict[str, Any]:
        """Name of the device, whether it is a GPU, and then the bytes of it that are free.

        Raises:
            MicrobatchSearchError: not even the networks are there.
        """
        if (answer := self._start()) is None:
            raise MicrobatchSearchError("the memory of the device does not hold the networks alone")
        return answer

    def fits(self, phase: str, rows: int, share: int) -> bool:
        """Try so many rows."""
        if not self._alive and self._start() is None:
            return False
        answer = self._ask({"phase": phase, "rows": rows, "share": share})
        if answer is not None and answer["fits"]:
            if answer["taken_bytes"]:
                self.taken[phase][rows] = answer["taken_bytes"]
            return True
        self._end()
        return False

    def _start(self) -> dict[str, Any] | None:
        self._errors.seek(0)
        self._errors.truncate()
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pharmclf.training.microbatch_probe"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard is for the run, which ends this process
            )
        self._talk = ours.makefile("rwb", buffering=0)
        ours.close()  # when the file is
        self._alive = True
        answer = self._ask(self._first)
        if answer is None or "device" not in answer:
            self._end()
            return None
        self._bounded = not answer["gpu"]
        return answer

    def _ask(self, what: dict[str, Any]) -> dict[str, Any] | None:
        """The answer of the process; None: it died for want of memory."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self._talk.write(json.dumps(what).encode() + b"\n")
        deadline = time.monotonic() + _PROBE_TIMEOUT_S
        while not select.select([self._talk], [], [], _POLL_S)[0]:
            if self._stopped():
                raise StopRequested
            if time.monotonic() > deadline:
                raise MicrobatchSearchError(f"a try has not ended within {_PROBE_TIMEOUT_S:.0f} s. Give --microbatch N")
        try:
            line = self._talk.readline()
        except ConnectionError:
            line = b""
        if not line:
            if reason := classify_exit(self._process.wait(), self._stderr_tail(), bounded=self._bounded):
                raise MicrobatchSearchError(f"the process that tries what fits has died: {reason}")
            return None
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ConfigError(answer["error"]) if answer["input"] else MicrobatchSearchError(answer["error"])
        return answer

    def _stderr_tail(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return self._errors.read().decode(errors="replace")

    def _end(self) -> None:
        if self._alive:
            self._alive = False
            self._process.kill()
            self._process.wait()
            self._talk.close()
