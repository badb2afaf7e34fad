"""A whole run: images -> manifest -> splits -> training -> predictions -> metrics -> report."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pharmclf import storage
from pharmclf.cli import EXIT_OK, Say, StopSignal, scan_progress
from pharmclf.config import ConfigError, RunConfig, to_dict
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import check_storage, prepare, split_manifest, write_manifest
from pharmclf.fingerprint import fingerprint, sha256_bytes
from pharmclf.finish import finish
from pharmclf.quiet import native_chatter_muted
from pharmclf.report.summary import progress_line, summary_text
from pharmclf.storage.lease import Lease, LeaseTaken
from pharmclf.training.checkpoint import check_fingerprints
from pharmclf.training.job import TrainingJob
from pharmclf.training.launch import connect, launch

# settings that may differ when a run is resumed: they change where and how it runs, not what it computes
_FREE = (
    "storage",
    "name",
    "workers",
    "max_bad",
    "checkpoint_every_s",
    "keep_checkpoints",
    "failures",
    "xla",
    "data",
    "weights",
)
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
            record = {"name": config.run_name, "settings": settings, "config": to_dict(config)}
            record |= {"fingerprints": expected, "versions": _versions(), "state": "running", "seconds": before}
            storage.write_json(storage.join(folder, "run.json"), record)
            try:
                connect()
                stop.install()
                outcome = launch(training_job(config, folder, manifest), _Console(stop, lease, say))
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
        self._stop, self._lease, self._say = stop, lease, say

    def event(self, kind: str, **values: Any) -> None:
        if kind == "note":
            self._say(values["text"])
        elif kind == "step":
            place = (values["epoch"] + 1, values["epochs"]), (values["step"], values["steps"])
            names = ("loss", "accuracy", "images_per_second", "eta_s")
            self._say(progress_line(values["phase"], *place, **{name: values[name] for name in names}))
        elif kind == "epoch":
            best = "  best so far" if values["best"] else ""
            self._say(
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
