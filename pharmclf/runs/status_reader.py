"""Reads where the runs and sweeps of a storage stand, from it alone."""

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
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pharmclf import storage
from pharmclf.core.errors import ConfigError, closest_names, first_line
from pharmclf.data.prepare import storage_errors_as_config_errors
from pharmclf.runs.registry import read_run
from pharmclf.runs.status import ACTIVE_STATES, MAX_REASON, STATES, STATUS_FILE, Status, utc_timestamp
from pharmclf.schema_version import check_schema_version, load_record
from pharmclf.storage import lease

LOST = "no sign of life"
_READERS = 16  # concurrent readers of runs
_log = logging.getLogger(__name__)
T = TypeVar("T")
_RUN_FILE, _SWEEP_FILE, _TRIALS = "run.json", "sweep.json", "trials"
_RUNNING = "running"  # in run.json and sweep.json, until the end
_INTERRUPTED = "broken off"
RunKind = Literal["run", "sweep", "trial"]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What is known of a run, a sweep or a trial."""

    name: str
    """Its path below the storage."""
    location: str
    kind: RunKind
    state: str
    """One of STATES, or of a trial also trained, stopped, diverged and broken off; "no sign of life" where a driver
    that has not ended is not there any more; unreadable."""
    reason: str = ""
    seen_s: float
    """When it was last written, by the storage's clock, seconds since 1970."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The content of status.json; of older runs and of trials what run.json and the checkpoints tell."""
    trials: Mapping[str, Any] = field(default_factory=dict)
    """Of a sweep: total, ended, states (how many are in each), each (number, state, reason, seconds)."""
    table: str = ""
    """Of a sweep: the results of its trials, once there are some."""

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        return self.state in ACTIVE_STATES

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        own = {
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "reason": self.reason,
            "lives": self.is_active,
        }
        trials = {"trials": dict(self.trials)} if self.kind == "sweep" else {}
        return {**self.about, **own, "location": self.location, "seen_at": utc_timestamp(self.seen_s), **trials}


def list_status(location: str, name: str = "") -> list[RunStatus]:
    """Where the runs and sweeps of a storage stand, sorted by name.

    Args:
        location: folder or s3:// prefix that holds run folders.
        name: only the run, sweep or trial with this path below the storage; "": all runs and sweeps.

    Raises:
        ConfigError: no such storage, no right to read it, or no such run in it.
        OSError: the storage does not answer.
    """
    location, name = storage.absolute(location), name.strip("/")
    with storage_errors_as_config_errors(location):
        if name and (one := read_status(location, name)):
            return [one]
        folders = storage.list_folders(location)
        found = _read_all(functools.partial(_readable, location), folders)
        if not found:
            what = "a folder without runs" if folders or storage.exists(location) else "nothing there"
            if _read_folder(*location.rstrip("/").rsplit("/", 1)):
                what = "the folder of a run"
            raise ConfigError(f"--storage {location}: {what}. Give the folder or prefix that the runs are trained with")
    if not name:
        return found
    known = [run.name for run in found]
    near = closest_names(name, known)
    raise ConfigError(f"--name: received {name!r}, expected a run of {location}, such as {', '.join(near)}")


def _read_all(read: Callable[[str], T | None], names: Iterable[str]) -> list[T]:
    """What is read by many at once, each with the `timeout` of this thread; nothing of those that give None."""
    calls = [functools.partial(contextvars.copy_context().run, read, name) for name in names]
    with ThreadPoolExecutor(_READERS) as pool:
        return [found for found in pool.map(lambda call: call(), calls) if found is not None]


def _readable(location: str, path: str) -> RunStatus | None:
    try:
        return read_status(location, path)
    except PermissionError as error:  # a folder such as lost+found
        _log.warning("%s; it is left out", error)
        return None


def read_status(location: str, path: str) -> RunStatus | None:
    """Where the run, sweep or trial at a path below the storage stands; None where there is none.

    Raises:
        OSError: the storage does not answer.
    """
    found = _read_folder(location, path)
    # the lease and the record are read one after the other: a run that began or ended in between looks dead once
    return _read_folder(location, path) if found and found.state == LOST else found


@dataclass(frozen=True, kw_only=True)
class _FolderSnapshot:
    """A folder, before it is judged."""

    location: str
    path: str
    record: Mapping[str, Any]
    """Of run.json or sweep.json."""
    record_s: float
    """When that was written, by the storage's clock, seconds since 1970."""
    held: bool
    """Whether somebody who lives holds the lease."""
    held_s: float
    """When it was last renewed; 0: there is none."""

    @property
    def folder(self) -> str:
        return storage.join(self.location, self.path)


def _read_folder(location: str, path: str) -> RunStatus | None:
    folder = storage.join(location, path)
    held, held_s = _lease_holder(folder)
    for file in (_RUN_FILE, _SWEEP_FILE):
        stored = storage.read_versioned(storage.join(folder, file))
        if stored is None:
            continue
        try:
            record, record_s = json.loads(stored.content), stored.changed_s
            check_schema_version(record, storage.join(folder, file))
            look = _FolderSnapshot(
                location=location, path=path, record=record, record_s=record_s, held=held, held_s=held_s
            )
            return _run_status(look) if file == _RUN_FILE else _sweep_status(look)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            kind: RunKind = "run" if file == _RUN_FILE else "sweep"
            reason, seen_s = f"{file} cannot be read: {first_line(repr(error), MAX_REASON)}", stored.changed_s
            return RunStatus(name=path, location=folder, kind=kind, state="unreadable", reason=reason, seen_s=seen_s)
    return None


def _lease_holder(folder: str) -> tuple[bool, float]:
    """Whether somebody who lives holds the lease of a folder, and when it was last renewed, 0: never."""
    found = storage.read_versioned(storage.join(folder, lease.LEASE_FILE))
    return (bool(lease.active_holder(found)), found.changed_s) if found else (False, 0.0)


def _run_status(look: _FolderSnapshot) -> RunStatus:
    stored = storage.read_versioned(storage.join(look.folder, STATUS_FILE))
    about, about_s = _parse_status(stored), stored.changed_s if stored else 0.0
    recorded, told, trial = str(look.record["state"]), about.get("state"), look.record.get("trial")
    seen_s = max(look.held_s, look.record_s, about_s)
    # the worker of a trial takes its lease some seconds after the sweep has begun it
    held = look.held or bool(trial and _lease_holder(look.folder.rsplit(f"/{_TRIALS}/", 1)[0])[0])
    if recorded != _RUNNING:
        state = recorded
    elif held:
        # a state that is not active is that of a driver before
        state = told if told in ACTIVE_STATES else "starting" if about else _RUNNING
    elif told in STATES and told not in ACTIVE_STATES and about_s >= look.record_s:
        state = told  # run.json could not be written any more
    else:
        state = _INTERRUPTED if trial else LOST
    reasons = {_INTERRUPTED: "its sweep's command goes on with it", LOST: _resume_hint(seen_s)}
    given = trial["reason"] if trial else about["reason"] if told == state else ""
    return RunStatus(
        name=look.path,
        location=look.folder,
        kind="trial" if trial else "run",
        state=state,
        reason=reasons.get(state, given),
        seen_s=seen_s,
        about=about or _details_without_status_file(look),
    )


def _resume_hint(seen_s: float) -> str:
    return f"no sign of life since {utc_timestamp(seen_s)}; submit the same command again"


def _parse_status(stored: storage.Versioned | None) -> dict[str, Any]:
    """A status with all that it must have; {} where there is none that can be understood."""
    with contextlib.suppress(ValueError):
        content = json.loads(stored.content) if stored else None
        check_schema_version(content, STATUS_FILE)
        if isinstance(content, dict) and set(content) >= _FIELDS:
            return content
    return {}


_FIELDS = {field.name for field in dataclasses.fields(Status)}


def _details_without_status_file(look: _FolderSnapshot) -> dict[str, Any]:
    """What can be told of a run that has no status: an older one, or a trial."""
    run = read_run(look.location, look.path)
    about: dict[str, Any] = {}
    if run.reached != "-":
        phase, _, epoch = run.reached.split()
        about |= {"phase": phase, "epoch": int(epoch), "epochs": look.record["config"][phase]["epochs"]}
    if run.best:
        about |= {"best_val_accuracy": run.best.val_accuracy, "checkpoint": run.checkpoint}
    return about


def _sweep_status(look: _FolderSnapshot) -> RunStatus:
    home = storage.join(look.folder, _TRIALS)
    trials = _read_all(functools.partial(_read_trial, home), storage.list_folders(home))
    trials.sort(key=lambda trial: trial["number"])
    for trial in trials:
        if trial["state"] == _RUNNING and not look.held:
            trial["state"] = _INTERRUPTED
    counts = Counter(trial["state"] for trial in trials)
    state, seen_s = str(look.record["state"]), max(look.held_s, look.record_s)
    dead = state == _RUNNING and not look.held
    result = look.record.get("result")
    return RunStatus(
        name=look.path,
        location=look.folder,
        kind="sweep",
        state=LOST if dead else state,
        reason=_resume_hint(seen_s) if dead else "",
        seen_s=seen_s,
        about={"winner": look.record["winner"], "test_accuracy": result["test_accuracy"]} if result else {},
        trials={
            "total": look.record["trials"],
            "ended": len(trials) - counts[_RUNNING] - counts[_INTERRUPTED],
            "states": dict(counts),
            "each": trials,
        },
        table=str(look.record.get("table", "")),
    )


def _read_trial(home: str, name: str) -> dict[str, Any] | None:
    if not name.isdigit():  # the winner that is trained anew
        return None
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # it is just being begun
        about = load_record(storage.join(home, name, _RUN_FILE))["trial"]
        seconds = about["used"].get("seconds", 0.0)
        return {"number": int(name), "state": about["state"], "reason": about["reason"], "seconds": seconds}
    return None
