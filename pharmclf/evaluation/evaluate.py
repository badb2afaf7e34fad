"""From predictions to an evaluation: every number with its 95 % interval, and the files that keep it.

A predictions table has one row per image: `row` (int64, row of the manifest), `path`, `label` (true class, text),
`predicted` (text) and `confidence` (probability of the predicted class, 0..1). Probabilities of all classes are an
array of their own, (images, classes) float32 in the table's order: a list column would be slow and large in memory.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import metrics, storage
from pharmclf.metrics import Estimate

COLUMNS = ("row", "path", "label", "predicted", "confidence")
SCHEMA_VERSION = 1
_TOP_K = (3, 5)
_LISTED_MISTAKES = 20


@dataclass(frozen=True)
class ClassResult:
    """What was measured for one class."""

    name: str
    support: int
    """Images of this class."""
    predicted: int
    """Images given this class."""
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were given another."""

    label: str
    """The true class."""
    predicted: str
    """The class given."""
    count: int
    """Images."""
    share: float
    """Share of the true class's images, 0..1."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one model on one set of images; classes stand in the order of the model's outputs."""

    num_images: int
    num_groups: int
    """Groups of near duplicates among the images; as many as images where there are none."""
    accuracy: Estimate
    macro_f1: Estimate
    top_k_accuracy: dict[int, Estimate]
    """k -> share of the images whose class is among the k most probable; only k below the number of classes."""
    calibration_error: Estimate
    """Expected calibration error, 0..1."""
    classes: tuple[ClassResult, ...]
    confusion: np.ndarray
    """(classes, classes) int64; row: true class, column: predicted class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(result.name for result in self.classes)


def evaluate(
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    *,
    groups: Any,
    probabilities: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions.

    Args:
        predictions: one row per image with the columns row, path, label, predicted, confidence.
        class_names: the classes in the order of the model's outputs.
        groups: (n,) numbers or texts in the table's order; images of one group are near duplicates.
        probabilities: (n, classes) floats in the table's order, for the top-k accuracy; left out without them.
        resamples: draws of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        ValueError: no rows, a missing column, an unknown class, or arrays that do not fit the table.
    """
    names = list(class_names)
    _check(predictions, names, groups)
    truth, predicted = (_numbers(predictions[column], names, column) for column in ("label", "predicted"))
    confidence = predictions["confidence"].to_numpy(np.float64)
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError("confidence: received values that are not numbers from 0 to 1, expected probabilities")
    codes = pd.factorize(np.asarray(groups))[0]
    top_k = {}
    if probabilities is not None:
        _check_probabilities(probabilities, predicted, len(names))
        for k in (k for k in _TOP_K if k < len(names)):
            top_k[k] = metrics.proportion(metrics.top_k_hits(truth, probabilities, k), codes)
    correct = truth == predicted
    error = metrics.calibration_error(confidence, correct)
    low, high = metrics.bootstrap_interval(
        lambda weights: metrics.calibration_error(confidence, correct, weights), codes, resamples=resamples, seed=seed
    )
    classes = []
    for number, name in enumerate(names):
        mine, given = truth == number, predicted == number
        precision = metrics.proportion(correct[given], codes[given])
        recall = metrics.proportion(correct[mine], codes[mine])
        f1 = metrics.class_f1(truth, predicted, number, codes)
        classes.append(ClassResult(name, int(mine.sum()), int(given.sum()), precision, recall, f1))
    return Evaluation(
        num_images=len(predictions),
        num_groups=int(codes.max()) + 1,
        accuracy=metrics.proportion(correct, codes),
        macro_f1=metrics.macro_f1(truth, predicted, len(names), groups=codes, resamples=resamples, seed=seed),
        top_k_accuracy=top_k,
        calibration_error=Estimate(error, min(low, error), max(high, error)),
        classes=tuple(classes),
        confusion=metrics.confusion_matrix(truth, predicted, len(names)),
    )


def _check(predictions: pd.DataFrame, names: list[str], groups: Any) -> None:
    if missing := [column for column in COLUMNS if column not in predictions.columns]:
        raise ValueError(f"predictions: columns {missing} are missing, expected {list(COLUMNS)}")
    if predictions.empty:
        raise ValueError("predictions: received no rows, expected at least one image")
    if len(set(names)) != len(names):
        raise ValueError("class_names: a name stands there twice, expected every class once")
    if len(groups) != len(predictions) or pd.isna(np.asarray(groups)).any():
        raise ValueError(f"groups: received {len(groups)}, expected one value for each of {len(predictions)} images")


def _check_probabilities(probabilities: np.ndarray, predicted: np.ndarray, num_classes: int) -> None:
    expected = (len(predicted), num_classes)
    if probabilities.shape != expected:
        raise ValueError(f"probabilities: received shape {probabilities.shape}, expected {expected}")
    own = probabilities[np.arange(len(predicted)), predicted]
    if not (own >= probabilities.max(axis=1) - 1e-3).all():
        raise ValueError(
            "probabilities: not finite, or the largest is not that of `predicted`; give both in one order of rows"
        )


def _numbers(column: pd.Series, names: list[str], what: str) -> np.ndarray:
    """(n,) int64 class numbers of a column of class names."""
    numbers = pd.Index(names).get_indexer(pd.Index(column))
    if (numbers < 0).any():
        unknown = sorted({str(name) for name in column[numbers < 0]})
        listed = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise ValueError(f"{what}: {listed}: not among the model's {len(names)} classes. Leave these images out")
    return np.asarray(numbers, np.int64)


def most_confused_pairs(evaluation: Evaluation, limit: int = 10) -> list[ConfusedPair]:
    """The pairs (true class, given class) with most images; equal ones by share, then in the order of the classes."""
    mistakes = evaluation.confusion - np.diag(np.diagonal(evaluation.confusion))
    pairs = []
    for label, predicted in np.argwhere(mistakes):
        count, support = int(mistakes[label, predicted]), evaluation.classes[label].support
        names = evaluation.class_names
        pairs.append(ConfusedPair(names[label], names[predicted], count, count / support))
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:limit]


def classification_table(evaluation: Evaluation, *, worst: int | None = None) -> str:
    """Precision, recall and F1 of the classes as aligned text, each with its interval.

    Args:
        evaluation: what to show.
        worst: show only this many classes, those with the lowest F1 first; all in the model's order if not given.
    """
    classes = list(evaluation.classes)
    if worst is not None and worst < len(classes):
        classes = sorted(classes, key=lambda result: result.f1.value)[:worst]
    seen = [(item.name, str(item.precision), str(item.recall), str(item.f1), f"{item.support:,}") for item in classes]
    rows = [("class", "precision", "recall", "F1", "images"), *seen]
    rows.append(("macro average", "", "", str(evaluation.macro_f1), f"{evaluation.num_images:,}"))
    rows.append(("accuracy", "", "", str(evaluation.accuracy), f"{evaluation.num_images:,}"))
    widths = [max(_width(row[index]) for row in rows) for index in range(5)]
    lines = []
    for row in rows:
        cells = [row[0] + " " * (widths[0] - _width(row[0]))]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(len(line) for line in lines)
    left_out = len(evaluation.classes) - len(classes)
    note = [f"(the {len(classes)} classes with the lowest F1; {left_out} more are in report.txt)"] if left_out else []
    return "\n".join([lines[0], rule, *lines[1:-2], *note, rule, *lines[-2:]])


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: wide East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def report_text(evaluation: Evaluation, predictions: pd.DataFrame) -> str:
    """The whole report: scores, classes, confused pairs, and the mistakes that the model was surest of."""
    count = f"{evaluation.num_images:,} images"
    if evaluation.num_groups != evaluation.num_images:
        count += f" in {evaluation.num_groups:,} groups of near duplicates"
    lines = [f"{count}, {len(evaluation.classes)} classes; in brackets: 95 % intervals", ""]
    lines += [classification_table(evaluation), ""]
    lines += [f"top-{k} accuracy     {estimate}" for k, estimate in evaluation.top_k_accuracy.items()]
    lines += [f"calibration error  {evaluation.calibration_error}", "", "Most confused pairs (true -> predicted)"]
    pairs = most_confused_pairs(evaluation)
    lines += [f"{pair.count:6,}  {pair.share:4.0%}  {pair.label} -> {pair.predicted}" for pair in pairs] or ["  none"]
    wrong = predictions[predictions["label"].astype(str) != predictions["predicted"].astype(str)]
    wrong = wrong.sort_values(["confidence", "row"], ascending=[False, True], kind="stable")
    lines += ["", f"Mistakes ({len(wrong):,}), the surest first"]
    for item in wrong.head(_LISTED_MISTAKES).itertuples():
        lines.append(f"  {item.confidence:.3f}  {item.label} -> {item.predicted}  {item.path}")
    more = len(wrong) - _LISTED_MISTAKES
    lines += [f"  and {more:,} more in predictions.parquet"] if more > 0 else [] if len(wrong) else ["  none"]
    return "\n".join(lines) + "\n"


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values for JSON; every estimate is {value, low, high}."""
    return {
        "schema_version": SCHEMA_VERSION,
        "num_images": evaluation.num_images,
        "num_groups": evaluation.num_groups,
        "interval": "95 %; Wilson at the effective sample size, for macro F1 and calibration a bootstrap over groups",
        "accuracy": dataclasses.asdict(evaluation.accuracy),
        "macro_f1": dataclasses.asdict(evaluation.macro_f1),
        "top_k_accuracy": {str(k): dataclasses.asdict(item) for k, item in evaluation.top_k_accuracy.items()},
        "calibration_error": dataclasses.asdict(evaluation.calibration_error),
        "classes": [dataclasses.asdict(item) for item in evaluation.classes],
        "most_confused_pairs": [dataclasses.asdict(pair) for pair in most_confused_pairs(evaluation)],
        "confusion": evaluation.confusion.tolist(),
    }


def write_evaluation(
    evaluation: Evaluation, predictions: pd.DataFrame, location: str, *, probabilities: np.ndarray | None = None
) -> list[str]:
    """Write predictions.parquet, report.txt and, last, metrics.json below a folder or prefix.

    Rows of predictions.parquet are sorted by `row`; with `probabilities` they have a column of that name.

    Returns:
        The three locations.
    """
    order = np.argsort(predictions["row"].to_numpy(), kind="stable")
    table = pa.Table.from_pandas(predictions[list(COLUMNS)].iloc[order], preserve_index=False)
    if probabilities is not None:
        flat = pa.array(np.ascontiguousarray(probabilities[order], np.float32).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1])
        table = table.append_column("probabilities", column)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    names = ("predictions.parquet", "report.txt", "metrics.json")
    locations = [storage.join(location, name) for name in names]
    storage.write_bytes(locations[0], sink.getvalue().to_pybytes())
    storage.write_bytes(locations[1], report_text(evaluation, predictions).encode())
    storage.write_json(locations[2], to_dict(evaluation))
    return locations
