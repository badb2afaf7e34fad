"""The driver's part: collects the samples of all nodes, reports alerts, and writes both to the run's folder.

Only the process that holds the lease of the folder writes. No event waits for the storage, and none fails by it.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from pharmclf import storage
from pharmclf.core import events
from pharmclf.core.background import BackgroundTask
from pharmclf.core.errors import format_error
from pharmclf.core.events import Event, Note
from pharmclf.core.timeouts import CLOSE_WRITER_S, OPTIONAL_STORAGE_S
from pharmclf.monitoring.alerts import AlertTracker, HardwareAlert
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.events import HardwareAlertsChanged, LoopSampled, NodeSampled
from pharmclf.monitoring.sample_log import SampleLog, read_alerts, read_samples, write_alerts, write_samples
from pharmclf.monitoring.sampler import SHUTDOWN_TIMEOUT_S, NodeSampler, Send, start_sampling
from pharmclf.monitoring.samples import LoopReading, NodeSample, merge_loops
from pharmclf.monitoring.summary import summarise, summary_line

_POLL_INTERVAL_S = 2.0
_WRITE_INTERVAL_S, _MAX_WRITE_INTERVAL_S = 60.0, 600.0
_WRITE_SHARE = 0.02  # of the time sampled so far: each write is of the complete file
_log = logging.getLogger(__name__)


class HardwareMonitor:
    """Samples this node, and receives the samples of the others, until `close`."""

    def __init__(
        self,
        folder: str,
        *,
        node: str,
        every_s: float,
        send: Send,
        is_lost: Callable[[], object] = lambda: False,
        context: RunContext | None = None,
        open_node: Callable[[], NodeSampler] | None = None,
    ) -> None:
        """Start to sample.

        Args:
            node: address of this node.
            every_s: seconds between samples; 0: nothing is sampled or written.
            send: receives `Note` and `HardwareAlertsChanged`; called from any thread.
            is_lost: whether the lease of the folder has been lost; then nothing is written any more.
            open_node: opens the sampler of this node; None: one of its GPUs and of the run's local disks.
        """
        self._node, self._send, self._tracker = node, send, AlertTracker(context or RunContext())
        self._files = _RunFiles(folder, is_lost)
        self._loops: dict[str, dict[int, LoopReading]] = {}  # by node and rank, since the last sample of the node
        self._gpus: dict[str, dict[int, int]] = {}  # by node and rank
        self._phase, self._has_reported_no_gpus, self._has_failed = "", False, False
        self._reported: list[HardwareAlert] = []
        self._lock, self._flushed = threading.Lock(), threading.Event()
        self._flushed.set()
        self._sampler: BackgroundTask | None = None
        self._writer: BackgroundTask | None = None
        if every_s > 0:
            folders = [tempfile.gettempdir(), *([] if storage.is_remote(folder) else [storage.absolute(folder)])]
            open_node = open_node or partial(NodeSampler, node, folders)
            self._sampler = start_sampling(self.on_event, node=node, every_s=every_s, open_node=open_node)
            self._writer = BackgroundTask(
                "hardware-log",
                self._write,
                every_s=_POLL_INTERVAL_S,
                attempts_at_close=1,
                failure="the samples of the hardware cannot be written",
            )

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`; raises nothing."""
        try:
            self._handle(event)
        except Exception as error:
            if not self._has_failed:
                _log.warning("a sample of the hardware cannot be evaluated and is skipped: %s", format_error(error))
            self._has_failed = True

    def _handle(self, event: Event) -> None:
        match event:
            case NodeSampled():
                self._add_sample(event.sample)
            case LoopSampled():
                self._add_reading(event.node, event.reading)
            case events.StepEnd():
                self._phase = event.phase
            case events.EpochEnd():
                self._phase = event.record.phase
            case events.FeatureCacheReady():
                with self._lock:
                    phases = frozenset(event.phases)
                    self._tracker.context = dataclasses.replace(self._tracker.context, cached_phases=phases)
            case events.WorkersStarted():
                self._mark_idle("", event.nodes)
            case events.WorkerFailure() | events.Waiting():
                self._mark_idle("", None)
            case events.FinalEvaluationStarted():
                self._mark_idle("test", ())

    def line(self) -> str:
        """Summary of the hardware so far, in one line for the console; "" where nothing is known."""
        return summary_line(summarise(self._files.samples()))

    def flush(self) -> None:
        """Write all that is not written yet; wait some seconds for the storage."""
        if self._writer:
            self._flushed.clear()
            self._writer.notify()
            self._flushed.wait(CLOSE_WRITER_S)

    def close(self) -> None:
        """Stop, and write all that is not written yet; wait some seconds for the storage."""
        if self._sampler and self._writer:
            self._sampler.close(SHUTDOWN_TIMEOUT_S)
            with self._lock:
                self._tracker.reset(time.time())
                self._files.set_alerts(self._tracker.passed)
            self._report_alerts([])
            self._flushed.clear()
            self._writer.close(CLOSE_WRITER_S)

    def _add_reading(self, node: str, reading: LoopReading) -> None:
        with self._lock:
            loops = self._loops.setdefault(node, {})
            loops[reading.rank] = merge_loops(loops.get(reading.rank), reading) or reading
            if reading.gpu is not None:
                self._gpus.setdefault(node, {})[reading.rank] = reading.gpu

    def _add_sample(self, sample: NodeSample) -> None:
        """Complete a sample by the readings of its workers, evaluate and store it."""
        notes: list[str] = []
        with self._lock:
            loops = self._loops.pop(sample.node, {})
            sample = dataclasses.replace(
                sample,
                phase=self._phase,
                loop=max(loops.values(), key=lambda loop: loop.wait_share, default=None),
                ours=tuple(sorted({*self._gpus.get(sample.node, {}).values()})),
            )
            if sample.no_gpus and not self._has_reported_no_gpus:
                self._has_reported_no_gpus = True
                notes.append(f"hardware: no GPU on {sample.node} ({sample.no_gpus}); the rest of the node is monitored")
            notes += [alert.text for alert in self._tracker.update(sample)]
            active = self._tracker.active
            self._files.add(sample)
            self._files.set_alerts([*self._tracker.passed, *active])
        for text in notes:
            self._send(Note(text=text))
        self._report_alerts(active)

    def _report_alerts(self, active: list[HardwareAlert]) -> None:
        if active != self._reported:
            self._reported = active
            self._send(HardwareAlertsChanged(alerts=tuple(active)))

    def _mark_idle(self, phase: str, nodes: Collection[str] | None) -> None:
        """No steps are taken now; with `nodes`, workers run on these only, and the others are not sampled any more."""
        with self._lock:
            self._phase = phase
            self._loops.clear()
            self._gpus.clear()
            if nodes is not None:
                self._tracker.reset(time.time(), but={self._node, *nodes})

    def _write(self) -> None:
        is_flush = not self._flushed.is_set()
        try:
            self._files.write(all_nodes=is_flush)
        finally:
            if is_flush:
                self._flushed.set()


class _RunFiles:
    """Samples and alerts of a run, in memory and in its folder; from any thread."""

    def __init__(self, folder: str, is_lost: Callable[[], object]) -> None:
        self._folder, self._is_lost, self._lock = folder, is_lost, threading.Lock()
        self._logs: dict[str, SampleLog] = {}
        self._restored: set[str] = set()  # nodes whose samples of earlier processes have been read
        self._written_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._alerts: Sequence[HardwareAlert] = ()
        self._earlier: list[HardwareAlert] | None = None  # alerts of earlier processes; None: not read yet
        self._written_alerts: list[HardwareAlert] = []

    def samples(self) -> list[NodeSample]:
        with self._lock:
            return [sample for log in self._logs.values() for sample in log.samples]

    def add(self, sample: NodeSample) -> None:
        with self._lock:
            self._logs.setdefault(sample.node, SampleLog()).append(sample)

    def set_alerts(self, alerts: Sequence[HardwareAlert]) -> None:
        """Replace the alerts of this process, the oldest first."""
        with self._lock:
            self._alerts = alerts

    def write(self, *, all_nodes: bool = False) -> None:
        """Write the samples of the nodes that are due, or of all, and the alerts; then raise the first error."""
        if self._is_lost():
            return
        calls: list[Callable[[], None]] = [partial(self._write_samples, node) for node in self._due_nodes(all_nodes)]
        errors = []
        for call in [*calls, self._write_alerts]:
            try:
                with storage.timeout(OPTIONAL_STORAGE_S):
                    call()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _due_nodes(self, all_nodes: bool) -> list[str]:
        now = time.monotonic()
        with self._lock:
            return [
                node
                for node, log in self._logs.items()
                if all_nodes
                or now - self._written_at.get(node, self._began)
                >= min(_MAX_WRITE_INTERVAL_S, max(_WRITE_INTERVAL_S, _WRITE_SHARE * log.seconds))
            ]

    def _write_samples(self, node: str) -> None:
        """Write the samples of a node, after those of earlier processes."""
        self._written_at[node] = time.monotonic()
        if node not in self._restored:  # otherwise the samples of earlier processes would be lost
            earlier = read_samples(self._folder, node)
            with self._lock:
                self._logs[node] = SampleLog([*earlier, *self._logs[node].samples])
            self._restored.add(node)
        with self._lock:
            samples = self._logs[node].samples
        write_samples(self._folder, node, samples)

    def _write_alerts(self) -> None:
        """Write the alerts of all processes, unless only values and texts have changed since they were written."""
        with self._lock:
            alerts = [*self._alerts]
        identities = [dataclasses.replace(alert, value=0.0, limit=0.0, text="") for alert in alerts]
        if identities == self._written_alerts:
            return
        if self._earlier is None:
            # an alert that was active when an earlier process ended has ended with it, as far as is known
            earlier = read_alerts(self._folder)
            self._earlier = [dataclasses.replace(alert, until_s=alert.until_s or alert.at_s) for alert in earlier]
        write_alerts(self._folder, [*self._earlier, *alerts])
        self._written_alerts = identities
