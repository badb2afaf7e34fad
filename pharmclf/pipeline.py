"""A whole run: images -> manifest -> splits -> training -> predictions -> metrics -> report."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pharmclf import storage
from pharmclf.activations.choice import PhaseWork
from pharmclf.activations.provide import Interrupted, Wish, drop_damaged, provide, streamed_instead
from pharmclf.activations.shards import ActivationsLost, ActivationsNotKept, size_text
from pharmclf.cli import EXIT_FAILED, EXIT_OK, Say, StopSignal, scan_progress
from pharmclf.config import ConfigError, RunConfig, to_dict
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import check_storage, prepare, split_manifest, write_manifest
from pharmclf.fingerprint import fingerprint, sha256_bytes
from pharmclf.finish import finish
from pharmclf.quiet import native_chatter_muted
from pharmclf.report.summary import progress_line, summary_text
from pharmclf.storage.lease import Lease, LeaseTaken
from pharmclf.training.checkpoint import check_fingerprints, list_checkpoints
from pharmclf.training.job import TrainingJob
from pharmclf.training.launch import connect, launch
from pharmclf.training.phases import phases_of

# settings that may differ when a run is resumed: they change where and how it runs, not what it computes
_FREE = (
    "storage",
    "name",
    "workers",
    "max_bad",
    "checkpoint_every_s",
    "keep_checkpoints",
    "activations",
    "activations_dtype",
    "failures",
    "xla",
    "data",
    "weights",
)
_REPAIRS = 2  # times that damaged activations are mended within a run
_LAST_WORDS_S = 10.0  # patience with a storage that is away already
_WEIGHT_WORDS = ("imagenet", "none")
_PACKAGES = ("pharmclf", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow", "simplejpeg")


def run(config: RunConfig, say: Say) -> int:
    """Do a whole run, or resume it, or say that it is complete.

    Args:
        config: the run.
        say: takes lines for the console.

    Returns:
        The exit code: 0, or 130 and 143 after a signal.

    Raises:
        ConfigError: bad input; nothing has been trained or changed.
    """
    began = time.monotonic()
    config = _with_weights_found(config)
    folder = storage.join(storage.absolute(config.storage), config.run_name)
    check_storage(config)
    record = _read_record(folder)
    settings = _settings(config)
    if record is not None:
        check_fingerprints(_flat(record["settings"]), _flat(settings), f"run {folder}")
    with StopSignal() as stop:
        manifest = split_manifest(config, folder, scan_progress(say))
        for note in manifest.notes:
            say(f"note: {note}")
        _describe(manifest, folder, say)
        expected = _fingerprints(config, manifest)
        if record is not None:
            check_fingerprints(record["fingerprints"], expected, f"run {folder}")
            if record["state"] == "complete":
                return _say_complete(folder, say)
        if stop.received is not None:
            return stop.exit_code
        with _only_writer(folder) as lease:
            write_manifest(manifest, folder)
            before = record["seconds"] if record else 0.0
            earlier = record.get("activations") if record else None
            record = {"name": config.run_name, "settings": settings, "config": to_dict(config)}
            record |= {"fingerprints": expected, "versions": _versions(), "state": "running", "seconds": before}
            storage.write_json(storage.join(folder, "run.json"), record)
            try:
                connect()
                stop.install()
                job = training_job(config, folder, manifest)
                outcome = _train(job, manifest, _Console(stop, lease, say), record, earlier)
                done = outcome["status"] == "complete"
                record["state"] = "trained" if done else "interrupted"
                if done:
                    seconds = before + time.monotonic() - began
                    finish(config, folder, manifest, outcome, seconds, say)
                    record["state"] = "complete"
            except BaseException:
                record["state"] = "failed"
                raise
            finally:
                record["seconds"] = before + time.monotonic() - began
                _write_last(folder, record, lease)
    return EXIT_OK if done else stop.exit_code


def _train(
    job: TrainingJob, manifest: Manifest, console: _Console, record: dict[str, Any], earlier: Sequence[str] | None
) -> dict[str, Any]:
    """Provide the activations and train; activations that are lost meanwhile are mended, and the run goes on.

    Args:
        job: without activations.
        manifest: with splits.
        console: shows what happens.
        record: of the run; which phases train on activations is written into it.
        earlier: the phases that did so before the run was interrupted; None: it begins.
    """
    checkpoints = list_checkpoints(job.checkpoints)
    at = checkpoints[-1].position.phase if checkpoints else 0
    wish = _wish(job, manifest, at, console.say, console.stop_requested)
    repairs = 0
    while True:
        try:
            job = dataclasses.replace(job, activations=provide(wish, earlier=earlier))
        except Interrupted:
            return {"status": "stopped"}
        record["activations"] = earlier = sorted({*job.activations, *(name for name in earlier or () if at)})
        storage.write_json(storage.join(job.folder, "run.json"), record)
        try:
            return launch(job, console)
        except ActivationsLost as error:
            if repairs == _REPAIRS:
                raise
            repairs += 1
            console.say(f"warning: {error}; it is computed again, and the run goes on from its newest checkpoint")
            drop_damaged(job.activations.values())
        except ActivationsNotKept as error:
            console.say(streamed_instead(error))
            record["activations"] = []  # a resumed run goes on in the same way
            storage.write_json(storage.join(job.folder, "run.json"), record)
            return launch(dataclasses.replace(job, activations={}), console)


def _wish(job: TrainingJob, manifest: Manifest, at: int, say: Say, stopped: Callable[[], bool] = lambda: False) -> Wish:
    """The activations that a run could train its phases on, from phase number `at` on."""
    phases = [phase for phase in phases_of(job.config) if phase.number >= at]
    works = [PhaseWork(phase.name, phase.unfreeze_blocks, phase.settings.epochs) for phase in phases]
    return Wish(job.config, manifest, job.fingerprints["weights"], works, say, stopped)


def fill_activations(config: RunConfig, folder: str, manifest: Manifest, say: Say) -> int:
    """Compute the activations that a run of this configuration could train on, ahead of it.

    Returns:
        The exit code: 0; 1 where they cannot be kept; 130 and 143 after a signal, and what is computed by then stays.

    Raises:
        ConfigError: bad input.
    """
    config = dataclasses.replace(_with_weights_found(config), activations="always")
    with StopSignal() as stop:
        connect()
        stop.install()
        wish = _wish(training_job(config, folder, manifest), manifest, 0, say, lambda: stop.received is not None)
        try:
            found = provide(wish)
        except Interrupted:
            return stop.exit_code
    for name, kept in found.items():
        say(f"{name}: {kept.location}, {size_text(kept.layout.num_bytes)}")
    return EXIT_OK if found else EXIT_FAILED


@contextlib.contextmanager
def _only_writer(folder: str) -> Iterator[Lease]:
    """Hold the lease of a run's folder.

    Raises:
        ConfigError: another process that lives is writing it.
    """
    try:
        lease = Lease.acquire(folder)
    except LeaseTaken as error:
        raise ConfigError(f"run {error}. Wait for it, or give another --name") from error
    try:
        yield lease
    finally:
        with contextlib.suppress(OSError), storage.patience(_LAST_WORDS_S):  # it expires by itself
            lease.release()


def _write_last(folder: str, record: dict[str, Any], lease: Lease) -> None:
    """Write how a run has ended; an error of its own must not hide how.

    Raises:
        RuntimeError: another process has taken the run over.
    """
    if lease.lost:
        raise RuntimeError(f"{folder} has been taken over by {lease.lost}, since the lease could not be renewed")
    location = storage.join(folder, "run.json")
    if record["state"] != "failed":
        storage.write_json(location, record)
        return
    with contextlib.suppress(OSError), storage.patience(_LAST_WORDS_S):
        storage.write_json(location, record)


def dry_run(config: RunConfig, say: Say) -> int:
    """Say what a run would train, on which data, and end; nothing is kept.

    Raises:
        ConfigError: bad input.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        manifest = split_manifest(config, folder, scan_progress(say))
    with native_chatter_muted():
        from pharmclf.model.describe import describe_model

        say(describe_model(config, len(manifest.class_names)))
    _describe(manifest, "", say)
    return EXIT_OK


def _read_record(folder: str) -> dict[str, Any] | None:
    location = storage.join(folder, "run.json")
    if not storage.is_file(location):
        return None
    try:
        record = storage.read_json(location)
        return (
            record
            if isinstance(record, dict) and {"settings", "fingerprints", "state", "seconds"} <= set(record)
            else None
        )
    except ValueError as error:
        raise ConfigError(
            f"{location}: not JSON ({error}). Delete it to let the run resume from its checkpoints"
        ) from error


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _describe(manifest: Manifest, folder: str, say: Say) -> None:
    counts = manifest.ok["split"].value_counts()
    parts = ", ".join(f"{counts.get(split, 0):,} {split}" for split in ("train", "validation", "test"))
    say(f"data: {len(manifest.ok):,} images of {len(manifest.class_names)} classes: {parts}")
    if len(manifest.quarantined):
        where = f", listed in {storage.join(folder, 'quarantine.csv')}" if folder else ""
        say(f"quarantined: {len(manifest.quarantined):,} images{where}")


def training_job(config: RunConfig, folder: str, manifest: Manifest | None = None) -> TrainingJob:
    """What the loop needs to train on a data set.

    Args:
        config: the run.
        folder: the run's folder.
        manifest: with splits; None: made here, and written to the folder.
    """
    manifest = manifest or prepare(config, folder)
    labels = {name: number for number, name in enumerate(manifest.class_names)}
    table = manifest.table
    return TrainingJob(
        config=config,
        folder=folder,
        class_names=manifest.class_names,
        paths=pa.array(table["path"].tolist(), pa.string()),
        labels=table["label"].map(labels).fillna(-1).to_numpy(np.int64),
        train_rows=manifest.rows("train"),
        validation_rows=manifest.rows("validation"),
        fingerprints=_fingerprints(config, manifest),
    )


def _fingerprints(config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    weights = config.weights
    if weights not in _WEIGHT_WORDS:
        weights = sha256_bytes(storage.read_bytes(weights))
    return {"data": manifest.fingerprint, "settings": fingerprint(_settings(config)), "weights": weights}


def _with_weights_found(config: RunConfig) -> RunConfig:
    """The configuration with the place of a weights file made absolute: workers stand in other folders."""
    if config.weights in _WEIGHT_WORDS:
        return config
    location = storage.absolute(config.weights)
    try:
        found = storage.is_file(location)
    except PermissionError as error:
        raise ConfigError(f"--weights {config.weights}: {error}") from error
    if not found:
        raise ConfigError(f"weights: received {config.weights!r}, expected imagenet, none, or a file that is there")
    return dataclasses.replace(config, weights=location)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What decides a run's numbers."""
    return {key: value for key, value in to_dict(config).items() if key not in _FREE}


class _Console:
    """Shows a run's events, and passes signals on."""

    def __init__(self, stop: StopSignal, lease: Lease, say: Say) -> None:
        self._stop, self._lease, self.say = stop, lease, say

    def event(self, kind: str, **values: Any) -> None:
        if kind == "note":
            self.say(values["text"])
        elif kind == "step":
            place = (values["epoch"] + 1, values["epochs"]), (values["step"], values["steps"])
            names = ("loss", "accuracy", "images_per_second", "eta_s")
            self.say(progress_line(values["phase"], *place, **{name: values[name] for name in names}))
        elif kind == "epoch":
            best = "  best so far" if values["best"] else ""
            self.say(
                f"{values['phase']} epoch {values['epoch'] + 1}/{values['epochs']}: "
                f"train loss {values['train_loss']:.4f} accuracy {values['train_accuracy']:.4f}, "
                f"validation loss {values['val_loss']:.4f} accuracy {values['val_accuracy']:.4f}, "
                f"{values['images_per_second']:.1f} images/s, {values['seconds']:.0f} s{best}"
            )

    def stop_requested(self) -> bool:
        return self._stop.received is not None or bool(self._lease.lost)


def _say_complete(folder: str, say: Say) -> int:
    say(summary_text(storage.read_json(storage.join(folder, "result.json")), folder))
    say(f"the run {folder} is complete already; give another --name to train anew")
    return EXIT_OK
