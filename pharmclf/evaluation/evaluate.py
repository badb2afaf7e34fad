"""From predictions to an evaluation: every number with its 95 % interval.

The parts stand in modules of their own and are named here too: the table of predictions, what an evaluation holds, its
text and its files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pharmclf.core.units import format_examples
from pharmclf.evaluation import metrics
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.predictions_table import ABSTAIN, COLUMNS, predictions_table
from pharmclf.evaluation.results import ClassResult, ConfusedPair, Evaluation, accuracy_difference, most_confused_pairs
from pharmclf.evaluation.text import classification_table, console_table, report_text
from pharmclf.evaluation.write import to_dict, write_evaluation

__all__ = [
    "ABSTAIN",
    "COLUMNS",
    "ClassResult",
    "ConfusedPair",
    "Evaluation",
    "accuracy_difference",
    "classification_table",
    "console_table",
    "evaluate",
    "most_confused_pairs",
    "predictions_table",
    "report_text",
    "to_dict",
    "write_evaluation",
]

_TOP_K = (3, 5)


def evaluate(
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    *,
    groups: Any,
    probabilities: np.ndarray | None = None,
    decision: AbstentionPolicy | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions.

    Args:
        predictions: one row per image with the columns row, path, label, predicted, confidence; see
            `predictions_table`.
        class_names: the classes in the order of the model's outputs; the images need not be of all of them.
        groups: (n,) numbers or texts in the table's order; images of one group are near duplicates.
        probabilities: (n, classes) floats in the table's order, as the model gives them, for the top-k accuracy and the
            calibration before temperature scaling; both are left out without them.
        decision: the model's temperature, with which the table was made, and its threshold, if it has them.
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
    if probabilities is not None:
        _check_probabilities(probabilities, predicted, len(names))
        _check_temperature(probabilities, confidence, decision)
    codes = pd.factorize(np.asarray(groups))[0]
    correct = truth == predicted
    draws: dict[str, Any] = {"groups": codes, "resamples": resamples, "seed": seed}
    raw = probabilities.max(axis=1).astype(np.float64) if decision and probabilities is not None else None
    return Evaluation(
        num_images=len(predictions),
        num_groups=int(codes.max()) + 1,
        accuracy=metrics.proportion(correct, codes),
        macro_f1=metrics.macro_f1(truth, predicted, len(names), **draws),
        top_k_accuracy=_top_k(truth, probabilities, codes),
        calibration_error=_calibration(confidence, correct, **draws),
        raw_calibration_error=_calibration(raw, correct, **draws) if raw is not None else None,
        reliability=metrics.reliability(confidence, correct, codes),
        risk_coverage=metrics.risk_coverage(confidence, correct),
        answered=metrics.operating_point(confidence, correct, codes, decision.threshold) if decision else None,
        classes=tuple(_class_results(truth, predicted, names, codes)),
        cells=metrics.confusion_counts(truth, predicted, len(names)),
    )


def _top_k(truth: np.ndarray, probabilities: np.ndarray | None, codes: np.ndarray) -> dict[int, Estimate]:
    if probabilities is None:
        return {}
    fitting = [k for k in _TOP_K if k < probabilities.shape[1]]
    return {k: metrics.proportion(metrics.top_k_hits(truth, probabilities, k), codes) for k in fitting}


def _calibration(
    confidence: np.ndarray, correct: np.ndarray, *, groups: np.ndarray, resamples: int, seed: int
) -> Estimate:
    """Expected calibration error with its interval from a bootstrap over groups."""
    error = metrics.calibration_error(confidence, correct)
    low, high = metrics.bootstrap_interval(
        lambda weights: metrics.calibration_error(confidence, correct, weights), groups, resamples=resamples, seed=seed
    )
    return Estimate(error, min(low, error), max(high, error))


def _class_results(
    truth: np.ndarray, predicted: np.ndarray, names: list[str], codes: np.ndarray
) -> Iterator[ClassResult]:
    """Each class from its own rows: all rows for each of 10,000 classes would take minutes."""
    of_class, given_class = (_rows_of(numbers, len(names)) for numbers in (truth, predicted))
    correct = truth == predicted
    for number, (name, mine, given) in enumerate(zip(names, of_class, given_class, strict=True)):
        either = np.union1d(mine, given)
        yield ClassResult(
            name=name,
            support=len(mine),
            predicted=len(given),
            precision=metrics.proportion(correct[given], codes[given]),
            recall=metrics.proportion(correct[mine], codes[mine]),
            f1=metrics.class_f1(truth[either], predicted[either], number, codes[either]),
        )


def _rows_of(numbers: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """For each class, the rows that hold its number, in their order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, num_classes)))


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


def _check_temperature(probabilities: np.ndarray, confidence: np.ndarray, decision: AbstentionPolicy | None) -> None:
    """A threshold means nothing for confidences of another temperature."""
    if decision and np.abs(metrics.most_probable(probabilities, decision.temperature)[1] - confidence).max() > 1e-3:
        raise ValueError(
            f"confidence: received values that are not those of temperature {decision.temperature:.6g}; "
            "make the table with `predictions_table` and the same decision"
        )


def _numbers(column: pd.Series, names: list[str], what: str) -> np.ndarray:
    """(n,) int64 class numbers of a column of class names."""
    numbers = pd.Index(names).get_indexer(pd.Index(column))
    if (numbers < 0).any():
        unknown = sorted({str(name) for name in column[numbers < 0]})
        raise ValueError(
            f"{what}: {format_examples(unknown)}: not among the model's {len(names)} classes. Leave these images out"
        )
    return np.asarray(numbers, np.int64)
