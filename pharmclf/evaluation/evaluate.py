"""The table of predictions, and its evaluation: every score with its 95 % interval.

The table has one row per image: `row` (int64, row of the manifest), `path`, `label` (true class, text), `predicted`
(text) and `confidence` (probability of the predicted class, 0..1, float64). With a decision the confidence is that
after temperature scaling, and `abstain` (bool) marks the images that are left to a human; with a strangeness there are
also `strangeness` (float64) and `unknown` (bool). Probabilities of all classes
are a separate array, (images, classes) float32 in the table's order, as the model gives them: a list column would be
slow and large in memory.
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
from pharmclf.evaluation.prediction_sets import SetScores, score_sets
from pharmclf.evaluation.results import ClassResult, EvaluationResult

COLUMNS = ("row", "path", "label", "predicted", "confidence")
"""The columns of every table of predictions."""
ABSTAIN = "abstain"
"""The additional column of a table with a decision."""
STRANGENESS, UNKNOWN = "strangeness", "unknown"
"""The additional columns of a table with a strangeness."""
_TOP_K = (3, 5)


def predictions_table(
    rows: np.ndarray,
    paths: Sequence[str],
    labels: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    decision: AbstentionPolicy | None = None,
    strangeness: np.ndarray | None = None,
) -> pd.DataFrame:
    """Build the table of predictions, in the order of the arguments.

    Args:
        rows: (n,) rows of the manifest.
        paths: n locations.
        labels: n true classes.
        probabilities: (n, classes), as the model gives them.
        class_names: in the order of the model's outputs.
        decision: the model's temperature and threshold, if it has them.
        strangeness: (n,) scores, where the decision has a limit for them.

    Raises:
        ValueError: probabilities that do not fit the rows or the classes.
    """
    if probabilities.shape != (len(rows), len(class_names)):
        expected = (len(rows), len(class_names))
        raise ValueError(f"probabilities: received shape {probabilities.shape}, expected {expected}")
    best = probabilities.argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
    if decision:
        confidence = metrics.most_probable(probabilities, decision.temperature)[1]
    else:
        confidence = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0].astype(np.float64)
    table = pd.DataFrame(
        {
            "row": np.asarray(rows, np.int64),
            "path": np.asarray(paths, object),
            "label": np.asarray(labels, object),
            "predicted": np.asarray(class_names, object)[best],
            "confidence": confidence,
        }
    )
    if decision and strangeness is not None:
        table = table.assign(**{STRANGENESS: strangeness, UNKNOWN: decision.is_unknown(strangeness)})
    return table.assign(**{ABSTAIN: ~decision.accepts(confidence, strangeness)}) if decision else table


def evaluate(
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    *,
    groups: Any,
    probabilities: np.ndarray | None = None,
    decision: AbstentionPolicy | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationResult:
    """Score predictions.

    Args:
        predictions: a table of `predictions_table`, n rows.
        class_names: the classes in the order of the model's outputs; the images need not be of all of them.
        groups: (n,) numbers or texts in the table's order; images of one group are near duplicates.
        probabilities: (n, classes) floats in the table's order, as the model gives them, for the top-k accuracy and the
            calibration before temperature scaling; both are left out without them.
        decision: the policy with which the table was made, if there was one.
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
    unknown = predictions[UNKNOWN].to_numpy(bool) if UNKNOWN in predictions else None
    given = confidence if unknown is None else np.where(unknown, -1.0, confidence)  # as `fit_policy`
    draws: dict[str, Any] = {"groups": codes, "resamples": resamples, "seed": seed}
    raw = probabilities.max(axis=1).astype(np.float64) if decision and probabilities is not None else None
    return EvaluationResult(
        num_images=len(predictions),
        num_groups=int(codes.max()) + 1,
        accuracy=metrics.proportion(correct, codes),
        macro_f1=metrics.macro_f1(truth, predicted, len(names), **draws),
        top_k_accuracy=_top_k(truth, probabilities, codes),
        calibration_error=_calibration(confidence, correct, **draws),
        raw_calibration_error=_calibration(raw, correct, **draws) if raw is not None else None,
        reliability=metrics.reliability(confidence, correct, codes),
        risk_coverage=metrics.risk_coverage(confidence, correct),
        answered=metrics.operating_point(given, correct, codes, decision.threshold) if decision else None,
        unknown=metrics.proportion(unknown, codes) if unknown is not None else None,
        sets=_score_sets(probabilities, decision, truth, codes),
        classes=tuple(_class_results(truth, predicted, names, codes)),
        cells=metrics.confusion_counts(truth, predicted, len(names)),
    )


def _score_sets(
    probabilities: np.ndarray | None, decision: AbstentionPolicy | None, truth: np.ndarray, codes: np.ndarray
) -> SetScores | None:
    if probabilities is None or decision is None or decision.sets is None:
        return None
    return score_sets(decision.sets, probabilities, truth, codes, temperature=decision.temperature)


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
    """Scores of each class from its rows only: a pass over all rows for each of 10,000 classes would take minutes."""
    of_class, given_class = (_rows_of(numbers, len(names)) for numbers in (truth, predicted))
    correct = truth == predicted
    for number, (name, rows, given) in enumerate(zip(names, of_class, given_class, strict=True)):
        either = np.union1d(rows, given)
        yield ClassResult(
            name=name,
            support=len(rows),
            predicted=len(given),
            precision=metrics.proportion(correct[given], codes[given]),
            recall=metrics.proportion(correct[rows], codes[rows]),
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
        raise ValueError("class_names: received a name twice, expected every class once")
    if len(groups) != len(predictions) or pd.isna(np.asarray(groups)).any():
        raise ValueError(f"groups: received {len(groups)}, expected one value for each of {len(predictions)} images")


def _check_probabilities(probabilities: np.ndarray, predicted: np.ndarray, num_classes: int) -> None:
    expected = (len(predicted), num_classes)
    if probabilities.shape != expected:
        raise ValueError(f"probabilities: received shape {probabilities.shape}, expected {expected}")
    if not (probabilities[np.arange(len(predicted)), predicted] >= probabilities.max(axis=1) - 1e-3).all():
        raise ValueError(
            "probabilities: not finite, or the largest is not that of `predicted`. Give both in one order of rows"
        )


def _check_temperature(probabilities: np.ndarray, confidence: np.ndarray, decision: AbstentionPolicy | None) -> None:
    """Refuse confidences of another temperature: the threshold means nothing for them."""
    if decision and np.abs(metrics.most_probable(probabilities, decision.temperature)[1] - confidence).max() > 1e-3:
        raise ValueError(
            f"confidence: received values that are not those of temperature {decision.temperature:.6g}. "
            "Make the table with `predictions_table` and the same decision"
        )


def _numbers(column: pd.Series, names: list[str], what: str) -> np.ndarray:
    """(n,) int64 class numbers of a column of class names."""
    numbers = pd.Index(names).get_indexer(pd.Index(column))
    if (numbers < 0).any():
        unknown = sorted({str(name) for name in column[numbers < 0]})
        raise ValueError(
            f"{what}: received {format_examples(unknown)}, expected the model's {len(names)} classes. Leave these "
            "images out"
        )
    return np.asarray(numbers, np.int64)
