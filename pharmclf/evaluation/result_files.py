"""The files of an evaluation: report.txt, metrics.json and predictions.parquet; and its table for the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_count
from pharmclf.evaluation.evaluate import ABSTAIN, COLUMNS, STRANGENESS, UNKNOWN
from pharmclf.evaluation.metrics import ConfusionCounts, Estimate, OperatingPoint, RiskCoverage
from pharmclf.evaluation.prediction_sets import SetScores
from pharmclf.evaluation.results import ClassResult, EvaluationResult, most_confused_pairs

SCHEMA_VERSION = 2
MAX_OPEN_CLASSES = 30
"""Up to so many classes, a table in the terminal or on a page shows all; of more, the weakest."""
WEAKEST = 20
MAX_MATRIX_CLASSES = 200
"""Up to so many classes metrics.json has the full confusion matrix, of more the class numbers of its cells."""
_CURVE_POINTS = 200
_LISTED_MISTAKES = 20
_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_UNKNOWN = "-"  # in place of a score of 0 that rests on no image
_GROUP_NUMBERS = 2**24  # probabilities in a row group of predictions.parquet: 64 MiB


def classification_table(evaluation: EvaluationResult) -> str:
    """Precision, recall and F1 of all classes as aligned text, each with its interval; - where nothing is known."""
    rows = [("class", "precision", "recall", "F1", "images"), *map(_class_row, evaluation.classes)]
    rows.append(("macro average", "", "", str(evaluation.macro_f1), f"{evaluation.num_images:,}"))
    rows.append(("accuracy", "", "", str(evaluation.accuracy), f"{evaluation.num_images:,}"))
    lines = align_columns(rows, left=[0])
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def console_table(evaluation: EvaluationResult) -> str:
    """The classes for a terminal of 80 columns; of more than `MAX_OPEN_CLASSES` the `WEAKEST`, by rising F1."""
    classes, left_out = list(evaluation.classes), 0
    if len(classes) > MAX_OPEN_CLASSES:
        left_out = len(classes) - WEAKEST
        classes = sorted(classes, key=lambda result: (not result.has_examples, result.f1.value))[:WEAKEST]
    rows = [("class", "images", "recall", "95 % interval", "precision", "F1"), *map(_short_class_row, classes)]
    note = [f"(the {WEAKEST} classes with the lowest F1; {left_out:,} more are in report.txt)"] if left_out else []
    return "\n".join([*align_columns(rows, left=[0]), *note])


def _short_class_row(result: ClassResult) -> tuple[str, str, str, str, str, str]:
    recall = result.recall
    known = (f"{recall.value:.3f}", f"{recall.low:.3f}-{recall.high:.3f}") if result.support else (_UNKNOWN, _UNKNOWN)
    return (
        result.name,
        f"{result.support:,}",
        *known,
        f"{result.precision.value:.3f}" if result.predicted else _UNKNOWN,
        f"{result.f1.value:.3f}" if result.has_examples else _UNKNOWN,
    )


def _class_row(result: ClassResult) -> tuple[str, str, str, str, str]:
    return (
        result.name,
        str(result.precision) if result.predicted else _UNKNOWN,
        str(result.recall) if result.support else _UNKNOWN,
        str(result.f1) if result.has_examples else _UNKNOWN,
        f"{result.support:,}",
    )


def report_text(evaluation: EvaluationResult, predictions: pd.DataFrame) -> str:
    """The content of report.txt: scores, classes, what is answered, confused pairs, and the surest mistakes."""
    count = format_count(evaluation.num_images, "image")
    if evaluation.num_groups != evaluation.num_images:
        count += f" in {format_count(evaluation.num_groups, 'group')} of near duplicates"
    lines = [f"{count}, {len(evaluation.classes)} classes; in brackets: 95 % intervals", ""]
    lines += [classification_table(evaluation), ""]
    lines += [_line(f"top-{k} accuracy", estimate) for k, estimate in evaluation.top_k_accuracy.items()]
    lines.append(_line("calibration error", evaluation.calibration_error))
    if evaluation.raw_calibration_error:
        lines.append(_line("  before temperature scaling", evaluation.raw_calibration_error))
    if evaluation.answered:
        lines += ["", *_answered_lines(evaluation.answered)]
    if evaluation.unknown:
        lines.append(_line("  called unknown", evaluation.unknown))
    if evaluation.sets:
        lines += ["", *_set_lines(evaluation.sets, evaluation.class_names)]
    lines += ["", *_coverage_lines(evaluation.risk_coverage), "", "Most confused pairs (true -> predicted)"]
    pairs = most_confused_pairs(evaluation)
    lines += [f"{pair.count:6,}  {pair.share:4.0%}  {pair.label} -> {pair.predicted}" for pair in pairs] or ["  none"]
    return "\n".join([*lines, "", *_mistake_lines(predictions)]) + "\n"


def _line(title: str, estimate: Estimate) -> str:
    return f"{title:<28}  {estimate}"


def _answered_lines(point: OperatingPoint) -> list[str]:
    left = point.num_images - point.num_answered
    if point.error is None:
        return [f"Answered by the model: none; {left:,} images are left to a human"]
    return [
        f"Answered by the model: confidence of at least {point.threshold:.6g}; {left:,} images are left to a human",
        _line("  share answered", point.coverage),
        _line("  error among answered", point.error),
    ]


def _set_lines(scores: SetScores, names: Sequence[str]) -> list[str]:
    """How often the true class is among the possible classes, and which classes go together."""
    lines = [f"Possible classes of an image: {scores.mean_size:.2f} on average"]
    lines += [_line("  true class among them", scores.coverage), _line("  one class", scores.single)]
    return lines + [f"{count:6,}  {', '.join(names[number] for number in classes)}" for classes, count in scores.common]


def _coverage_lines(curve: RiskCoverage) -> list[str]:
    """The error at some shares of answered images, the surest first; images of one confidence are answered together."""
    lines = ["Error among the images it is surest of", "  answered   confidence   error"]
    for place in sorted({int(curve.coverage.searchsorted(share - 1e-12)) for share in _COVERAGES}):
        answered, threshold, error = curve.coverage[place], curve.thresholds[place], curve.error[place]
        lines.append(f"  {answered:8.1%}   {threshold:10.6f}   {error:.4f}")
    return lines


def _mistake_lines(predictions: pd.DataFrame) -> list[str]:
    wrong = predictions[predictions["label"].astype(str) != predictions["predicted"].astype(str)]
    wrong = wrong.sort_values(["confidence", "row"], ascending=[False, True], kind="stable")
    lines = [f"Mistakes ({len(wrong):,}), the surest first"]
    for item in wrong.head(_LISTED_MISTAKES).itertuples():
        lines.append(f"  {item.confidence:.3f}  {item.label} -> {item.predicted}  {item.path}")
    more = len(wrong) - _LISTED_MISTAKES
    if more > 0:
        lines.append(f"  and {more:,} more in predictions.parquet")
    return lines if len(wrong) else [*lines, "  none"]


def to_dict(evaluation: EvaluationResult) -> dict[str, Any]:
    """The evaluation as plain values for JSON; every estimate is {value, low, high}, what is not known is None."""
    curve = evaluation.risk_coverage.downsampled(_CURVE_POINTS)
    return {
        "schema_version": SCHEMA_VERSION,
        "num_images": evaluation.num_images,
        "num_groups": evaluation.num_groups,
        "interval": "95 %; Wilson at the effective sample size, for macro F1 and calibration a bootstrap over groups",
        "accuracy": dataclasses.asdict(evaluation.accuracy),
        "macro_f1": dataclasses.asdict(evaluation.macro_f1),
        "top_k_accuracy": {str(k): dataclasses.asdict(item) for k, item in evaluation.top_k_accuracy.items()},
        "calibration_error": dataclasses.asdict(evaluation.calibration_error),
        "raw_calibration_error": _as_dict(evaluation.raw_calibration_error),
        "reliability": [dataclasses.asdict(part) for part in evaluation.reliability],
        "answered": _as_dict(evaluation.answered),
        "sets": _sets_to_dict(evaluation),
        "unknown": _as_dict(evaluation.unknown),
        "risk_coverage": {name: points.tolist() for name, points in vars(curve).items()},
        "classes": [dataclasses.asdict(item) for item in evaluation.classes],
        "most_confused_pairs": [dataclasses.asdict(pair) for pair in most_confused_pairs(evaluation)],
        **_confusion(evaluation.cells),
    }


def _sets_to_dict(evaluation: EvaluationResult) -> dict[str, Any] | None:
    if evaluation.sets is None:
        return None
    names, scores = evaluation.class_names, evaluation.sets
    common = [{"classes": [names[number] for number in classes], "images": count} for classes, count in scores.common]
    return dataclasses.asdict(scores) | {"common": common}


def _confusion(cells: ConfusionCounts) -> dict[str, Any]:
    """The full matrix of few classes; of many, whose matrix would be nearly all zeros, the cells that hold images."""
    if cells.num_classes <= MAX_MATRIX_CLASSES:
        return {"confusion": cells.matrix().tolist()}
    parts = {"true": cells.truth, "predicted": cells.predicted, "images": cells.counts}
    return {"confusion": None, "confusion_cells": {name: part.tolist() for name, part in parts.items()}}


def _as_dict(value: Estimate | OperatingPoint | None) -> dict[str, Any] | None:
    return dataclasses.asdict(value) if value else None


def _write_parquet(table: pa.Table, probabilities: tuple[np.ndarray, np.ndarray] | None, sink: Any) -> None:
    """Write a table with the probabilities, (n, classes) and the order of their rows, in row groups that fit memory."""
    if probabilities is None:
        pq.write_table(table, sink, compression="zstd")
        return
    values, order = probabilities
    num_classes = values.shape[1]
    schema = table.schema.append(pa.field("probabilities", pa.list_(pa.float32(), num_classes)))
    step = max(1, _GROUP_NUMBERS // num_classes)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(order), step):
            flat = pa.array(np.ascontiguousarray(values[order[start : start + step]], np.float32).ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, num_classes)
            writer.write_table(table.slice(start, step).append_column(schema.field("probabilities"), column))


def write_evaluation(
    evaluation: EvaluationResult, predictions: pd.DataFrame, location: str, *, probabilities: np.ndarray | None = None
) -> list[str]:
    """Write predictions.parquet, report.txt and, last, metrics.json below a folder or prefix.

    Args:
        evaluation: the scores.
        predictions: the table of predictions, in any order; it is written sorted by `row`.
        location: the folder or prefix.
        probabilities: (n, classes) in the table's order, as the model gives them (before temperature scaling, unlike
            `confidence`): the column `probabilities`, a list of float32; left out without them.

    Returns:
        The three locations.
    """
    locations = [storage.join(location, name) for name in ("report.txt", "metrics.json")]
    table = write_predictions(predictions, location, probabilities=probabilities)
    storage.write_bytes(locations[0], report_text(evaluation, predictions).encode())
    storage.write_json(locations[1], to_dict(evaluation))
    return [table, *locations]


def write_predictions(predictions: pd.DataFrame, location: str, *, probabilities: np.ndarray | None = None) -> str:
    """Write predictions.parquet below a folder or prefix -> its location; the arguments are those of the evaluation."""
    order = np.argsort(predictions["row"].to_numpy(), kind="stable")
    columns = [*COLUMNS, *(name for name in (ABSTAIN, STRANGENESS, UNKNOWN) if name in predictions)]
    table = pa.Table.from_pandas(predictions[columns].iloc[order], preserve_index=False)
    sink = pa.BufferOutputStream()
    _write_parquet(table, None if probabilities is None else (probabilities, order), sink)
    storage.write_bytes(written := storage.join(location, "predictions.parquet"), sink.getvalue().to_pybytes())
    return written
