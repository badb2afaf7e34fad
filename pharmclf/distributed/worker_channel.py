"""Between the driver and the workers of an attempt: events and places one way, orders the other."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from pharmclf import storage
from pharmclf.core.events import Event
from pharmclf.core.timeouts import FINAL_STORAGE_S
from pharmclf.training.loop_progress import LoopPosition, LoopProgress

_POLL_INTERVAL_S = 0.5
_DRIVER_TIMEOUT_S = 30.0  # without an answer of the relay the driver is gone, or this node is cut off


class DriverChannel:
    """An actor beside the driver: events one way, orders the other."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._order = ""
        self._result: dict[str, Any] | None = None
        self._nodes: dict[int, tuple[str, str]] = {}
        self._handles: dict[int, Any] = {}
        self._dumped: set[int] = set()
        self._beats = -1
        self._beat_at = time.monotonic()
        self._place: LoopPosition | None = None

    # ------------------------------------------------------------------ called by the workers

    def join(self, rank: int, node: tuple[str, str], handle: Any) -> None:
        """A worker has started, on a node of this id and address."""
        self._nodes[rank], self._handles[rank] = node, handle
        self._beat_at = time.monotonic()

    def post_event(self, event: Event) -> None:
        """Keep an event for the driver. (chief; of the hardware and of quarantined images, all ranks)"""
        self._events.append(event)

    def report(self, rank: int, beats: int, place: LoopPosition | None) -> str:
        """Where a worker's loop is -> what it shall do: "", "stop" (with a checkpoint), or "dump" (its stack)."""
        if rank == 0:  # all are where the chief is, or wait for it
            if beats != self._beats:
                self._beats, self._beat_at = beats, time.monotonic()
            self._place = place
        return self._order

    def on_stack_dump(self, rank: int) -> None:
        """A worker has written its stack."""
        self._dumped.add(rank)

    def finish(self, result: dict[str, Any]) -> None:
        """Keep the result of the chief."""
        self._result = result

    # ------------------------------------------------------------------ called by the driver

    def poll_events(self) -> tuple[list[Event], dict[str, Any]]:
        """The events since the last call; and the place of the loop, seconds since it moved, and the workers' nodes."""
        events, self._events = self._events, []
        silent = time.monotonic() - self._beat_at
        return events, {"place": self._place, "silent_s": silent, "nodes": self._nodes}

    def send_command(self, what: str) -> None:
        """What the workers shall do from now on."""
        self._order = what

    def get_stack_dumps(self) -> tuple[set[int], list[Any]]:
        """The ranks that have written their stacks, and the handles of all workers."""
        return self._dumped, list(self._handles.values())

    def result(self) -> dict[str, Any] | None:
        """The result of the chief, None before there is one."""
        return self._result


class WorkerChannel:
    """A worker's side of the relay, in a thread of its own: a step never waits for it, and a hung step not for ever."""

    def __init__(self, relay: Any, rank: int, pulse: LoopProgress, folder: str, number: int) -> None:
        """Join the relay, and report to it from now on.

        Args:
            relay: handle of the actor.
            rank: of this worker.
            pulse: of its loop.
            folder: of the run, for stack dumps.
            number: of the attempt, which names them.
        """
        self._relay, self._rank, self._progress, self._folder, self._number = relay, rank, pulse, folder, number
        self._stop = False
        self._ended = threading.Event()
        context = ray.get_runtime_context()
        node = context.get_node_id(), ray.util.get_node_ip_address()
        ray.get(relay.join.remote(rank, node, context.current_actor))
        threading.Thread(target=self._heartbeat_loop, name="lifeline", daemon=True).start()

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`: passes the event on to the driver."""
        self._relay.post_event.remote(event)

    def should_stop(self) -> bool:
        """Whether the run shall write a checkpoint and end. (chief only)"""
        return self._stop

    def end(self) -> None:
        """The loop has ended here, and whatever becomes of the driver is no matter now."""
        self._ended.set()
        with contextlib.suppress(RayError):
            ray.get(
                self._relay.report.remote(self._rank, self._progress.beats, self._progress.place),
                timeout=_DRIVER_TIMEOUT_S,
            )

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(_POLL_INTERVAL_S):
            try:
                told = self._relay.report.remote(self._rank, self._progress.beats, self._progress.place)
                order = ray.get(told, timeout=_DRIVER_TIMEOUT_S)
            except RayError:
                if not self._ended.is_set():  # a worker that nobody watches would hold its GPU, and might go on writing
                    os._exit(1)
                return
            self._stop |= order == "stop"
            if order == "dump":
                self._dump()
                return

    def _dump(self) -> None:
        """Write where each thread of this process stands."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = file.read()
        name = f"attempt{self._number}-rank{self._rank}.txt"
        with storage.timeout(FINAL_STORAGE_S):
            storage.write_bytes(storage.join(self._folder, "stacks", name), text)
        ray.get(self._relay.on_stack_dump.remote(self._rank))
