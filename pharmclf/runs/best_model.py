"""Fetches the model of the best run: copied from a complete run, restored from the best checkpoint of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pharmclf import storage
from pharmclf.config import RunConfig, from_dict
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.events import EpochRecord
from pharmclf.core.hashing import sha256_file
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_examples, format_size
from pharmclf.data.destination import atomic_folder, check_new_folder
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.data.prepare import MANIFEST_FILE
from pharmclf.evaluation.abstention_policy import DECISION_FILE
from pharmclf.evaluation.strangeness import STRANGENESS_FILE
from pharmclf.evaluation.verdict import Verdict
from pharmclf.models.devices import configure_devices
from pharmclf.progress import progress_reporter
from pharmclf.reporting.model_card import CARD_FILE
from pharmclf.runs.record import weights_fingerprint
from pharmclf.runs.registry import METRICS, RunInfo, list_runs, rank_runs, read_run
from pharmclf.training.checkpoint import Checkpoint, read_checkpoint
from pharmclf.training.context import CHECKSUMS_FILE, LABELS_FILE, MODEL_FILE, PIXELS_FILE
from pharmclf.training.phases import Phase, build_phases


class CorruptedRunError(RunError, ValueError):
    """A file of a run's model is missing or damaged, or the model cannot be restored on this machine."""


def fetch_best(
    location: str, out: str | Path, *, name: str = "", experiment: str = "", metric: str = "val_accuracy", say: Say
) -> RunInfo:
    """Fetch the model of the best run, verified: model.keras, labels.json, config.yaml, metrics.json -> that run.

    TensorFlow is loaded only where the best run is not complete. A run whose model is damaged is reported and skipped,
    and the next best one is fetched.

    Args:
        out: a local folder that does not exist or is empty; it stays so until everything is verified.
        name, experiment: of the runs, as in `list_runs`.

    Raises:
        ConfigError: no such storage or runs, none with a finished epoch, or an `out` that cannot be used.
        CorruptedRunError: no run's model is intact.
        OSError: the storage does not answer, or the disk is full.
    """
    if metric not in METRICS:
        raise ConfigError(f"--metric: received {metric!r}, expected {' or '.join(METRICS)}")
    target = check_new_folder("--out", str(out))
    location = storage.absolute(location)
    runs = list_runs(location, name=name, experiment=experiment)
    candidates = _rank_candidates(runs, metric)
    if not candidates:
        raise ConfigError(f"--storage {location}: no finished epoch in {format_examples([run.name for run in runs])}")
    if len({run.data for run, _ in candidates}) > 1:
        say("note: these runs have different images or splits; their scores are not comparable. Select one with --name")
    failures = []
    while candidates:
        run, best = candidates.pop(0)
        try:
            with atomic_folder("--out", target) as part, storage.errors_as_config_errors(location):
                _fetch(run, best, part, metric, say)
            return run
        except CorruptedRunError as error:
            now = read_run(run.location, run.name)
            if now.best and now.checkpoint != run.checkpoint:  # it is training, and has replaced its best checkpoint
                say(f"run {run.name} has a new best checkpoint and is tried again")
                candidates = _rank_candidates([now, *(other for other, _ in candidates)], metric)
                continue
            failures.append(f"run {run.name}: {error}")
            say(f"left out: {failures[-1]}" + (f"; the next best is run {candidates[0][0].name}" if candidates else ""))
    raise CorruptedRunError(f"no model could be fetched: {'; '.join(failures)}")


def _rank_candidates(runs: Sequence[RunInfo], metric: str) -> list[tuple[RunInfo, EpochRecord]]:
    """Runs with a finished epoch and their best epoch, the best first."""
    return [(run, run.best) for run in rank_runs(runs, metric) if run.best]


def _fetch(run: RunInfo, best: EpochRecord, part: Path, metric: str, say: Say) -> None:
    scores = {name: float(getattr(best, name)) for name in METRICS}
    say(f"best: run {run.name}, {run.state}, {metric} {scores[metric]:.4f}, checkpoint {run.checkpoint}")
    if run.result is not None:
        verdict = Verdict.from_dict(run.result)
        if verdict and verdict.warning:
            say(verdict.warning)
        _copy(run, part)
    else:
        _restore(run, best, part, say)
    text = yaml.safe_dump(run.config, sort_keys=False, width=120)
    (part / "config.yaml").write_text(text, encoding="utf-8")
    metrics: dict[str, object] = {"run": run.name, "state": run.state, "metric": metric, "value": scores[metric]}
    metrics |= {"phase": best.phase, "epoch": best.epoch, "checkpoint": run.checkpoint, **scores}
    metrics |= {"sha256": sha256_file(part / "model.keras")}
    metrics |= {"result": run.result} if run.result is not None else {}
    storage.write_json(str(part / "metrics.json"), metrics)


@contextlib.contextmanager
def _corruption_as_error() -> Iterator[None]:
    """Convert errors of missing or invalid files inside the block into `CorruptedRunError`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error.__cause__, (storage.StorageUnavailableError, PermissionError)):
            raise error.__cause__ from error  # the file may be intact
        text = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
        raise CorruptedRunError(text) from error


def _copy(run: RunInfo, part: Path) -> None:
    """Copy the saved model of a complete run, and verify it."""
    with _corruption_as_error():
        checksums = storage.read_json(storage.join(run.location, CHECKSUMS_FILE))
        sizes = {entry.location: entry.size_bytes for entry in storage.list_files(storage.join(run.location, "model"))}
        depth = [PIXELS_FILE] if Path(PIXELS_FILE).name in checksums else []
        for file in (MODEL_FILE, LABELS_FILE, *depth):
            location = storage.join(run.location, file)
            copy = part / Path(file).name
            progress = _download_progress(copy.name, sizes[location]) if file == MODEL_FILE else None
            storage.download(location, copy, progress)
            received, expected = sha256_file(copy), checksums[copy.name]
            if received != expected:
                raise CorruptedRunError(f"{location} has sha256 {received}, expected {expected}")
        for file in (DECISION_FILE, STRANGENESS_FILE, CARD_FILE):  # where the model was tested
            location = storage.join(run.location, "model", file)
            if location in sizes:
                storage.download(location, part / file)


def _download_progress(name: str, size_bytes: int) -> Callable[[int], None]:
    """A callback that shows the progress of a download, called with the bytes that are there."""

    def describe(done: int, total: int) -> str:
        return f"{100 * done // max(total, 1)} % of {format_size(total)}"

    report = progress_reporter(f"downloading {name}", describe, format_size)
    return lambda done: report(done, size_bytes)


def _restore(run: RunInfo, best: EpochRecord, part: Path, say: Say) -> None:
    """Save the model of a run that is not complete, from its best checkpoint, on the CPU."""
    with _corruption_as_error():
        config = from_dict(run.config, source=storage.join(run.location, "run.json"))
        checkpoint = read_checkpoint(storage.join(run.location, "checkpoints", run.checkpoint))
        manifest = Manifest.read(storage.join(run.location, MANIFEST_FILE))
        if checkpoint.fingerprints["data"] != manifest.fingerprint:
            raise CorruptedRunError(
                f"{MANIFEST_FILE} is not of the images that checkpoint {checkpoint.name} was trained on"
            )
        if config.weights not in ("imagenet", "none"):
            received, expected = weights_fingerprint(config), checkpoint.fingerprints["weights"]
            if received != expected:
                raise CorruptedRunError(f"weights: {config.weights} has sha256 {received}, expected {expected}")
        phase = {phase.name: phase for phase in build_phases(config)}[best.phase]
        say(f"run {run.name} is not complete and has not been tested; its model is restored from the checkpoint")
        crops = manifest.crops is not None
        _restore_model(config, phase, len(manifest.class_names), checkpoint, crops=crops).save(part / "model.keras")
        storage.write_json(str(part / "labels.json"), list(manifest.class_names))
        if manifest.white_level != MAX_VALUE:
            storage.write_json(str(part / Path(PIXELS_FILE).name), {"white_level": manifest.white_level})


def _restore_model(config: RunConfig, phase: Phase, num_classes: int, checkpoint: Checkpoint, *, crops: bool) -> Any:
    """The Keras model of a checkpoint; a ValueError where a file of it is damaged or does not match."""
    with suppress_native_stderr():
        import keras

        from pharmclf.training.save_model import restore_model

        configure_devices(deterministic=False, gpus=False)  # a run may use the GPUs
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")  # as in the models of complete runs
        try:
            return restore_model(config, phase, num_classes, checkpoint, crops=crops)
        finally:
            keras.config.set_dtype_policy(policy)
