"""Reads the status of the runs and sweeps in a storage; needs no cluster."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from pharmclf import storage
from pharmclf.core.errors import ConfigError, closest_names, first_line
from pharmclf.core.units import price_of
from pharmclf.runs.record import RUN_FILE, RecordState, RunRecord
from pharmclf.runs.registry import TRIALS_FOLDER, UNREADABLE, read_run
from pharmclf.runs.status import ACTIVE_STATES, MAX_REASON, STATUS_FILE, RunState, Status, parse_status, utc_timestamp
from pharmclf.schema_version import check_schema_version, load_record
from pharmclf.storage import lease

LOST = "no sign of life"
"""State of a run or sweep whose driver disappeared."""
BROKEN_OFF = "broken off"
"""State of a trial whose worker disappeared; the command of its sweep resumes it."""
SWEEP_FILE = "sweep.json"
_READERS = 16  # concurrent readers of runs
_log = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")
RunKind = Literal["run", "sweep", "trial"]


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """A trial of a sweep."""

    number: int
    state: str
    """running, trained, stopped, diverged or failed, or `BROKEN_OFF`."""
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """Progress and result of a sweep."""

    total: int
    """Trials to train."""
    trials: tuple[TrialStatus, ...]
    """Those that have begun, by number."""
    winner: int | None = None
    """Number of the best trial; None: the sweep is not complete."""
    test_accuracy: float = 0.0
    """Of the winner, 0..1."""
    table: str = ""
    """Results of the trials, as text; "": the sweep is not complete."""

    @property
    def states(self) -> dict[str, int]:
        """Number of trials in each state."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def num_ended(self) -> int:
        """Trials that need no more training."""
        return sum(trial.state not in (RecordState.RUNNING, BROKEN_OFF) for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Status of a run, a sweep or a trial."""

    name: str
    """Path below the storage."""
    location: str
    kind: RunKind
    state: str
    """A `RunState` or `RecordState`, or one of `LOST`, `BROKEN_OFF` and `UNREADABLE`."""
    reason: str = ""
    seen_s: float
    """Time of the last write by the storage's clock, seconds since 1970."""
    status: Status | None = None
    is_partial: bool = False
    """Whether there is no status.json: `status` holds only phase, epochs, best accuracy and checkpoint, where known."""
    sweep: SweepStatus | None = None
    price: float | None = None
    """So far, of the machines of a run; None: unknown."""
    final_price: float | None = None
    """That price when the time left is over; None: it has ended, or the time left is unknown."""

    @property
    def is_active(self) -> bool:
        """Whether it has a live driver."""
        return self.state in ACTIVE_STATES

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = self.status.to_dict() if self.status else {}
        if self.status and self.is_partial:
            names = ["phase", "epoch", "epochs"] if self.status.phase else []
            names += ["best_val_accuracy", "checkpoint"] if self.status.checkpoint else []
            values = {name: values[name] for name in names}
        if self.sweep and self.sweep.winner is not None:
            values = {"winner": self.sweep.winner, "test_accuracy": self.sweep.test_accuracy}
        values |= {"name": self.name, "kind": self.kind, "state": self.state, "reason": self.reason}
        values |= {"lives": self.is_active, "location": self.location, "seen_at": utc_timestamp(self.seen_s)}
        prices = {"price": self.price, "final_price": self.final_price}
        values |= {name: price for name, price in prices.items() if price is not None}
        if self.sweep:
            trials = [dataclasses.asdict(trial) for trial in self.sweep.trials]
            counts = {"total": self.sweep.total, "ended": self.sweep.num_ended, "states": self.sweep.states}
            values["trials"] = counts | {"each": trials}
        return values


def list_status(location: str, name: str = "") -> list[RunStatus]:
    """Read the status of the runs and sweeps of a storage, sorted by name.

    Args:
        name: only the run, sweep or trial with this path below the storage; "": all runs and sweeps.

    Raises:
        ConfigError: no such storage, no right to read it, or no such run in it.
        OSError: the storage does not answer.
    """
    location, name = storage.absolute(location), name.strip("/")
    with storage.errors_as_config_errors(location):
        if name and (run := read_status(location, name)):
            return [run]
        folders = storage.list_folders(location)
        runs = read_in_threads(functools.partial(read_or_skip, location), folders)
        if not runs:
            word = storage.place_word(location)
            found = f"a {word} without runs" if folders or storage.exists(location) else "nothing there"
            if _read_folder(*location.rstrip("/").rsplit("/", 1)):
                found = f"the {word} of a run"
            raise ConfigError(f"--storage {location}: {found}. Give the {word} around the runs")
    if not name:
        return runs
    near = ", ".join(closest_names(name, [run.name for run in runs]))
    raise ConfigError(f"--name: received {name!r}, expected a run of {location}, such as {near}")


def read_in_threads(read: Callable[[S], T | None], names: Iterable[S]) -> list[T]:
    """Call `read` in several threads, with this thread's `storage.timeout`; leave out None."""
    calls = [functools.partial(contextvars.copy_context().run, read, name) for name in names]
    with ThreadPoolExecutor(_READERS) as pool:
        return [result for result in pool.map(lambda call: call(), calls) if result is not None]


def read_or_skip(location: str, path: str) -> RunStatus | None:
    """As `read_status`; None also for a folder that may not be read."""
    try:
        return read_status(location, path)
    except PermissionError as error:  # a folder such as lost+found
        _log.warning("%s; it is skipped", error)
        return None


def read_status(location: str, path: str) -> RunStatus | None:
    """Read the status of the run, sweep or trial at a path below the storage; None: there is none.

    Raises:
        OSError: the storage does not answer.
    """
    run = _read_folder(location, path)
    # the lease is read before the record: a run that began or ended in between looks dead in the first reading
    return _read_folder(location, path) if run and run.state == LOST else run


def _read_folder(location: str, path: str) -> RunStatus | None:
    folder = storage.join(location, path)
    is_held, held_s = _read_lease(folder)
    kinds: tuple[tuple[str, RunKind], ...] = ((RUN_FILE, "run"), (SWEEP_FILE, "sweep"))
    for file, kind in kinds:
        stored = storage.read_versioned(storage.join(folder, file))
        if stored is None:
            continue
        run = RunStatus(name=path, location=folder, kind=kind, state=UNREADABLE, seen_s=stored.changed_s)
        try:
            content = json.loads(stored.content)
            check_schema_version(content, storage.join(folder, file))
            if kind == "run":
                return _run_status(run, RunRecord.from_dict(content), is_held, held_s)
            return _sweep_status(run, content, is_held, held_s)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            reason = f"{file} cannot be read: {first_line(repr(error), MAX_REASON)}"
            return dataclasses.replace(run, reason=reason)
    return None


def _read_lease(folder: str) -> tuple[bool, float]:
    """Whether a live process holds the lease of a folder, and when it was last renewed; 0: never."""
    stored = storage.read_versioned(storage.join(folder, lease.LEASE_FILE))
    return (bool(lease.active_holder(stored)), stored.changed_s) if stored else (False, 0.0)


def _run_status(run: RunStatus, record: RunRecord, is_held: bool, held_s: float) -> RunStatus:
    """Complete the status of a run; `held_s` is the time of its lease, 0 without one."""
    stored = storage.read_versioned(storage.join(run.location, STATUS_FILE))
    status, status_s = _parse_status(stored), stored.changed_s if stored else 0.0
    seen_s = max(held_s, run.seen_s, status_s)
    if record.trial:  # its worker takes its lease some seconds after the sweep has begun it
        is_held = is_held or _read_lease(run.location.rsplit(f"/{TRIALS_FOLDER}/", 1)[0])[0]
    state: str = record.state
    if record.state is RecordState.RUNNING and is_held:
        if status:  # a state that is not active is that of the previous driver
            state = status.state if status.state in ACTIVE_STATES else RunState.STARTING
    elif record.state is RecordState.RUNNING:
        # where the status says that the run has ended, the last write of run.json failed
        has_ended = status is not None and status.state not in ACTIVE_STATES and status_s >= run.seen_s
        state = status.state if status and has_ended else BROKEN_OFF if record.trial else LOST
    if state in (BROKEN_OFF, LOST):
        reason = _resume_hint(seen_s) if state == LOST else "the command of its sweep resumes it"
    elif record.trial:
        reason = record.trial["reason"]
    else:
        reason = status.reason if status and status.state == state else ""
    price, final_price = _prices(record, status, seen_s, is_active=state in ACTIVE_STATES)
    return dataclasses.replace(
        run,
        kind="trial" if record.trial else "run",
        state=state,
        reason=reason,
        seen_s=seen_s,
        status=status or _status_from_checkpoints(run, record),
        is_partial=status is None,
        price=price,
        final_price=final_price,
    )


def _prices(record: RunRecord, status: Status | None, seen_s: float, *, is_active: bool) -> tuple[float | None, ...]:
    """Price of a run so far and, where it is active and the time left is known, at its end."""
    per_hour, seconds = float(record.config.get("price_per_hour", 0.0)), record.seconds
    if record.state is RecordState.RUNNING and status and status.state in ACTIVE_STATES:
        # the record has the time of the drivers before this one
        seconds += max(0.0, seen_s - datetime.fromisoformat(status.started_at).timestamp())
    left = status.eta_s if status and is_active else None
    return price_of(seconds, per_hour), None if left is None else price_of(seconds + left, per_hour)


def _resume_hint(seen_s: float) -> str:
    return f"no sign of life since {utc_timestamp(seen_s)}; submit the same command again"


def _parse_status(stored: storage.Versioned | None) -> Status | None:
    with contextlib.suppress(ValueError):
        return parse_status(json.loads(stored.content)) if stored else None
    return None


def _status_from_checkpoints(run: RunStatus, record: RunRecord) -> Status:
    info = read_run(run.location, run.name)
    return Status(
        name=run.name,
        phase=info.phase,
        epoch=info.epoch,
        epochs=record.config[info.phase]["epochs"] if info.phase else 0,
        best_val_accuracy=info.best.val_accuracy if info.best else None,
        checkpoint=info.checkpoint,
    )


def _sweep_status(run: RunStatus, content: Mapping[str, Any], is_held: bool, held_s: float) -> RunStatus:
    """Complete the status of a sweep, given as to `_run_status`, from the content of sweep.json."""
    home, seen_s = storage.join(run.location, TRIALS_FOLDER), max(held_s, run.seen_s)
    trials = read_in_threads(functools.partial(_read_trial, home, is_held), storage.list_folders(home))
    is_lost = content["state"] == RecordState.RUNNING and not is_held
    result = content.get("result")
    sweep = SweepStatus(
        total=content["trials"],
        trials=tuple(sorted(trials, key=lambda trial: trial.number)),
        winner=content["winner"] if result else None,
        test_accuracy=result["test_accuracy"] if result else 0.0,
        table=str(content.get("table", "")),
    )
    state, reason = (LOST, _resume_hint(seen_s)) if is_lost else (str(content["state"]), "")
    return dataclasses.replace(run, state=state, reason=reason, seen_s=seen_s, sweep=sweep)


def _read_trial(home: str, is_held: bool, name: str) -> TrialStatus | None:
    if not name.isdigit():  # the winner that is retrained
        return None
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # it is about to begin
        trial = load_record(storage.join(home, name, RUN_FILE))["trial"]
        state = BROKEN_OFF if trial["state"] == RecordState.RUNNING and not is_held else trial["state"]
        seconds = trial["used"].get("seconds", 0.0)
        return TrialStatus(number=int(name), state=state, reason=trial["reason"], seconds=seconds)
    return None
