"""Finds the runs below a storage and reads what each has come to; no tensor is read for it."""

from __future__ import annotations

import functools
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
from pharmclf.data.prepare import storage_errors_as_config_errors
from pharmclf.schema_version import load_record
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.lr_schedule import best_phase
from pharmclf.training.phases import Position

METRICS = ("val_accuracy", "val_loss")
"""What runs are compared by: the highest validation accuracy, the lowest validation loss."""
_TRIALS = "trials"  # the folder in which a sweep keeps its runs
_NOT_RUNS = (".", "manifests", "activations", "demo-data-")  # beginnings of the names of folders that hold no runs
_READERS = 16  # concurrent readers of runs
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run has come to."""

    name: str
    """Its path below the storage: demo, or sweep/trials/7."""
    location: str
    """Its folder."""
    state: str
    """running, interrupted, failed, trained, complete, of a trial also stopped; unreadable where a file that tells of
    it cannot be read."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration, as plain values."""
    data: str = ""
    """Fingerprint of its images and their splits; with different ones, scores cannot be compared."""
    reached: str = "-"
    """The phase and the epoch, counted from 1, that it has come to."""
    best: EpochRecord | None = None
    """Of the epoch that gave the best checkpoint; None: no epoch is finished."""
    checkpoint: str = ""
    """Name of that checkpoint."""
    result: dict[str, Any] | None = None
    """The content of result.json; None: the run is not complete."""


def list_runs(location: str, *, name: str = "", experiment: str = "") -> list[RunInfo]:
    """The runs of a storage and the trials of its sweeps, sorted by name; the log says which cannot be read.

    Args:
        location: folder or s3:// prefix that holds run folders.
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
    with storage_errors_as_config_errors(location), ThreadPoolExecutor(_READERS) as pool:
        paths = _run_paths(location, pool, wanted)
        if wanted:
            paths = [path for path in paths if path == wanted or (experiment and path.startswith(f"{wanted}/"))]
        if paths:
            return list(pool.map(functools.partial(read_run, location), paths))
        known = _run_paths(location, pool)
        there = bool(known) or storage.exists(location)
    if not known:
        found = "a folder without runs" if there else "nothing there"
        raise ConfigError(f"--storage {location}: {found}. Give the folder or prefix that the runs were trained with")
    flag = "--name" if name else "--experiment"
    near = closest_names(wanted, known)
    raise ConfigError(
        f"{flag}: received {wanted!r}, expected runs of {location}, such as {', '.join(near)}; see --list"
    )


def rank_runs(runs: Iterable[RunInfo], metric: str) -> list[RunInfo]:
    """Runs with the best by a metric first; equal ones by the other metric, then complete ones, then by name."""

    def place(run: RunInfo) -> tuple[Any, ...]:
        if run.best is None:
            return (True, 0.0, 0.0, True, run.name)
        scores = -run.best.val_accuracy, run.best.val_loss
        return (False, *(scores if metric == "val_accuracy" else scores[::-1]), run.result is None, run.name)

    return sorted(runs, key=place)


def runs_table(runs: Iterable[RunInfo]) -> str:
    """Runs as aligned lines under a heading, in their order; "-" stands for what there is not."""
    rows = [("name", "state", "backbone", "reached", "val_accuracy", "val_loss", "test_accuracy", "checkpoint")]
    for run in runs:
        best = [run.best.val_accuracy, run.best.val_loss] if run.best else [None, None]
        scores = [*best, (run.result or {}).get("test_accuracy")]
        accuracy, loss, test = ("-" if score is None else f"{score:.4f}" for score in scores)
        backbone = str(run.config.get("backbone", "-"))
        rows.append((run.name, run.state, backbone, run.reached, accuracy, loss, test, run.checkpoint or "-"))
    return "\n".join(align_columns(rows))


def _run_paths(location: str, pool: ThreadPoolExecutor, wanted: str = "") -> list[str]:
    """Paths of the run folders and of the trials, sorted; only below the first folder of `wanted`, if given."""
    only = wanted.split("/")[0]
    folders = storage.list_folders(location)
    top = [folder for folder in folders if not folder.startswith(_NOT_RUNS) and only in ("", folder)]

    def trials(folder: str) -> list[str]:
        home = folder if folder == _TRIALS else f"{folder}/{_TRIALS}"  # a sweep's own folder may be the storage
        try:
            return [f"{home}/{trial}" for trial in storage.list_folders(storage.join(location, home))]
        except PermissionError as error:  # a folder such as lost+found
            _log.warning("%s; it is left out", error)
            return []

    paths = [*top, *itertools.chain.from_iterable(pool.map(trials, top))]
    are_runs = pool.map(lambda path: storage.is_file(storage.join(location, path, "run.json")), paths)
    return sorted(path for path, is_run in zip(paths, are_runs, strict=True) if is_run)


def read_run(location: str, path: str) -> RunInfo:
    """What the run at a path below the storage has come to.

    Raises:
        OSError: the storage does not answer.
    """
    folder = storage.join(location, path)
    try:
        record = load_record(storage.join(folder, "run.json"))
        outcome = _read_complete(folder) if record["state"] == "complete" else _read_incomplete(folder)
        return RunInfo(
            name=path,
            location=folder,
            state=str(record["state"]),
            config=dict(record["config"]),
            data=str(record["fingerprints"]["data"]),
            **outcome,
        )
    except storage.StorageUnavailableError:
        raise
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        _log.warning("run %s cannot be read: %r", folder, error)
        return RunInfo(name=path, location=folder, state="unreadable")


def _read_complete(folder: str) -> dict[str, Any]:
    result, history = (load_record(storage.join(folder, name)) for name in ("result.json", "history.json"))
    checkpoint = result["best_checkpoint"].rsplit("/", 1)[-1]
    reached = f"{history[-1]['phase']} epoch {history[-1]['epoch'] + 1}"
    return {"result": result, "reached": reached, "checkpoint": checkpoint, "best": _epoch_record(checkpoint, history)}


def _read_incomplete(folder: str) -> dict[str, Any]:
    checkpoints = list_checkpoints(storage.join(folder, "checkpoints"))
    if not checkpoints:
        return {}
    position, state = checkpoints[-1].position, checkpoints[-1].state
    reached = f"phase{position.phase + 1} epoch {position.epoch + (position.step > 0)}"
    monitors = {name: monitor for name, monitor in state["monitors"].items() if name in state["best"]}
    if not monitors:
        return {"reached": reached}
    checkpoint = state["best"][best_phase(monitors)]
    return {"reached": reached, "checkpoint": checkpoint, "best": _epoch_record(checkpoint, state["history"])}


def _epoch_record(checkpoint: str, history: list[dict[str, Any]]) -> EpochRecord:
    """The record of the epoch at whose end a checkpoint was written."""
    records = [EpochRecord.from_dict(values) for values in history]
    labels = [Position(int(record.phase.removeprefix("phase")) - 1, record.epoch + 1, 0).label for record in records]
    return dict(zip(labels, records, strict=True))[checkpoint]
