"""Evaluates a saved model on any labelled images, and writes a report; needs no run."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pharmclf import storage
from pharmclf.config import check_location, from_dict, parse_workers, to_yaml
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.terminal import Result
from pharmclf.core.units import format_count, parse_share
from pharmclf.core.usual_times import DRAW_S
from pharmclf.data.destination import check_destination
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE, manifest_cache
from pharmclf.data.quarantine import Quarantine
from pharmclf.distributed.cluster import connect, device_kind
from pharmclf.evaluation.datasets import EvalDataset, external_dataset, split_dataset
from pharmclf.evaluation.drift import describe_drift
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.result_files import console_table
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.evaluation.saved_model import SavedModel, load_model_info
from pharmclf.evaluation.scoring import predict_datasets, score_dataset
from pharmclf.progress import scan_progress
from pharmclf.reporting.fonts import font_notes
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.next_steps import TrainedModel, shown_location
from pharmclf.reporting.report_data import ReportData
from pharmclf.reporting.report_inputs import (
    build_dataset_report,
    build_set_report,
    describe_machine,
    write_scored_dataset,
)
from pharmclf.reporting.run_summary import verdict_lines
from pharmclf.runs.evaluation_options import EvaluationOptions
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, load_record

VERDICT_FILE = "verdict.json"
"""Name of the file with the keys `verdict` and `warnings`, as result.json of a run has them."""
_SPLITS = ("test", "validation")


def evaluate_saved_model(options: EvaluationOptions, say: Say) -> EvaluationResult:
    """Test a saved model, and write metrics, plots and a report.

    Returns:
        The scores.

    Raises:
        ConfigError: no model, no images, or no location for the result.
    """
    if not options.model:
        raise ConfigError("--model: received nothing, expected a run's folder or a .keras file. Give --model RUN")
    for flag in ("model", "data", "out", "storage"):
        check_location(f"--{flag}", getattr(options, flag))
    if options.out:
        check_destination("--out", storage.absolute(options.out))
    max_invalid_share, workers = (
        parse_share(options.max_invalid, "--max-invalid"),
        parse_workers(options.num_workers, "--num-workers")[1],
    )
    model = load_model_info(options.model)
    record = load_record(storage.join(model.run_folder, "run.json")) if model.run_folder else {}
    name = options.name or _dataset_name(options.data)
    out = _output_location(options, model, name)
    check_destination("--out", out)
    manifest = _training_manifest(model)
    images = _load_dataset(options, model, manifest, name, max_invalid_share)
    for note in images.notes:
        say(f"note: {note}")
    say(f"testing {model.location} on {format_count(len(images.rows), 'image')}")
    activity = show_activity()
    if workers:
        connect(allow_open=options.allow_unauthenticated_cluster)
    device = device_kind() if workers else "this process"
    with Explainer(model.location, on_ray=workers > 0) as explainer:
        ((images, probabilities, features),) = predict_datasets(
            [model.location],
            [images],
            model.image_size,
            model.locator_size,
            actors=workers,
            gpus=device == "GPU",
            with_features=model.strangeness is not None,
            explainer=explainer,
        )
        activity.begin("scoring and drawing", DRAW_S)
        quarantine = Quarantine(images.manifest, max_invalid_share, say)
        quarantine.add(images.lost)
        quarantine.check()
        strangeness = model.strangeness(features) if model.strangeness else None
        scored = score_dataset(images, probabilities[:, 0], model.labels, model.decision, strangeness)
        write_scored_dataset(scored, out, model.image_size)
        set_report = build_set_report(scored, None, model.image_size, explainer)
    config = from_dict(record["config"], source="run.json") if record else None
    data = build_dataset_report(quarantine.manifest, has_splits=options.data in _SPLITS)
    report = ReportData(
        decision=model.decision,
        sets=[set_report],
        data=data,
        config_yaml=to_yaml(config) if config else "",
        versions=record.get("versions", {}),
        fingerprints=record.get("fingerprints", {}) | {"model": model.sha256},
        hardware=describe_machine(device, workers),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    where = shown_location(model.run_folder or model.location)
    trained = TrainedModel.of_run(config, where) if config else TrainedModel(model=where, image_size=model.image_size)
    report = report.with_verdict(trained)
    location = storage.join(out, "report.html")
    storage.write_bytes(location, page_html(report).encode())
    activity.close()
    usual, here = model.decision.appearance if model.decision else None, data.appearance
    for line in describe_drift(usual, here) if usual and here else ():
        say(f"note: these images are {line}")
    say(console_table(scored.evaluation))
    for line in font_notes(model.labels):
        say(f"note: {line}")
    say(Result(f"{name}: accuracy {scored.evaluation.accuracy} on {format_count(len(images.rows), 'image')}"))
    if report.verdict:
        storage.write_json(storage.join(out, VERDICT_FILE), {SCHEMA_KEY: SCHEMA_VERSION} | report.verdict.to_dict())
        say(Result("\n".join(verdict_lines(report.verdict, report.next_steps, location))))
    return scored.evaluation


def _dataset_name(data: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", data.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
    return stem or "images"


def _output_location(options: EvaluationOptions, model: SavedModel, name: str) -> str:
    if options.out:
        return storage.absolute(options.out)
    if model.run_folder is None:
        raise ConfigError("--out: received nothing, and the model is in no run's folder. Give --out DIR")
    return storage.join(model.run_folder, "evaluation", name)


def _training_manifest(model: SavedModel) -> Manifest | None:
    location = storage.join(model.run_folder, MANIFEST_FILE) if model.run_folder else ""
    return Manifest.read(location) if location and storage.is_file(location) else None


def _load_dataset(
    options: EvaluationOptions,
    model: SavedModel,
    training: Manifest | None,
    name: str,
    max_invalid_share: float,
) -> EvalDataset:
    if options.data in _SPLITS:
        if training is None:
            raise ConfigError(f"--data {options.data}: the model has no run with images. Give a folder or list")
        return split_dataset(training, options.data, training.root)
    return external_dataset(
        name,
        options.data,
        model.labels,
        cache=manifest_cache(options.storage),
        max_invalid_share=max_invalid_share,
        known=training,
        white_level=model.white_level,
        progress=scan_progress(),
    )
