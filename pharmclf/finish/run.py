"""The end of a run: its saved models are tested from images, and the numbers and pictures are written."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from pharmclf import storage
from pharmclf.cli import Say
from pharmclf.config import RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.data.stream import load_images
from pharmclf.evaluation.evaluate import Evaluation, classification_table, evaluate, write_evaluation
from pharmclf.evaluation.predict import predict
from pharmclf.report import plots
from pharmclf.report.summary import PhaseFacts, RunFacts, result, summary_text
from pharmclf.training.job import LABELS_FILE, MODEL_FILE, phase_model_file
from pharmclf.training.schedule import best_phase


def finish(
    config: RunConfig, folder: str, manifest: Manifest, outcome: dict[str, Any], seconds_before: float, say: Say
) -> None:
    """Test the saved models of a run, from images, and write evaluation, pictures and result.

    Args:
        config: the run.
        folder: its folder.
        manifest: with splits.
        outcome: what `launch` returned.
        seconds_before: what the run has taken so far.
        say: takes lines for the console.
    """
    began = time.monotonic()
    chosen = best_phase(outcome["monitors"])
    others = [name for name in outcome["best"] if name != chosen]
    class_names = tuple(storage.read_json(storage.join(folder, LABELS_FILE)))
    models = [storage.join(folder, MODEL_FILE), *(storage.join(folder, phase_model_file(name)) for name in others)]
    splits = {split: manifest.rows(split) for split in ("validation", "test")}
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
        train_images=len(manifest.rows("train")),
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
