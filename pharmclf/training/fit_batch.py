"""Finds how many rows a device of this machine computes at once: in a child process, which may die of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psutil

from pharmclf.config import RunConfig, to_dict
from pharmclf.core.errors import ConfigError
from pharmclf.core.signals import StopRequested
from pharmclf.models.devices import memory_limit_mb
from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.training.fitting import (
    CPU_SHARE,
    MicrobatchSearchError,
    classify_exit,
    extrapolate_max_rows,
    largest_that_fits,
    largest_that_fits_by_memory,
    max_candidate_rows,
)
from pharmclf.training.phases import build_phases

_PROBE_TIMEOUT_S = 900.0  # for the answer to a try, with the start of the process
_POLL_S = 0.5
_TAIL_BYTES = 20_000  # of what a process has written to standard error


def find_max_microbatch(
    config: RunConfig, num_classes: int, share: int, workers_here: int, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """The most rows of each phase that a device of this machine computes at once.

    Tries compute a tenth more than they stand for (`fitting.MARGIN`), on images, whether the run will have kept
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
                [sys.executable, "-m", "pharmclf.training.fit_steps"],
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
