"""The end of a run: its saved models are tested from images, and the numbers, the report and the model card written."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.config import RunConfig, to_yaml
from pharmclf.core.console import Say, show_activity
from pharmclf.core.events import EpochRecord
from pharmclf.core.signals import StopRequested
from pharmclf.core.terminal import Result
from pharmclf.core.timeouts import OPTIONAL_STORAGE_S
from pharmclf.core.units import price_of
from pharmclf.core.usual_times import DRAW_S
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE
from pharmclf.data.quarantine import Quarantine
from pharmclf.evaluation.abstention_policy import DECISION_FILE, fit_policy, write_policy
from pharmclf.evaluation.accuracy_agreement import accuracy_mismatch, best_accuracy, rounding_tolerance
from pharmclf.evaluation.datasets import external_datasets, split_dataset, unknown_datasets
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.result_files import console_table, write_predictions
from pharmclf.evaluation.scoring import PredictedDataset, predict_datasets, score_dataset, score_unknown
from pharmclf.evaluation.strangeness import fit_strangeness, sample_training_rows
from pharmclf.evaluation.suspects import SUSPECTS_FILE, find_suspects, suspects_csv
from pharmclf.monitoring import HardwareAlert, NodeSample, read_alerts, read_samples
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.fonts import font_notes
from pharmclf.reporting.hardware_plots import hardware_curves
from pharmclf.reporting.hardware_text import hardware_lines
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.model_card import CARD_FILE, model_card
from pharmclf.reporting.next_steps import TrainedModel
from pharmclf.reporting.report_data import PhaseSummary, ReportData, RunSummary
from pharmclf.reporting.report_inputs import (
    build_dataset_report,
    build_set_report,
    build_unknown_report,
    describe_machine,
    load_suspects,
    write_scored_dataset,
)
from pharmclf.reporting.run_plots import learning_curves_figure
from pharmclf.reporting.run_summary import build_result, summary_text
from pharmclf.runs.folds import read_folds
from pharmclf.runs.record import REPORT_FILE, RunRecord
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION
from pharmclf.training.context import LABELS_FILE, MODEL_FILE, phase_model_file
from pharmclf.training.lr_schedule import best_phase
from pharmclf.training.train_state import TrainResult, TrainState


def run_final_evaluation(
    config: RunConfig,
    folder: str,
    manifest: Manifest,
    outcome: TrainResult,
    record: RunRecord,
    say: Say,
    quarantine: Quarantine,
    *,
    actors: int | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Test the saved models of a run on images, and write evaluation, figures, result, report and model card.

    Args:
        record: of the run, with the seconds that it has taken so far.
        quarantine: takes the images of the data set that are not what the manifest says.
        actors: processes on Ray that predict; 0: this one; None: as many as trained.
        stop_requested: whether to end before all images are predicted.

    Raises:
        ConfigError: too many images are quarantined, or a set has none left.
        StopRequested: it was; nothing is written.
    """

    def check() -> None:
        if stop_requested():
            raise StopRequested

    check()
    began, activity = time.monotonic(), show_activity()
    chosen = best_phase(outcome.monitors)
    others = [name for name in outcome.best if name != chosen]
    class_names = tuple(storage.read_json(storage.join(folder, LABELS_FILE)))
    models = [storage.join(folder, MODEL_FILE), *(storage.join(folder, phase_model_file(name)) for name in others)]
    sets = [split_dataset(manifest, split, config.data) for split in ("validation", "test")]
    sets += external_datasets(config, manifest)
    sample = dataclasses.replace(split_dataset(manifest, "train", config.data), rows=sample_training_rows(manifest))
    strangers = unknown_datasets(config, manifest)
    say(f"testing the saved model on {sum(len(images.rows) for images in [*sets, *strangers]):,} images")
    actors = outcome.workers if actors is None else actors
    with Explainer(models[0], on_ray=actors > 0) as explainer:
        gpus = actors > 0 and outcome.device != "CPU"
        predict = functools.partial(
            predict_datasets,
            image_size=config.image_size,
            locator_size=manifest.locator_size,
            actors=actors,
            gpus=gpus,
            check=check,
        )
        of_sample, *found = predict(models[:1], [sample, *sets, *strangers], with_features=True, explainer=explainer)
        found, of_strangers = found[: len(sets)], found[len(sets) :]
        sets = [part.images for part in found]
        of_others = predict(models[1:], sets[1:2])[0] if others else None
        activity.begin("scoring and drawing", DRAW_S)
        for images in [of_sample.images, *sets[:2]]:  # the others are of another manifest
            quarantine.add(images.lost)
        quarantine.check()
        for images in [*sets[2:], *(part.images for part in of_strangers)]:
            if images.lost:
                say(f"note: {images.name}: {images.notes[-1]}")
        numbers = _class_numbers(sets[0].labels, class_names)
        classes = _class_numbers(of_sample.images.labels, class_names)
        strangeness = fit_strangeness(of_sample.features, classes, found[0].features)
        scores = [strangeness(part.features) if strangeness else None for part in found]
        decision = fit_policy(
            found[0].probabilities[:, 0], numbers, sets[0].groups, config.target_error_share, scores[0]
        )
        data = build_dataset_report(quarantine.manifest)
        decision = dataclasses.replace(decision, appearance=data.appearance)
        decision = write_policy(decision, storage.join(folder, "model", DECISION_FILE), strangeness)
        validation, test, *extras = scored = [
            score_dataset(part.images, part.probabilities[:, 0], class_names, decision, score)
            for part, score in zip(found, scores, strict=True)
        ]
        held_out = read_folds(config, folder, manifest)
        unseen = [held_out] if held_out else scored[:2]  # images that the models which predicted them had not seen
        for item in [*scored, *([held_out] if held_out else [])]:
            write_scored_dataset(item, storage.join(folder, "evaluation", item.images.name), config.image_size)
        unknown = [
            score_unknown(part, class_names, decision, strangeness(part.features) if strangeness else None)
            for part in of_strangers
        ]
        for each in unknown:
            write_predictions(each.table, storage.join(folder, "evaluation", each.images.name))
        suspects = find_suspects(unseen, class_names)
        storage.write_bytes(storage.join(folder, SUSPECTS_FILE), suspects_csv(suspects))
        shown = [build_set_report(test, None, config.image_size, explainer)]
        shown += [build_set_report(extra, test, config.image_size, explainer) for extra in extras]
    phase_tests = {chosen: test.evaluation.accuracy}
    if of_others:
        phase_tests |= {name: _accuracy(of_others, place, class_names) for place, name in enumerate(others)}
    history = outcome.history
    mismatch = accuracy_mismatch(
        best_accuracy(history, chosen, outcome.monitors[chosen].best_epoch),
        found[0].probabilities[:, 0],
        numbers,
        lost=len(quarantine.rows & set(manifest.rows("validation").tolist())),
        tie=rounding_tolerance(_number_formats(config, outcome, record, chosen)),
    )
    best = (chosen, outcome.monitors[chosen].best_epoch)
    storage.write_json(storage.join(folder, "history.json"), [record.to_dict() for record in history])
    storage.write_bytes(storage.join(folder, "learning_curves.png"), png_bytes(learning_curves_figure(history, best)))
    run = RunSummary(
        name=config.run_name,
        backbone=config.backbone,
        workers=outcome.workers,
        train_images=len(manifest.rows("train")) - len(quarantine.rows & set(manifest.rows("train").tolist())),
        phases=[_phase_summary(name, history, outcome, phase_tests.get(name)) for name in outcome.best],
        seconds_total=(seconds := record.seconds + time.monotonic() - began),
        price=price_of(seconds, config.price_per_hour),
        best_checkpoint=storage.join(folder, "checkpoints", outcome.best[chosen]),
    )
    rows, findings = _read_hardware(folder)
    report = ReportData(
        run=run,
        history=history,
        best=best,
        decision=decision,
        validation=validation.evaluation,
        sets=shown,
        unknown=[build_unknown_report(each) for each in unknown],
        held_out=held_out.evaluation if held_out else None,
        suspects=load_suspects(unseen, suspects),
        num_suspects=len(suspects),
        data=data,
        config_yaml=to_yaml(config),
        versions=record.versions,
        fingerprints=record.fingerprints,
        hardware=[*describe_machine(outcome.device, outcome.workers), *hardware_lines(rows, findings)],
        hardware_curves=hardware_curves(rows, findings),
        command=record.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    trained = TrainedModel.of_run(config, folder)
    report = report.with_verdict(trained, mismatch)
    summary = build_result(report, mismatch)
    if quarantine.rows:
        quarantine.manifest.write_quarantine(storage.join(folder, QUARANTINE_FILE))
    storage.write_bytes(storage.join(folder, "model", CARD_FILE), model_card(report).encode())
    storage.write_bytes(storage.join(folder, REPORT_FILE), page_html(report).encode())
    storage.write_json(storage.join(folder, "result.json"), {SCHEMA_KEY: SCHEMA_VERSION} | summary)
    activity.close()
    say(console_table(test.evaluation))
    for line in font_notes(class_names):
        say(f"note: {line}")
    say(Result(summary_text(summary, folder, trained)))


def untested_datasets(config: RunConfig, result: Mapping[str, Any]) -> dict[str, str]:
    """The sets of `eval_data` and `unknown` that are not in the result.json of a complete run: name -> location."""
    tested = [*(result.get("extra_tests") or ()), *(result.get("unknown_tests") or ())]
    known = {(each["name"], storage.absolute(each["source"])) for each in tested}
    return {
        name: location
        for name, location in (config.eval_locations | config.unknown_locations).items()
        if (name, storage.absolute(location)) not in known
    }


def rerun_final_evaluation(
    config: RunConfig,
    folder: str,
    manifest: Manifest,
    state: Mapping[str, Any],
    result: Mapping[str, Any],
    record: RunRecord,
    say: Say,
) -> None:
    """Test the saved models of a complete run again, in this process, on all its sets.

    Args:
        state: of its last checkpoint: history, monitors and best.

    Raises:
        ConfigError: a set has nothing to score, or too many images are quarantined.
    """
    trained = TrainState()
    trained.load_state_dict(state)
    device, precision = record.device or "not known", record.resolved.precision or "float32"
    outcome = trained.to_result(device=device, precision=precision, workers=result["workers"])
    quarantine = Quarantine(manifest, config.max_invalid_share, say, storage.join(folder, QUARANTINE_FILE))
    try:
        run_final_evaluation(config, folder, manifest, outcome, record, say, quarantine, actors=0)
    finally:
        quarantine.write()


def _number_formats(config: RunConfig, outcome: TrainResult, record: RunRecord, phase: str) -> tuple[str, ...]:
    """The number formats in which a phase was validated."""
    kept = [config.feature_cache_dtype] if phase in (record.resolved.cached_phases or ()) else []
    tensor_cores = [] if outcome.device == "CPU" else ["float16"]  # float32 products are of TensorFloat-32 there
    return (outcome.precision, *kept, *tensor_cores)


def _read_hardware(folder: str) -> tuple[list[NodeSample], list[HardwareAlert]]:
    """What was read of the machines, and what was wrong with them; a report may do without."""
    try:
        with storage.timeout(OPTIONAL_STORAGE_S):
            return read_samples(folder), read_alerts(folder)
    except OSError:
        return [], []


def _class_numbers(labels: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """(n,) int64 class numbers."""
    places = {name: number for number, name in enumerate(class_names)}
    return np.array([places[label] for label in labels], np.int64)


def _accuracy(test: PredictedDataset, model: int, class_names: Sequence[str]) -> Estimate:
    """Of one of the models that predicted a set."""
    images, probabilities = test.images, test.probabilities[:, model]
    table = predictions_table(images.rows, images.paths, images.labels, probabilities, class_names)
    return evaluate(table, class_names, groups=images.groups, resamples=1).accuracy


def _phase_summary(
    name: str, history: Sequence[EpochRecord], outcome: TrainResult, test: Estimate | None
) -> PhaseSummary:
    epochs = [record for record in history if record.phase == name]
    rates = [1.0 / record.images_per_second for record in epochs]
    return PhaseSummary(
        name=name,
        epochs=len(epochs),
        seconds=sum(record.seconds for record in epochs),
        images_per_second=len(rates) / sum(rates),
        val_accuracy=epochs[outcome.monitors[name].best_epoch].val_accuracy,
        test_accuracy=test,
    )
