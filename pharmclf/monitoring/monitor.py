"""The driver's side: takes what the nodes of a run tell, says what is wrong, and writes it all into the run's folder.

One process writes, the one that holds the lease of the folder; nodes send their rows to it with their other events. No
event waits for the storage, and none fails by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pharmclf import storage
from pharmclf.core.background import BackgroundTask
from pharmclf.core.events import (
    EpochEnd,
    Event,
    FeatureCacheReady,
    FinalEvaluationStarted,
    Note,
    StepEnd,
    Waiting,
    WorkerFailure,
    WorkersStarted,
)
from pharmclf.core.timeouts import CLOSE_WRITER_S, OPTIONAL_STORAGE_S
from pharmclf.monitoring.alerts import AlertTracker, HardwareAlert
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.events import HardwareAlertsChanged, LoopSampled, NodeSampled
from pharmclf.monitoring.sample_log import SampleLog, read_alerts, read_samples, write_alerts, write_samples
from pharmclf.monitoring.sampler import LogOnce, NodeSampler, Sampler
from pharmclf.monitoring.samples import LoopReading, NodeSample, merge_loops
from pharmclf.monitoring.summary import summarise, summary_line

_POLL_INTERVAL_S = 2.0
_WRITE_INTERVAL_S, _MAX_WRITE_INTERVAL_S = 60.0, 600.0
_WRITE_SHARE = 0.02  # of the time watched so far: a file of days is written anew more seldom
_log = logging.getLogger(__name__)


class HardwareMonitor:
    """Watches this node, and takes the rows of the others, from its beginning to `close`."""

    def __init__(
        self,
        folder: str,
        *,
        node: str,
        every_s: float,
        tell: Callable[[Event], None],
        lost: Callable[[], object] = lambda: False,
        setting: RunContext | None = None,
        machine: Callable[[], NodeSampler] | None = None,
    ) -> None:
        """Begin.

        Args:
            folder: of the run.
            node: address of this node.
            every_s: seconds between readings; 0: nothing is read or written.
            tell: handles `Note` and `HardwareAlertsChanged`; called from any thread.
            lost: whether the lease of the folder has been lost; then nothing is written any more.
            setting: what is known of the run.
            machine: opens the reader of this node; of its own GPUs and disks if not given.
        """
        self._node, self._send_event, self._watch = node, tell, AlertTracker(setting or RunContext())
        self._errors = LogOnce(_log)
        self._files = _Files(folder, lost, self._errors)
        self._loops: dict[str, dict[int, LoopReading]] = {}
        self._gpus: dict[str, dict[int, int]] = {}
        self._phase, self._said_no_gpus = "", False
        self._reported: list[HardwareAlert] = []
        self._lock, self._flushed = threading.Lock(), threading.Event()
        self._flushed.set()
        self._sampler: Sampler | None = None
        self._writer: BackgroundTask | None = None
        if every_s > 0:
            local = [] if storage.is_remote(folder) else [storage.absolute(folder)]
            opened = machine or (lambda: NodeSampler(node, [tempfile.gettempdir(), *local]))
            self._sampler = Sampler(self.on_event, node=node, every_s=every_s, machine=opened)
            self._writer = BackgroundTask("hardware-log", self._write, every_s=_POLL_INTERVAL_S, attempts_at_close=1)

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`; errors are logged, none is raised."""
        with self._errors.log_errors_once("what a node tells cannot be judged"):
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case NodeSampled():
                self._receive(event.sample)
            case LoopSampled():
                self._receive_loop(event.node, event.reading)
            case StepEnd():
                self._phase = event.phase
            case EpochEnd():
                self._phase = event.record.phase
            case FeatureCacheReady():
                with self._lock:
                    phases = frozenset(event.phases)
                    self._watch.context = dataclasses.replace(self._watch.context, cached_phases=phases)
            case WorkersStarted():
                self._mark_idle("", event.nodes)
            case WorkerFailure() | Waiting():
                self._mark_idle("", None)
            case FinalEvaluationStarted():
                self._mark_idle("test", None)

    def line(self) -> str:
        """What the hardware has done so far, in one line for the console; "" where nothing is known."""
        with self._lock:
            return summary_line(summarise(self._files.rows()))

    def flush(self) -> None:
        """Write what is not written yet, for those who read it now; the storage is waited for some seconds."""
        if self._writer:
            self._flushed.clear()
            self._writer.notify()
            self._flushed.wait(CLOSE_WRITER_S)

    def close(self) -> None:
        """End, and write what is not written yet; a storage that does not answer is waited for some seconds."""
        if self._sampler and self._writer:
            self._sampler.close()
            with self._lock:
                self._watch.reset(time.time())
                self._files.warnings = self._watch.passed
            self._report_ongoing_alerts([])
            self._flushed.clear()
            self._writer.close(CLOSE_WRITER_S)

    def _receive_loop(self, node: str, reading: LoopReading) -> None:
        with self._lock:
            loops = self._loops.setdefault(node, {})
            before = loops.get(reading.rank)
            loops[reading.rank] = merge_loops(before, reading) or reading
            if reading.gpu is not None:
                self._gpus.setdefault(node, {})[reading.rank] = reading.gpu

    def _receive(self, row: NodeSample) -> None:
        """Complete a row by what its workers have told meanwhile, judge and keep it."""
        notes: list[str] = []
        with self._lock:
            loops = self._loops.pop(row.node, {})
            row = dataclasses.replace(
                row,
                phase=self._phase,
                loop=max(loops.values(), key=lambda loop: loop.wait_share, default=None),
                ours=tuple(sorted({*self._gpus.get(row.node, {}).values()})),
            )
            if row.no_gpus and not self._said_no_gpus:
                self._said_no_gpus = True
                notes.append(f"hardware: no GPU on {row.node} ({row.no_gpus}); the rest of the machine is watched")
            notes += [found.text for found in self._watch.update(row)]
            self._files.add(row)
            lasting = self._watch.active
            self._files.warnings = [*self._watch.passed, *lasting]
        for text in notes:
            self._send_event(Note(text=text))
        self._report_ongoing_alerts(lasting)

    def _report_ongoing_alerts(self, lasting: list[HardwareAlert]) -> None:
        if lasting != self._reported:
            self._reported = lasting
            self._send_event(HardwareAlertsChanged(alerts=tuple(lasting)))

    def _mark_idle(self, phase: str, nodes: Collection[str] | None) -> None:
        """No steps are taken now; with `nodes`, workers have started there and nowhere else."""
        with self._lock:
            self._phase = phase
            self._loops.clear()
            self._gpus.clear()
            if nodes is not None or phase:
                self._watch.reset(time.time(), but={self._node, *(nodes or ())})

    def _write(self) -> None:
        flushing = not self._flushed.is_set()
        with self._lock:
            due = self._files.due(flushing)
        for node in due:
            self._files.write(node, self._lock)
        self._files.write_alerts(self._lock)
        if flushing:
            self._flushed.set()


class _Files:
    """What is kept of a run in its folder; locked by the monitor, but for the time that the storage takes."""

    def __init__(self, folder: str, lost: Callable[[], object], errors: LogOnce) -> None:
        self.warnings: list[HardwareAlert] = []
        """Those of this process, the oldest first."""
        self._folder, self._lost, self._errors = folder, lost, errors
        self._logs: dict[str, SampleLog] = {}
        self._read: set[str] = set()  # nodes whose rows of earlier processes have been read
        self._written_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._earlier: list[HardwareAlert] | None = None  # warnings of earlier processes; None: not read yet
        self._written: list[Any] = []

    def rows(self) -> list[NodeSample]:
        """All rows, by node."""
        return [row for log in self._logs.values() for row in log.rows]

    def add(self, row: NodeSample) -> None:
        """Add a row of a node."""
        self._logs.setdefault(row.node, SampleLog()).append(row)

    def due(self, every: bool) -> list[str]:
        """The nodes whose file is to be written now; with `every`, all of them."""
        now = time.monotonic()
        return [
            node
            for node, log in self._logs.items()
            if every
            or now - self._written_at.get(node, self._began)
            >= min(_MAX_WRITE_INTERVAL_S, max(_WRITE_INTERVAL_S, _WRITE_SHARE * log.seconds))
        ]

    def write(self, node: str, lock: threading.Lock) -> None:
        """Write the rows of a node, behind those of earlier processes."""
        if self._lost():
            return
        self._written_at[node] = time.monotonic()
        with self._tolerate_storage_errors():
            if node not in self._read:  # or what stands there would be lost
                earlier = read_samples(self._folder, node)
                with lock:
                    self._logs[node] = SampleLog([*earlier, *self._logs[node].rows])
                self._read.add(node)
            with lock:
                rows = self._logs[node].rows
            write_samples(self._folder, node, rows)

    def write_alerts(self, lock: threading.Lock) -> None:
        """Write the warnings of all processes, if there are others, or worse ones, than were written last."""
        with lock:
            warnings = list(self.warnings)
        known = [(one.node, one.rule, one.device, one.level, one.at_s, one.until_s) for one in warnings]
        if known == self._written or self._lost():
            return
        with self._tolerate_storage_errors():
            if self._earlier is None:
                found = read_alerts(self._folder)
                # what lasted when an earlier process ended has ended with it, as far as is known
                self._earlier = [dataclasses.replace(one, until_s=one.until_s or one.at_s) for one in found]
            write_alerts(self._folder, [*self._earlier, *warnings])
            self._written = known

    @contextlib.contextmanager
    def _tolerate_storage_errors(self) -> Iterator[None]:
        with (
            self._errors.log_errors_once("the readings of the hardware cannot be written"),
            storage.timeout(OPTIONAL_STORAGE_S),
        ):
            yield
