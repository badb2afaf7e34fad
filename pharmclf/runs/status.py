"""The status of a run, built from its events; pure except for the clock."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pharmclf.config import RunConfig
from pharmclf.core import events
from pharmclf.core.errors import first_line
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.events import HardwareAlertsChanged
from pharmclf.schema_version import SCHEMA_VERSION, check_schema_version
from pharmclf.training.phases import build_phases

STATUS_FILE = "status.json"
TEST_PHASE = "test"
"""Value of `Status.phase` during the final evaluation."""
MAX_REASON = 300
"""Maximum characters of a reason or a message in a status."""
_MAX_FAILURES = 5  # kept with their reasons


class RunState(StrEnum):
    """State of a run in its status file."""

    STARTING = "starting"
    WAITING = "waiting for nodes"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    COMPLETE = "complete"


ACTIVE_STATES = (RunState.STARTING, RunState.WAITING, RunState.RUNNING)


def utc_timestamp(seconds: float | None = None) -> str:
    """ISO 8601 in UTC of a time in seconds since 1970; None: now."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A training step; epoch and step from 1."""

    phase: str
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """A failure that a run has survived, or that ended it."""

    at: str
    kind: str
    """crash, node, hang or driver."""
    reason: str
    """One line."""
    place: Place | None
    """Where training was last seen; None: before its first step."""


@dataclass(kw_only=True)
class Status:
    """Content of status.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    state: RunState = RunState.STARTING
    reason: str = ""
    """Why it failed, or what it waits for; one line."""
    says: str = ""
    """Last console line that is no progress of a step or an epoch."""
    phase: str = ""
    """phase1, phase2 or `TEST_PHASE`; "" before the first step."""
    epoch: int = 0
    """Of the phase, from 1."""
    epochs: int = 0
    """Maximum of the phase."""
    step: int = 0
    """Training steps of the epoch that have been started."""
    steps: int = 0
    """Training steps of an epoch."""
    progress: float = 0.0
    """Share of the maximum number of epochs, 0..1."""
    eta_s: float | None = None
    """Seconds from `updated_at` to the end of the run if no phase stops early; None: unknown."""
    eta_whole: bool = False
    """Whether all parts of `eta_s` are measured. If not, later phases are assumed to be as fast as this one, and the
    test is left out where its speed is unknown."""
    images_per_second: float | None = None
    loss: float | None = None
    """Mean training loss of the epoch so far."""
    accuracy: float | None = None
    """Training accuracy of the epoch so far, 0..1."""
    val_accuracy: float | None = None
    """Of the last complete epoch, 0..1."""
    best_val_accuracy: float | None = None
    """Best one that this driver has seen, 0..1."""
    checkpoint: str = ""
    """Name of the newest one."""
    checkpoint_at: str = ""
    workers: int | None = None
    """0: training is in the driver's process; None: not started yet."""
    nodes: list[str] = field(default_factory=list)
    """Addresses of the workers' nodes."""
    attempt: int = 1
    """Number of times that this driver has started the workers."""
    failures: int = 0
    """Crashes, lost nodes, hung steps and dead drivers since the run began."""
    failures_here: int = 0
    """Failures under this driver, which count against `failures_allowed`."""
    failures_allowed: int = 0
    hardware_warnings: list[HardwareAlert] = field(default_factory=list)
    """Active alerts, alarms first."""
    last_failures: list[FailureRecord] = field(default_factory=list)
    """Newest last."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started_at: str = field(default_factory=utc_timestamp)
    """Of this driver."""
    updated_at: str = field(default_factory=utc_timestamp)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        values = dataclasses.asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def parse_status(content: object) -> Status | None:
    """Inverse of `Status.to_dict`; None for anything else, such as a status of another version."""
    names = {item.name for item in dataclasses.fields(Status)}
    try:
        check_schema_version(content, STATUS_FILE)
        if not isinstance(content, Mapping) or not names <= set(content):
            return None
        values = {name: content[name] for name in names}
        values["state"] = RunState(values["state"])
        values["hardware_warnings"] = [HardwareAlert.from_dict(alert) for alert in values["hardware_warnings"]]
        values["last_failures"] = [
            FailureRecord(**failure | {"place": Place(**failure["place"]) if failure["place"] else None})
            for failure in values["last_failures"]
        ]
        return Status(**values)
    except (LookupError, TypeError, ValueError):
        return None


class StatusBuilder:
    """Builds the status of a run from its events."""

    def __init__(self, config: RunConfig, sizes: Mapping[str, int], previous: Status | None = None) -> None:
        """Start, given the images of each split and the last status of the run's previous driver."""
        self.status = Status(name=config.run_name, failures_allowed=config.max_failures)
        self._batch_size, self._sizes = config.batch_size, sizes
        self._phases = {phase.name: phase for phase in build_phases(config)}
        self._cached_phases: tuple[str, ...] = ()
        self._validation_s: dict[str, float] = {}  # of an epoch, by phase
        if config.worker_range == (0, 0):
            self.status.workers = 0
        if previous:
            self._restore(previous)

    def _restore(self, previous: Status) -> None:
        status = self.status
        status.checkpoint, status.checkpoint_at = previous.checkpoint, previous.checkpoint_at
        status.best_val_accuracy = previous.best_val_accuracy
        status.failures, status.last_failures = previous.failures, previous.last_failures
        if previous.state in ACTIVE_STATES:
            reason = f"process {previous.pid} on {previous.host} ended unexpectedly; its last state: {previous.state}"
            place = Place(phase=previous.phase, epoch=previous.epoch, step=previous.step) if previous.phase else None
            self._add_failure("driver", reason, place, previous.updated_at)

    def handle_event(self, event: events.Event) -> bool:
        """Update the status -> whether its state or phase has changed."""
        status = self.status
        before = status.state, status.phase
        match event:
            case events.Note():
                status.says = first_line(event.text, MAX_REASON) or status.says
            case events.FeatureCacheReady():
                self._cached_phases = event.phases
            case events.Waiting():
                self._set_idle(RunState.WAITING, event.text)
            case events.WorkersStarted():
                self._set_idle(RunState.STARTING)
                status.workers, status.nodes, status.attempt = event.workers, list(event.nodes), event.attempt
            case events.WorkerFailure():
                self._on_failure(event)
            case HardwareAlertsChanged():
                status.hardware_warnings = list(event.alerts)
            case events.CheckpointSaved():
                status.checkpoint, status.checkpoint_at = event.name, utc_timestamp()
            case events.StepEnd():
                self._set_place(event.phase, event.epoch, event.epochs, event.step, event.steps)
                status.loss, status.accuracy = event.loss, event.accuracy
                self._estimate(event.images_per_second, event.epoch, event.step)
            case events.EpochEnd():
                self._on_epoch_end(event)
            case events.FinalEvaluationStarted():
                self._set_idle(RunState.RUNNING)
                status.phase, status.progress = TEST_PHASE, 1.0
                status.epoch = status.epochs = status.step = status.steps = 0
            case events.RunEnd():
                self._set_idle(RunState(event.state), event.reason)
            case _:
                return False
        status.updated_at = utc_timestamp()
        return (status.state, status.phase) != before

    def _on_failure(self, event: events.WorkerFailure) -> None:
        self._set_idle(RunState.STARTING)
        place = None
        if event.position:
            phase, epoch, step = event.position
            place = Place(phase=phase, epoch=epoch + 1, step=step + 1)
        self._add_failure(event.kind, event.reason, place, utc_timestamp())
        self.status.failures_here, self.status.failures_allowed = event.num_failures, event.max_failures

    def _on_epoch_end(self, event: events.EpochEnd) -> None:
        record, status, num_images = event.record, self.status, self._sizes["train"]
        steps = math.ceil(num_images / self._batch_size)
        self._set_place(record.phase, record.epoch, event.epochs, steps, steps)
        status.loss, status.accuracy = record.train_loss, record.train_accuracy
        status.val_accuracy = record.val_accuracy
        status.best_val_accuracy = max(record.val_accuracy, status.best_val_accuracy or 0.0)
        self._validation_s[record.phase] = max(0.0, record.seconds - num_images / record.images_per_second)
        self._estimate(record.images_per_second, record.epoch + 1, 0)

    def _set_place(self, phase: str, epoch: int, epochs: int, step: int, steps: int) -> None:
        status = self.status
        status.state, status.reason = RunState.RUNNING, ""
        status.phase, status.epoch, status.epochs, status.step, status.steps = phase, epoch + 1, epochs, step, steps

    def _set_idle(self, state: RunState, reason: str = "") -> None:
        self.status.state, self.status.reason = state, first_line(reason, MAX_REASON)
        self.status.eta_s, self.status.eta_whole, self.status.images_per_second = None, False, None

    def _add_failure(self, kind: str, reason: str, place: Place | None, at: str) -> None:
        failure = FailureRecord(at=at, kind=kind, reason=first_line(reason, MAX_REASON), place=place)
        self.status.failures += 1
        self.status.last_failures = [*self.status.last_failures, failure][-_MAX_FAILURES:]

    def _estimate(self, rate: float, epochs_done: int, step: int) -> None:
        """Set progress, speed (images/s) and remaining time; `step` steps of the next epoch have been started."""
        status, current = self.status, self._phases[self.status.phase]
        train, validation, test = (self._sizes[split] for split in ("train", "validation", "test"))
        epochs = {phase.number: phase.settings.epochs for phase in self._phases.values()}
        earlier = sum(count for number, count in epochs.items() if number < current.number)
        later = sum(count for number, count in epochs.items() if number > current.number)
        left = current.settings.epochs - epochs_done + later
        images = max(0, left * train - min(step * self._batch_size, train))
        status.progress = (earlier + epochs_done + step / max(1, status.steps)) / sum(epochs.values())
        status.images_per_second = rate
        if rate <= 0 or not math.isfinite((images + left * validation) / rate):
            status.eta_s, status.eta_whole = None, False
            return
        validation_s = self._validation_s.get(current.name)
        status.eta_s = images / rate + left * (validation / rate if validation_s is None else validation_s)
        # the test reads images, as the validation does without a feature cache
        is_test_known = validation_s is not None and current.name not in self._cached_phases
        if is_test_known and validation_s:
            status.eta_s += validation_s / max(1, validation) * (validation + test) * len(self._phases)
        status.eta_whole = is_test_known and not later
