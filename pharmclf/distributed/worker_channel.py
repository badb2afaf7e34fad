"""Channel between the driver and its workers: events and progress to the driver, commands to the workers."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from pharmclf import storage
from pharmclf.core.events import Event
from pharmclf.core.timeouts import FINAL_STORAGE_S
from pharmclf.training.loop_progress import LoopPosition, LoopProgress
from pharmclf.training.train_state import TrainResult

_POLL_INTERVAL_S = 0.5
_DRIVER_TIMEOUT_S = 30.0  # without an answer the driver is gone, or this node is cut off


@dataclass(frozen=True)
class ChannelState:
    """What the driver polls."""

    events: list[Event]
    """Since the last poll."""
    position: LoopPosition | None
    """Of the loop; None: before its first batch."""
    silent_s: float
    """Seconds since the loop moved."""
    nodes: dict[int, tuple[str, str]]
    """Id and address of the node of each started worker, by rank."""


class DriverChannel:
    """Actor on the node of the driver that holds events until it polls them, and commands until workers ask."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._command = ""
        self._result: TrainResult | None = None
        self._nodes: dict[int, tuple[str, str]] = {}
        self._handles: dict[int, Any] = {}
        self._dumped: set[int] = set()
        self._beats = -1
        self._beat_at = time.monotonic()
        self._position: LoopPosition | None = None

    # ------------------------------------------------------------------ called by the workers

    def join(self, rank: int, node: tuple[str, str], handle: Any) -> None:
        """Register a worker, with the id and address of its node."""
        self._nodes[rank], self._handles[rank] = node, handle
        self._beat_at = time.monotonic()

    def post_event(self, event: Event) -> None:
        """Keep an event for the driver. (chief; of the hardware and of quarantined images, all ranks)"""
        self._events.append(event)

    def report(self, rank: int, beats: int, position: LoopPosition | None) -> str:
        """Take the progress of a worker -> its command: "", "stop" (with a checkpoint), or "dump" (its stack)."""
        if rank == 0:  # the other workers are at the same step, or wait for it
            if beats != self._beats:
                self._beats, self._beat_at = beats, time.monotonic()
            self._position = position
        return self._command

    def on_stack_dump(self, rank: int) -> None:
        """Note that a worker has written its stack."""
        self._dumped.add(rank)

    def finish(self, result: TrainResult) -> None:
        """Keep the result of the chief."""
        self._result = result

    # ------------------------------------------------------------------ called by the driver

    def poll(self) -> ChannelState:
        """The events since the last call, and the progress of the workers."""
        events, self._events = self._events, []
        return ChannelState(events, self._position, time.monotonic() - self._beat_at, self._nodes)

    def send_command(self, command: str) -> None:
        """Set the command that the workers get from now on."""
        self._command = command

    def get_stack_dumps(self) -> tuple[set[int], list[Any]]:
        """The ranks that have written their stacks, and the handles of all workers."""
        return self._dumped, list(self._handles.values())

    def result(self) -> TrainResult | None:
        """The result of the chief, None before there is one."""
        return self._result


class WorkerChannel:
    """Worker side of the channel; a thread reports progress and fetches commands, so that no step waits for it."""

    def __init__(self, channel: Any, rank: int, progress: LoopProgress, folder: str, number: int) -> None:
        """Register this worker, and start its heartbeat.

        Args:
            folder: of the run, for stack dumps.
            number: of the attempt, for the names of the stack dumps.
        """
        self._channel, self._rank, self._progress, self._folder, self._number = channel, rank, progress, folder, number
        self._stop = False
        self._ended = threading.Event()
        context = ray.get_runtime_context()
        node = context.get_node_id(), ray.util.get_node_ip_address()
        ray.get(channel.join.remote(rank, node, context.current_actor))
        threading.Thread(target=self._heartbeat_loop, name="worker-channel", daemon=True).start()

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`: passes the event on to the driver."""
        self._channel.post_event.remote(event)

    def should_stop(self) -> bool:
        """As `RunCallback.should_stop`. (chief only)"""
        return self._stop

    def end(self) -> None:
        """Stop the heartbeat; the driver may exit from now on."""
        self._ended.set()
        with contextlib.suppress(RayError):
            self._report()

    def _report(self) -> str:
        """Report progress -> the command of the driver."""
        reply = self._channel.report.remote(self._rank, self._progress.beats, self._progress.place)
        return str(ray.get(reply, timeout=_DRIVER_TIMEOUT_S))

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(_POLL_INTERVAL_S):
            try:
                command = self._report()
            except RayError:
                if not self._ended.is_set():  # an orphaned worker would keep its GPU, and might write
                    os._exit(1)
                return
            self._stop |= command == "stop"
            if command == "dump":
                self._dump()
                return

    def _dump(self) -> None:
        """Write the stack of each thread of this process."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = file.read()
        name = f"attempt{self._number}-rank{self._rank}.txt"
        with storage.timeout(FINAL_STORAGE_S):
            storage.write_bytes(storage.join(self._folder, "stacks", name), text)
        ray.get(self._channel.on_stack_dump.remote(self._rank))
