"""The content of result.json, and the summary of a run for the terminal; text without colours."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pharmclf import storage
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_duration, format_price
from pharmclf.evaluation.accuracy_agreement import AccuracyMismatch
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.prediction_sets import SetScores
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.evaluation.verdict import Verdict
from pharmclf.reporting.next_steps import NextStep, TrainedModel, next_steps, report_link, shown_location
from pharmclf.reporting.report_data import EvalSetReport, ReportData, UnknownReport
from pharmclf.reporting.text_format import phase_name

WIDTH = 80
"""Columns of a terminal that a summary fits, but for locations."""
_MAX_REASONS = 6


def build_result(report: ReportData, mismatch: AccuracyMismatch | None = None) -> dict[str, Any]:
    """The content of result.json; intervals are [low, high], 95 %; unknown numbers are None.

    Args:
        mismatch: of the saved model with the epoch that it was saved from; None: they agree.

    Raises:
        ValueError: a report without a run or its validation scores.
    """
    run, validation, test, decision = report.run, report.validation, report.test.evaluation, report.decision
    if run is None or validation is None:
        raise ValueError("report: received none of a run, expected one with a run and its validation scores")
    answered = test.answered
    return {
        "name": run.name,
        "backbone": run.backbone,
        "workers": run.workers,
        "train_images": run.train_images,
        "val_images": validation.num_images,
        "test_images": test.num_images,
        **_score("val_accuracy", validation.accuracy),
        **_score("test_accuracy", test.accuracy),
        **_score("test_macro_f1", test.macro_f1),
        "phases": [
            {
                "name": phase.name,
                "epochs": phase.epochs,
                "seconds": _finite(phase.seconds),
                "images_per_second": _finite(phase.images_per_second),
                "val_accuracy": _finite(phase.val_accuracy),
                **_score("test_accuracy", phase.test_accuracy),
            }
            for phase in run.phases
        ],
        **_score("test_calibration_error", test.calibration_error),
        "temperature": decision.temperature if decision else None,
        "threshold": decision.threshold if decision else None,
        "threshold_assured": decision.assured if decision else None,
        "max_error": decision.max_error if decision else None,
        **_score("test_answered", answered.coverage if answered else None),
        **_score("test_answered_error", answered.error if answered else None),
        **_held_out_result(report.held_out),
        **_set_result(test.sets),
        **(_score("test_unknown", test.unknown) if test.unknown else {}),
        "extra_tests": [_extra_result(extra) for extra in report.sets[1:]],
        **({"unknown_tests": [_unknown_result(item) for item in report.unknown]} if report.unknown else {}),
        "val_accuracy_mismatch": vars(mismatch) if mismatch else None,
        "seconds_total": _finite(run.seconds_total),
        **({} if run.price is None else {"price": run.price}),
        "best_checkpoint": run.best_checkpoint,
        **(report.verdict.to_dict() if report.verdict else {}),
    }


def _held_out_result(scores: EvaluationResult | None) -> dict[str, Any]:
    if scores is None:
        return {}
    named = _score("held_out_accuracy", scores.accuracy) | _score("held_out_macro_f1", scores.macro_f1)
    return {"held_out_images": scores.num_images, **named}


def _set_result(scores: SetScores | None) -> dict[str, Any]:
    if scores is None:
        return {}
    return _score("test_set_coverage", scores.coverage) | {"test_set_size": scores.mean_size}


def _extra_result(facts: EvalSetReport) -> dict[str, Any]:
    return {
        "name": facts.name,
        "source": facts.source,
        "images": facts.evaluation.num_images,
        **_score("accuracy", facts.evaluation.accuracy),
        **_score("macro_f1", facts.evaluation.macro_f1),
        **_score("difference", facts.drop),
    }


def _unknown_result(facts: UnknownReport) -> dict[str, Any]:
    scores = _score("answered", facts.answered) | _score("unknown", facts.unknown)
    return {"name": facts.name, "source": facts.source, "images": facts.num_images, **scores}


def _score(name: str, estimate: Estimate | None) -> dict[str, Any]:
    interval = [estimate.low, estimate.high] if estimate else None
    return {name: estimate.value if estimate else None, f"{name}_interval": interval}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def summary_text(result: Mapping[str, Any], folder: str, trained: TrainedModel) -> str:
    """The summary of a run for the terminal: scores, phases, verdict, next commands, and where the report is."""
    workers = {0: "in one process", 1: "1 worker"}.get(result["workers"], f"{result['workers']} workers")
    took = format_duration(result["seconds_total"])
    took += f", price {format_price(result['price'])}" if "price" in result else ""
    head = f"{result['name']}: {result['backbone']}, {result['train_images']:,} training images, {workers}, {took}"
    extras, unknown, folds = (result.get(key) or () for key in ("extra_tests", "unknown_tests", "held_out_images"))
    scores = [
        ["", "images", "score", "95 % interval"],
        _score_row("validation accuracy", result, "val_accuracy", result["val_images"]),
        _score_row("test accuracy", result, "test_accuracy", result["test_images"]),
        _score_row("test macro F1", result, "test_macro_f1", result["test_images"]),
        *([_score_row("held-out accuracy", result, "held_out_accuracy", folds)] if folds else []),
        *(_score_row(f"{extra['name']} accuracy", extra, "accuracy", extra["images"]) for extra in extras),
        *(_score_row(f"{item['name']} answered", item, "answered", item["images"]) for item in unknown),
    ]
    phases = [["", "epochs", "time", "images/s", "validation", "test", "95 % interval"]]
    for phase in result["phases"]:
        score = _score_row(phase_name(phase["name"]), phase, "test_accuracy", phase["epochs"])
        speed = _format_number(phase["images_per_second"], ".0f")
        validation = _format_number(phase["val_accuracy"], ".3f")
        phases.append([*score[:2], format_duration(phase["seconds"]), speed, validation, *score[2:]])
    trained = dataclasses.replace(trained, model=shown_location(trained.model))
    report, verdict = storage.join(folder, "report.html"), Verdict.from_dict(result)
    end = (
        verdict_lines(verdict, next_steps(verdict, trained), report) if verdict else [f"report: {report_link(report)}"]
    )
    return "\n".join(["", head, "", *_table(scores), "", *_table(phases), *_answers_lines(result), "", *end])


def verdict_lines(verdict: Verdict, steps: Sequence[NextStep], report: str) -> list[str]:
    """A verdict with its reasons, the next commands, and the address of the report, as lines for the terminal."""
    lines = _wrap(f"verdict: {verdict.level}: {verdict.level.meaning}", "")
    shown = verdict.reasons[:_MAX_REASONS]
    for reason, following in itertools.zip_longest(shown, shown[1:]):
        lines += _wrap(reason.text, "  - ")
        if following is None or following.remedy != reason.remedy:  # once for several groups of look-alikes
            lines += _wrap(reason.remedy, "    ")
    if len(verdict.reasons) > _MAX_REASONS:
        lines.append(f"  - and {len(verdict.reasons) - _MAX_REASONS} more in the report")
    lines += ["", "next:"]
    for step in steps:
        lines += [f"  {step.command}", f"      {step.purpose}"]
    return ["-" * WIDTH, *lines, "", f"report: {report_link(report)}"]


def _wrap(text: str, indent: str) -> list[str]:
    """Lines of at most `WIDTH` columns; the first one begins with the indent, the others with blanks."""
    after = " " * len(indent)
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=after, break_on_hyphens=False)


def _answers_lines(result: Mapping[str, Any]) -> list[str]:
    """The shares of images that the model answers, and answers wrongly."""
    if result.get("threshold") is None:
        return []
    share, error = result["test_answered"], result["test_answered_error"]
    if not share or error is None:
        most = 100 * result["max_error"]
        text = f"no answer is sure enough for an error of at most {most:.1f} %: all images go to people"
    else:
        low, high = result["test_answered_error_interval"]
        text = (
            f"from a confidence of {result['threshold']:.3f} it answers {100 * share:.1f} % of the test images by "
            f"itself, {100 * error:.1f} % of them wrongly ({100 * low:.1f}-{100 * high:.1f} %)"
        )
    lines = ["", *_wrap(text, "  ")]
    if (share := result.get("test_set_coverage")) is not None:
        size = f"{result['test_set_size']:.1f} on average"
        lines += _wrap(f"the classes that an image may be, {size}, hold its true one for {100 * share:.1f} %", "  ")
    if (share := result.get("test_unknown")) is not None:
        lines += _wrap(
            f"it calls {100 * share:.1f} % of the test images unknown: they look like no training image", "  "
        )
    return lines


def _score_row(title: str, values: Mapping[str, Any], key: str, count: int) -> list[str]:
    interval = values[f"{key}_interval"]
    shown = f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "-"
    return [title, f"{count:,}", _format_number(values[key], ".3f"), shown]


def _format_number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(rows: list[list[str]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, the others to the right."""
    return [f"  {line}" for line in align_columns(rows, left=[0])]
