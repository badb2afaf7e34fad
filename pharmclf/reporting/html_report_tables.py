"""Contents of the page's tables and small bars: order, scales and places; draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pharmclf.core.units import format_count
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.result_files import MAX_OPEN_CLASSES, WEAKEST
from pharmclf.evaluation.results import ClassResult, EvaluationResult
from pharmclf.reporting import text_format
from pharmclf.reporting.report_data import DatasetReport, EvalSetReport, ReportData, Thumbnail

MAX_MATRIX = 100
"""Classes of a confusion matrix on the page, those with most mistakes."""
MAX_FULL_MATRIX = 25
"""Up to so many, classes without a mistake are shown too, and the matrix is not folded."""
MAX_PAIRS = 20
"""Confused pairs of classes in a list."""
MAX_ROWS = 500
"""Rows of a table on the page, folded ones included: a browser takes seconds for ten thousand."""
DEPTHS = (0.575, 0.775, 0.975)
"""Strengths of colour where the better text colour changes: in dark mode; in light mode for right, and for wrong."""


@dataclass(frozen=True)
class Axis:
    """The range of shares that a small bar shows."""

    low: float
    high: float

    def place(self, share: float) -> str:
        """The place of a share from left to right, as an SVG length; outside of the range it is that of the edge."""
        return f"{100 * min(1.0, max(0.0, (share - self.low) / (self.high - self.low))):.2f}%"


FULL_AXIS = Axis(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number of the summary."""

    title: str
    estimate: Estimate | None
    axis: Axis
    note: str
    """Its meaning in a few words."""
    text: str = ""
    """Its value where it is rounded as a part of a whole; "": by itself."""
    mark: float | None = None
    """A share that is marked on the bar."""
    bad: bool = False
    """Whether it is worse than the promise, beyond chance."""


def score_axis(estimates: Iterable[Estimate]) -> Axis:
    """From a round share below all intervals up to 1, so that differences between good scores are visible."""
    lowest = min((estimate.low for estimate in estimates), default=0.0)
    return Axis(max(0.0, min(0.9, math.floor(10 * lowest) / 10)), 1.0)


def build_cards(facts: ReportData) -> list[Card]:
    """The summary of the test images."""
    scores, decision, point = facts.test.evaluation, facts.decision, facts.test.evaluation.answered
    top = [
        ("Accuracy", scores.accuracy, f"of {format_count(scores.num_images, 'image')}"),
        ("Macro F1", scores.macro_f1, "each class counts the same"),
    ]
    if scores.top_k_accuracy:
        k = min(scores.top_k_accuracy)
        top.append((f"Top {k}", scores.top_k_accuracy[k], f"true class among the {k} most probable"))
    axis = score_axis(estimate for _, estimate, _ in top)
    cards = [Card(title=title, estimate=estimate, axis=axis, note=note) for title, estimate, note in top]
    if point is not None:
        note = f"{point.num_answered:,} of {format_count(point.num_images, 'image')}"
        text = text_format.format_rest(text_format.format_parts(text_format.answer_shares(point))[2])
        cards.append(Card(title="Answers by itself", estimate=point.coverage, axis=FULL_AXIS, note=note, text=text))
    if point is not None and decision is not None:
        most, error = decision.max_error, point.error
        note = f"limit: {text_format.format_limit(most)}" if error else "nothing is answered"
        axis = Axis(0.0, _round_up(max(3 * most, error.high if error else 0.0)))
        bad = text_format.check_promise(decision, point) == "broken"
        cards.append(Card(title="Wrong among answers", estimate=error, axis=axis, note=note, mark=most, bad=bad))
    error, note = scores.calibration_error, "distance of confidence and accuracy"
    cards.append(
        Card(title="Calibration error", estimate=error, axis=Axis(0.0, _round_up(max(0.1, error.high))), note=note)
    )
    return cards


def _round_up(share: float) -> float:
    """The next multiple of 5 %, at most 1."""
    return min(1.0, math.ceil(20 * share - 1e-9) / 20)


def sort_by_recall(evaluation: EvaluationResult) -> tuple[list[ClassResult], list[ClassResult]]:
    """All classes by rising F1, those that do not occur last: first the open ones of a table, then the folded ones."""
    classes = sorted(evaluation.classes, key=lambda item: (not item.has_examples, item.f1.value, item.name))
    shown = len(classes) if len(classes) <= MAX_OPEN_CLASSES else WEAKEST
    return classes[:shown], classes[shown:]


@dataclass(frozen=True, kw_only=True)
class ClassTile:
    """One class of the data set: its number of images, and one of them."""

    name: str
    counts: Sequence[int]
    """In train, validation and test."""
    share: float
    """Of the images of the largest class, 0..1."""
    example: Thumbnail | None

    @property
    def total(self) -> int:
        """Its images in all splits."""
        return sum(self.counts)


def class_tiles(data: DatasetReport) -> tuple[list[ClassTile], list[ClassTile]]:
    """All classes, of more than `MAX_ROWS` the rarest by rising count: first the open ones, then the folded ones."""
    counts = list(data.counts[:-1])
    if len(counts) > MAX_ROWS:
        counts = sorted(counts, key=lambda row: sum(row[1:]))[:MAX_ROWS]
    largest = max((sum(row[1:]) for row in data.counts[:-1]), default=0)
    tiles = [
        ClassTile(name=name, counts=amounts, share=sum(amounts) / max(1, largest), example=data.examples.get(name))
        for name, *amounts in counts
    ]
    return tiles[:MAX_OPEN_CLASSES], tiles[MAX_OPEN_CLASSES:]


def histogram(values: np.ndarray, bins: int = 24) -> list[float]:
    """Numbers of values, (n,) floats not all equal, in equal parts of their range, as shares of the largest number."""
    counts = np.histogram(values, bins)[0]
    return [float(count) / int(counts.max()) for count in counts]


def class_axis(evaluation: EvaluationResult) -> Axis:
    """The scale of the bars of all classes."""
    seen = [item for item in evaluation.classes if item.support and item.predicted]
    return score_axis(estimate for item in seen for estimate in (item.recall, item.precision, item.f1))


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix as the page shows it."""

    names: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    recalls: Sequence[float | None]
    """Share of each row on the diagonal; None where the row is empty."""
    num_hidden: int
    """Classes that are left out because they have no mistake, or fewer than the others."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a confusion matrix."""

    count: int
    right: bool
    """Whether it lies on the diagonal."""
    strength: float
    """Of the colour, 0..1: the share of the row; of mistakes its root, so that one among many images is visible."""


def build_matrix(evaluation: EvaluationResult, most: int = MAX_MATRIX) -> Matrix:
    """The confusion matrix of at most so many classes, in the order of the model."""
    cells, mistakes = evaluation.cells, evaluation.cells.mistakes
    if cells.num_classes > MAX_FULL_MATRIX:
        most = min(most, int((mistakes > 0).sum()))
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:most])
    support, confusion = cells.support[shown], cells.matrix(shown)
    shares = confusion / np.maximum(support, 1)[:, None]
    places = range(len(shown))

    def cell(row: int, column: int) -> Cell:
        share, right = float(shares[row, column]), row == column
        return Cell(count=int(confusion[row, column]), right=right, strength=share if right else share**0.4)

    return Matrix(
        names=[evaluation.class_names[index] for index in shown],
        rows=[[cell(row, column) for column in places] for row in places],
        recalls=[float(shares[row, row]) if support[row] else None for row in places],
        num_hidden=cells.num_classes - len(shown),
    )


def color_intensity(strength: float) -> str:
    """The CSS class of a cell for the strength of its colour, with which the style sheet chooses the text colour."""
    return f"d{sum(strength > limit for limit in DEPTHS)}"


@dataclass(frozen=True, kw_only=True)
class RecallShift:
    """The recall of one class in each set."""

    name: str
    recalls: Sequence[Estimate | None]
    """In the order of the sets; None where a set has no image of the class."""


def recalls_by_set(sets: Sequence[EvalSetReport]) -> list[RecallShift]:
    """The recall of each class in every set, the largest fall from the first set first."""
    by_set = [{item.name: item.recall for item in facts.evaluation.classes if item.support} for facts in sets]
    rows = [
        RecallShift(name=name, recalls=[recalls.get(name) for recalls in by_set])
        for name in sets[0].evaluation.class_names
        if any(name in recalls for recalls in by_set)
    ]

    def fall(row: RecallShift) -> float:
        first, *others = row.recalls
        known = [other.value for other in others if other]
        return first.value - min(known) if first and known else -2.0

    return sorted(rows, key=lambda row: -fall(row))
