"""Finds the runs in a storage and reads their results; reads no tensors."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.core.errors import ConfigError, closest_names
from pharmclf.core.events import EpochRecord
from pharmclf.core.tables import align_columns
from pharmclf.runs.record import RUN_FILE, RecordState, RunRecord
from pharmclf.schema_version import load_record
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.lr_schedule import EarlyStoppingState, best_phase
from pharmclf.training.phases import Position

METRICS = ("val_accuracy", "val_loss")
"""Metrics that rank runs: the highest validation accuracy, the lowest validation loss."""
UNREADABLE = "unreadable"
"""State of a run with a file that cannot be read."""
TRIALS_FOLDER = "trials"
"""Folder of a sweep that holds its trials."""
_NOT_RUNS = (".", "manifests", "activations", "demo-data-")  # prefixes of folders without runs
_READERS = 16  # concurrent readers of runs
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Result of a run so far."""

    name: str
    """Path below the storage: demo, or sweep/trials/7."""
    location: str
    state: str
    """A `RecordState` or `UNREADABLE`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration, as plain values."""
    data: str = ""
    """Fingerprint of images and splits; scores of different ones are not comparable."""
    phase: str = ""
    """Phase of the newest checkpoint; "": there is none."""
    epoch: int = 0
    """Its epoch, from 1."""
    best: EpochRecord | None = None
    """Epoch of the best checkpoint; None: no epoch is complete."""
    checkpoint: str = ""
    """Name of the best checkpoint."""
    result: dict[str, Any] | None = None
    """Content of result.json; None: the run is not complete."""


def list_runs(location: str, *, name: str = "", experiment: str = "") -> list[RunInfo]:
    """List the runs of a storage and the trials of its sweeps, sorted by name; log those that cannot be read.

    Args:
        name: only the run with this path below the storage; "": all.
        experiment: only the runs at or below this path; "": all.

    Raises:
        ConfigError: no such storage, no right to read it, or no such run in it.
        OSError: the storage does not answer.
    """
    if name and experiment:
        raise ConfigError(f"--name {name} and --experiment {experiment}: received both, expected one of them or none")
    wanted = (name or experiment).strip("/")
    location = storage.absolute(location)
    with storage.errors_as_config_errors(location), ThreadPoolExecutor(_READERS) as pool:
        paths = _run_paths(location, pool, wanted)
        if wanted:
            paths = [path for path in paths if path == wanted or (experiment and path.startswith(f"{wanted}/"))]
        if paths:
            return list(pool.map(lambda path: read_run(storage.join(location, path), path), paths))
        known = _run_paths(location, pool)
        exists = bool(known) or storage.exists(location)
    if not known:
        word = storage.place_word(location)
        found = f"a {word} without runs" if exists else "nothing there"
        raise ConfigError(f"--storage {location}: {found}. Give the {word} of the trained runs")
    flag, near = "--name" if name else "--experiment", ", ".join(closest_names(wanted, known))
    raise ConfigError(f"{flag}: received {wanted!r}, expected runs of {location}, such as {near}; see --list")


def rank_runs(runs: Iterable[RunInfo], metric: str) -> list[RunInfo]:
    """Sort runs by a metric, best first; ties by the other metric, then complete runs, then by name."""

    def place(run: RunInfo) -> tuple[Any, ...]:
        if run.best is None:
            return (True, 0.0, 0.0, True, run.name)
        scores = -run.best.val_accuracy, run.best.val_loss
        return (False, *(scores if metric == "val_accuracy" else scores[::-1]), run.result is None, run.name)

    return sorted(runs, key=place)


def runs_table(runs: Iterable[RunInfo]) -> str:
    """Format runs as an aligned table, in their order; "-": unknown."""
    rows = [("name", "state", "backbone", "reached", "val_accuracy", "val_loss", "test_accuracy", "checkpoint")]
    for run in runs:
        best = [run.best.val_accuracy, run.best.val_loss] if run.best else [None, None]
        scores = [*best, (run.result or {}).get("test_accuracy")]
        accuracy, loss, test = ("-" if score is None else f"{score:.4f}" for score in scores)
        backbone = str(run.config.get("backbone", "-"))
        reached = f"{run.phase} epoch {run.epoch}" if run.phase else "-"
        rows.append((run.name, run.state, backbone, reached, accuracy, loss, test, run.checkpoint or "-"))
    return "\n".join(align_columns(rows))


def _run_paths(location: str, pool: ThreadPoolExecutor, wanted: str = "") -> list[str]:
    """Paths of run folders and trials, sorted; only below the first folder of `wanted`, if given."""
    only = wanted.split("/")[0]
    folders = storage.list_folders(location)
    top = [folder for folder in folders if not folder.startswith(_NOT_RUNS) and only in ("", folder)]

    def trials(folder: str) -> list[str]:
        home = folder if folder == TRIALS_FOLDER else f"{folder}/{TRIALS_FOLDER}"  # the storage may be a sweep's folder
        try:
            return [f"{home}/{trial}" for trial in storage.list_folders(storage.join(location, home))]
        except PermissionError as error:  # a folder such as lost+found
            _log.warning("%s; it is skipped", error)
            return []

    paths = [*top, *itertools.chain.from_iterable(pool.map(trials, top))]
    are_runs = pool.map(lambda path: storage.is_file(storage.join(location, path, RUN_FILE)), paths)
    return sorted(path for path, is_run in zip(paths, are_runs, strict=True) if is_run)


def read_run(folder: str, name: str) -> RunInfo:
    """Read the run in a folder; its name is its path below the storage.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        record = RunRecord.from_dict(load_record(storage.join(folder, RUN_FILE)))
        data = record.fingerprints["data"]
        run = RunInfo(name=name, location=folder, state=record.state, config=record.config, data=data)
        return _with_result(run) if record.state is RecordState.COMPLETE else _with_newest_checkpoint(run)
    except storage.StorageUnavailableError:
        raise
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        _log.warning("run %s cannot be read: %r", folder, error)
        return RunInfo(name=name, location=folder, state=UNREADABLE)


def _with_result(run: RunInfo) -> RunInfo:
    result, history = (load_record(storage.join(run.location, name)) for name in ("result.json", "history.json"))
    checkpoint, last = result["best_checkpoint"].rsplit("/", 1)[-1], EpochRecord.from_dict(history[-1])
    best = _epoch_of(checkpoint, history)
    return dataclasses.replace(
        run, result=result, phase=last.phase, epoch=last.epoch + 1, checkpoint=checkpoint, best=best
    )


def _with_newest_checkpoint(run: RunInfo) -> RunInfo:
    checkpoints = list_checkpoints(storage.join(run.location, "checkpoints"))
    if not checkpoints:
        return run
    position, state = checkpoints[-1].position, checkpoints[-1].state
    run = dataclasses.replace(run, phase=f"phase{position.phase + 1}", epoch=position.epoch + (position.step > 0))
    saved = state["monitors"].items()
    monitors = {name: EarlyStoppingState.from_dict(monitor) for name, monitor in saved if name in state["best"]}
    if not monitors:
        return run
    checkpoint = state["best"][best_phase(monitors)]
    return dataclasses.replace(run, checkpoint=checkpoint, best=_epoch_of(checkpoint, state["history"]))


def _epoch_of(checkpoint: str, history: Iterable[dict[str, Any]]) -> EpochRecord:
    """Record of the epoch at whose end a checkpoint was written."""
    records = [EpochRecord.from_dict(values) for values in history]
    labels = [Position(int(record.phase.removeprefix("phase")) - 1, record.epoch + 1, 0).label for record in records]
    return dict(zip(labels, records, strict=True))[checkpoint]
