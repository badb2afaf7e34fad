"""A whole run: images -> manifest -> splits -> training -> predictions -> metrics -> report."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import tempfile
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pharmclf import storage
from pharmclf.cli import EXIT_OK, Say, StopSignal, scan_progress
from pharmclf.config import ConfigError, RunConfig, to_dict
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import prepare, split_manifest, write_manifest
from pharmclf.data.stream import load_images
from pharmclf.evaluation.evaluate import Evaluation, classification_table, evaluate, write_evaluation
from pharmclf.evaluation.predict import predict
from pharmclf.fingerprint import fingerprint, sha256_bytes
from pharmclf.quiet import native_chatter_muted
from pharmclf.report import plots
from pharmclf.report.summary import PhaseFacts, RunFacts, progress_line, result, summary_text
from pharmclf.training.checkpoint import check_fingerprints
from pharmclf.training.job import LABELS_FILE, MODEL_FILE, TrainingJob, phase_model_file
from pharmclf.training.launch import connect, launch
from pharmclf.training.schedule import best_phase

# settings that may differ when a run is resumed: they change where and how it runs, not what it computes
_FREE = ("storage", "name", "workers", "max_bad", "checkpoint_every_s", "failures", "xla", "data", "weights")
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
        write_manifest(manifest, folder)
        if stop.received is not None:
            return stop.exit_code
        record = record or {"seconds": 0.0}
        before = record["seconds"]
        record |= {"name": config.run_name, "settings": settings, "config": to_dict(config), "fingerprints": expected}
        record |= {"versions": _versions(), "state": "running"}
        storage.write_json(storage.join(folder, "run.json"), record)
        try:
            connect()
            stop.install()
            outcome = launch(training_job(config, folder, manifest), _Console(stop, say))
            done = outcome["status"] == "complete"
            record["state"] = "trained" if done else "interrupted"
            if done:
                seconds = before + time.monotonic() - began
                _finish(config, folder, manifest, outcome, seconds, say)
                record["state"] = "complete"
        except BaseException:
            record["state"] = "failed"
            raise
        finally:
            record["seconds"] = before + time.monotonic() - began
            storage.write_json(storage.join(folder, "run.json"), record)
    return EXIT_OK if done else stop.exit_code


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
        train_rows=_rows(manifest, "train"),
        validation_rows=_rows(manifest, "validation"),
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
    if not storage.is_file(location):
        raise ConfigError(f"weights: received {config.weights!r}, expected imagenet, none, or a file that is there")
    return dataclasses.replace(config, weights=location)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What decides a run's numbers."""
    return {key: value for key, value in to_dict(config).items() if key not in _FREE}


def _rows(manifest: Manifest, split: str) -> np.ndarray:
    rows = manifest.ok
    return rows.index[rows["split"] == split].to_numpy(np.int64)


class _Console:
    """Shows a run's events, and passes signals on."""

    def __init__(self, stop: StopSignal, say: Say) -> None:
        self._stop, self._say = stop, say

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
        return self._stop.received is not None


def _finish(
    config: RunConfig, folder: str, manifest: Manifest, outcome: dict[str, Any], seconds_before: float, say: Say
) -> None:
    """Test the saved model, from images, and write evaluation, pictures and result."""
    began = time.monotonic()
    chosen = best_phase(outcome["monitors"])
    others = [name for name in outcome["best"] if name != chosen]
    class_names = tuple(storage.read_json(storage.join(folder, LABELS_FILE)))
    models = [storage.join(folder, MODEL_FILE), *(storage.join(folder, phase_model_file(name)) for name in others)]
    splits = {split: _rows(manifest, split) for split in ("validation", "test")}
    rows = np.concatenate(list(splits.values()))
    say(f"testing the saved model on {len(rows):,} images")
    paths = manifest.table["path"].tolist()
    actors = outcome["workers"]
    probabilities = predict(
        models, paths, rows, config.image_size, actors=actors, gpus=actors > 0 and outcome["device"] != "CPU"
    )
    evaluations: dict[str, Evaluation] = {}
    for split, part in splits.items():
        mine = probabilities[np.isin(rows, part)]
        target = storage.join(folder, "evaluation", split)
        evaluations[split] = _evaluate_split(manifest, part, mine[:, 0], class_names, target, config.image_size)
    test = probabilities[np.isin(rows, splits["test"])]
    phase_tests = {chosen: evaluations["test"].accuracy}
    for place, name in enumerate(others, start=1):
        table = _table(manifest, splits["test"], test[:, place], class_names)
        groups = manifest.table["group"].to_numpy()[splits["test"]]
        phase_tests[name] = evaluate(table, class_names, groups=groups, resamples=1).accuracy
    history = outcome["history"]
    best = (chosen, outcome["monitors"][chosen]["best_epoch"])
    storage.write_json(storage.join(folder, "history.json"), history)
    storage.write_bytes(storage.join(folder, "learning_curves.png"), plots.learning_curves_png(history, best=best))
    facts = RunFacts(
        name=config.run_name,
        backbone=config.backbone,
        workers=outcome["workers"],
        train_images=len(_rows(manifest, "train")),
        seconds_total=seconds_before + time.monotonic() - began,
        best_checkpoint=storage.join(folder, "checkpoints", outcome["best"][chosen]),
    )
    phases = [_phase_facts(name, history, outcome, phase_tests.get(name)) for name in outcome["best"]]
    summary = result(facts, evaluations["validation"], evaluations["test"], phases)
    storage.write_json(storage.join(folder, "result.json"), summary)
    say(classification_table(evaluations["test"]))
    say(summary_text(summary, folder))


def _phase_facts(name: str, history: list[dict[str, Any]], outcome: dict[str, Any], test: Any) -> PhaseFacts:
    epochs = [record for record in history if record["phase"] == name]
    rates = [1.0 / record["images_per_second"] for record in epochs]
    return PhaseFacts(
        name=name,
        epochs=len(epochs),
        seconds=sum(record["seconds"] for record in epochs),
        images_per_second=len(rates) / sum(rates),
        val_accuracy=outcome["monitors"][name]["best_accuracy"],
        test_accuracy=test,
    )


def _table(
    manifest: Manifest, rows: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...]
) -> pd.DataFrame:
    table = manifest.table.loc[rows, ["path", "label"]].reset_index(drop=True)
    table.insert(0, "row", rows)
    best = probabilities.argmax(axis=1)
    table["predicted"] = [class_names[number] for number in best]
    table["confidence"] = probabilities[np.arange(len(best)), best].astype(np.float64)
    return table


def _evaluate_split(
    manifest: Manifest,
    rows: np.ndarray,
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
    target: str,
    image_size: int,
) -> Evaluation:
    """Score one split, and write its numbers and pictures below `target`."""
    table = _table(manifest, rows, probabilities, class_names)
    groups = manifest.table["group"].to_numpy()[rows]
    scores = evaluate(table, class_names, groups=groups, probabilities=probabilities)
    write_evaluation(scores, table, target, probabilities=probabilities)
    storage.write_bytes(storage.join(target, "confusion_matrix.png"), plots.confusion_matrix_png(scores))
    shown = np.linspace(0, len(rows) - 1, min(len(rows), plots.NUM_SAMPLES)).round().astype(int)
    images = load_images([str(path) for path in table["path"].iloc[shown]], image_size)
    samples = plots.sample_predictions_png(images, table.iloc[shown])
    storage.write_bytes(storage.join(target, "sample_predictions.png"), samples)
    return scores


def _say_complete(folder: str, say: Say) -> int:
    say(summary_text(storage.read_json(storage.join(folder, "result.json")), folder))
    say(f"the run {folder} is complete already; give another --name to train anew")
    return EXIT_OK
