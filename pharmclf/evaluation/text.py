"""An evaluation as plain text: the table of classes, and the whole report.txt."""

from __future__ import annotations

import pandas as pd

from pharmclf.core.tables import align_columns
from pharmclf.evaluation.metrics import Estimate, OperatingPoint, RiskCoverage
from pharmclf.evaluation.results import ClassResult, Evaluation, most_confused_pairs

MAX_OPEN_CLASSES = 30
"""Up to so many classes, a table in the terminal or on a page shows all; of more, the weakest."""
WEAKEST = 20
_LISTED_MISTAKES = 20
_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_UNKNOWN = "-"  # in place of a score of 0 that no image stands behind


def classification_table(evaluation: Evaluation, *, worst: int | None = None) -> str:
    """Precision, recall and F1 of the classes as aligned text, each with its interval; - where nothing is known.

    Args:
        evaluation: what to show.
        worst: show only this many classes, those with the lowest F1 first; all in the model's order if not given.
    """
    classes = list(evaluation.classes)
    if worst is not None and worst < len(classes):
        classes = sorted(classes, key=lambda result: (not result.has_examples, result.f1.value))[:worst]
    rows = [("class", "precision", "recall", "F1", "images"), *(_class_row(result) for result in classes)]
    rows.append(("macro average", "", "", str(evaluation.macro_f1), f"{evaluation.num_images:,}"))
    rows.append(("accuracy", "", "", str(evaluation.accuracy), f"{evaluation.num_images:,}"))
    lines = align_columns(rows, left=[0])
    rule = "-" * max(len(line) for line in lines)
    left_out = len(evaluation.classes) - len(classes)
    note = [f"(the {len(classes)} classes with the lowest F1; {left_out:,} more are in report.txt)"] if left_out else []
    return "\n".join([lines[0], rule, *lines[1:-2], *note, rule, *lines[-2:]])


def console_table(evaluation: Evaluation) -> str:
    """The table of classes for a terminal: of more than `MAX_OPEN_CLASSES` the `WEAKEST` only."""
    return classification_table(evaluation, worst=WEAKEST if len(evaluation.classes) > MAX_OPEN_CLASSES else None)


def _class_row(result: ClassResult) -> tuple[str, str, str, str, str]:
    return (
        result.name,
        str(result.precision) if result.predicted else _UNKNOWN,
        str(result.recall) if result.support else _UNKNOWN,
        str(result.f1) if result.has_examples else _UNKNOWN,
        f"{result.support:,}",
    )


def report_text(evaluation: Evaluation, predictions: pd.DataFrame) -> str:
    """The whole report: scores, classes, what is answered, confused pairs, and the mistakes it was surest of."""
    count = f"{evaluation.num_images:,} images"
    if evaluation.num_groups != evaluation.num_images:
        count += f" in {evaluation.num_groups:,} groups of near duplicates"
    lines = [f"{count}, {len(evaluation.classes)} classes; in brackets: 95 % intervals", ""]
    lines += [classification_table(evaluation), ""]
    lines += [_line(f"top-{k} accuracy", estimate) for k, estimate in evaluation.top_k_accuracy.items()]
    lines.append(_line("calibration error", evaluation.calibration_error))
    if evaluation.raw_calibration_error:
        lines.append(_line("  before temperature scaling", evaluation.raw_calibration_error))
    if evaluation.answered:
        lines += ["", *_answered_lines(evaluation.answered)]
    lines += ["", *_coverage_lines(evaluation.risk_coverage), "", "Most confused pairs (true -> predicted)"]
    pairs = most_confused_pairs(evaluation)
    lines += [f"{pair.count:6,}  {pair.share:4.0%}  {pair.label} -> {pair.predicted}" for pair in pairs] or ["  none"]
    return "\n".join([*lines, "", *_mistake_lines(predictions)]) + "\n"


def _line(title: str, estimate: Estimate) -> str:
    return f"{title:<28}  {estimate}"


def _answered_lines(point: OperatingPoint) -> list[str]:
    """What happens at the threshold of the decision."""
    left = point.num_images - point.num_answered
    if point.error is None:
        return [f"Answered by the model: none; {left:,} images are left to a human"]
    return [
        f"Answered by the model: confidence of at least {point.threshold:.6g}; {left:,} images are left to a human",
        _line("  share answered", point.coverage),
        _line("  error among answered", point.error),
    ]


def _coverage_lines(curve: RiskCoverage) -> list[str]:
    """The error where so many of the surest images were answered; of images of one confidence all are."""
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
