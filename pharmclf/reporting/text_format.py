"""Numbers and sentences of the report and the model card: plain text, which each of them escapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from pharmclf.core.units import format_count
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.metrics import Estimate, OperatingPoint
from pharmclf.evaluation.prediction_sets import SetScores
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.reporting.report_data import EvalSetReport, MeasureName, ReportData

THIN = "\u202f"
"""The narrow space that cannot break, between a number and its unit."""
PromiseCheck = Literal["confirmed", "agrees", "doubtful", "broken"]
_PROMISE_TEXTS: dict[PromiseCheck, str] = {
    "confirmed": "{set} confirm it.",
    "agrees": "{set} agree with it, but are too few to prove it.",
    "doubtful": "On {set} more were wrong, which may be chance.",
    "broken": "{set} contradict it.",
}


@dataclass(frozen=True, kw_only=True)
class ScoreSentences:
    """The result in a sentence or two per aspect; "" where an aspect does not apply."""

    headline: str
    """The accuracy; without a full stop."""
    certainty: str
    """Its interval; without a full stop."""
    answers: str
    """The shares that it answers, answers wrongly, and leaves to a human."""
    promise: str
    """The promise of the threshold, and whether the test images confirm it."""
    held_out: str
    """The accuracy on all images, each held out by a fold."""
    shifts: tuple[str, ...]
    """The accuracy on each extra set."""


def format_number(share: float, digits: int = 1) -> str:
    """Per cent without the sign; with more digits where it would round to 0 or 100 without being it."""
    for places in range(digits, 5):
        text = f"{100 * share:.{places}f}"
        if float(text) not in (0.0, 100.0):
            return text.replace("-", "−")
    return f"{100 * share:.0f}" if share in (0.0, 1.0) else ">99.9999" if share > 0.5 else "<0.0001"


def format_percent(share: float, digits: int = 1) -> str:
    """0.923 -> 92.3 %; only 0 is shown as 0 %, and only 1 as 100 %."""
    return f"{format_number(share, digits)}{THIN}%"


def format_parts(shares: Sequence[float]) -> list[str]:
    """Shares that sum to 1 in per cent, as `format_percent`, rounded so that the texts sum to 100.

    Each is rounded down, and the missing units go to those that lost most (largest remainder).
    """
    for digits in range(1, 5):
        unit = 10**digits
        exact = [100 * unit * share for share in shares]
        units = [math.floor(amount + 1e-6) for amount in exact]
        by_loss = sorted(range(len(shares)), key=lambda place: units[place] - exact[place])
        for place in by_loss[: 100 * unit - sum(units)]:
            units[place] += 1
        shown = [amount / unit for amount in units]
        if all((value in (0, 100)) == (share in (0, 1)) for value, share in zip(shown, shares, strict=True)):
            return [f"{value:.{digits}f}{THIN}%" if 0 < value < 100 else format_percent(value / 100) for value in shown]
    return [format_percent(share) for share in shares]


def format_rest(part: str) -> str:
    """What a text of `format_parts` leaves of 100 %."""
    number = part.removesuffix(f"{THIN}%")
    return f"{Decimal(100) - Decimal(number)}{THIN}%" if number[0] not in "<>" else f">99.9999{THIN}%"


def format_measure(value: float, measure: MeasureName) -> str:
    """A measured property of an image: 300 px, 47 %, 0.31."""
    if measure == "size":
        return f"{value:,.0f}{THIN}px"
    return format_percent(value, 0) if measure == "brightness" else f"{value:.2f}"


def format_confidence(share: float) -> str:
    """A confidence in per cent, rounded down, so that none looks higher than it is."""
    return "100" + f"{THIN}%" if share >= 1 else f"{math.floor(1000 * share) / 10:.1f}{THIN}%"


def format_limit(share: float) -> str:
    """A share from a setting, without rounding: 0.01 -> 1 %."""
    return f"{100 * share:.6g}{THIN}%"


def format_interval(estimate: Estimate) -> str:
    """89.2–94.5 %."""
    return f"{format_number(estimate.low)}–{format_percent(estimate.high)}"


def format_with_interval(estimate: Estimate) -> str:
    """92.3 % (89.2–94.5 %)."""
    return f"{format_percent(estimate.value)} ({format_interval(estimate)})"


def format_points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign: −12.3."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def phase_name(phase: str) -> str:
    """phase1 -> phase 1."""
    return phase.replace("phase", "phase ").replace("  ", " ")


def images_label(facts: EvalSetReport) -> str:
    """The images of a set, by its name unless it is the test split."""
    return "the test images" if facts.drop is None and facts.name == "test" else f"the images of “{facts.name}”"


def score_sentences(facts: ReportData) -> ScoreSentences:
    """The report in a few sentences."""
    test, decision = facts.test, facts.decision
    scores = test.evaluation
    kind = "test image" if test.name == "test" else "image"
    return ScoreSentences(
        headline=f"Right on {format_percent(scores.accuracy.value)} of {format_count(scores.num_images, kind)}",
        certainty=f"95{THIN}% interval {format_interval(scores.accuracy)}",
        answers=answers_sentence(scores.answered),
        promise=promise_sentence(decision, test) if decision and scores.answered else "",
        held_out=held_out_sentence(facts.held_out) if facts.held_out else "",
        shifts=tuple(shift_sentence(item, test, decision) for item in facts.sets[1:]),
    )


def held_out_sentence(scores: EvaluationResult) -> str:
    """The accuracy of the models of the folds."""
    images, right = format_count(scores.num_images, "image"), format_with_interval(scores.accuracy)
    return f"Of all {images}, each predicted by a model that has not seen it, {right} are right."


def sets_sentence(decision: AbstentionPolicy, scores: SetScores, images: str) -> str:
    """How often the true class is among the possible classes, and how many those are."""
    goal = f"Goal {format_limit(decision.sets.coverage)}: " if decision.sets else ""
    return (
        f"{goal}for {format_with_interval(scores.coverage)} of {images}, the true class is among the possible classes, "
        f"{scores.mean_size:.1f} on average; {format_percent(scores.single.value)} have only one."
    )


def unknown_sentence(share: Estimate, images: str) -> str:
    """The share of images of known products that are called unknown."""
    return f"Of {images}, all of products that it knows, it calls {format_with_interval(share)} unknown."


def class_list(scores: EvaluationResult, numbers: Sequence[int]) -> str:
    """Names of some classes: "Dolmaquin, Eskibor"."""
    return ", ".join(scores.class_names[number] for number in numbers)


def answer_shares(point: OperatingPoint) -> tuple[float, float, float]:
    """The shares of all images that are answered rightly, answered wrongly, and left to a human; they sum to 1."""
    error, coverage = point.error.value if point.error else 0.0, point.coverage.value
    return coverage * (1 - error), coverage * error, 1 - coverage


def answers_sentence(point: OperatingPoint | None) -> str:
    """The shares of images that the model answers, answers wrongly, and leaves to a human at its threshold."""
    if point is None:
        return "It has no threshold: it answers always, and does not know when it should not."
    if not point.num_answered or point.error is None:
        return "It answers none of them by itself: all are left to a human."
    left = point.num_images - point.num_answered
    others = format_parts(answer_shares(point))[2]
    rest = f"The other {format_count(left, 'image')} ({others})" if left else "None"
    return (
        f"At a confidence of {point.threshold:.3f} or more it answers by itself: {format_rest(others)} "
        f"({format_interval(point.coverage)}) "
        f"of the images, and {format_with_interval(point.error)} of these answers are wrong. "
        f"{rest} {'is' if left < 2 else 'are'} left to a human."
    )


def check_promise(decision: AbstentionPolicy, point: OperatingPoint | None) -> PromiseCheck | None:
    """Compare the error on a set with the promise of the threshold; None: no answers, or no threshold."""
    if point is None or point.error is None:
        return None
    if point.error.high <= decision.max_error:
        return "confirmed"
    if point.error.value <= decision.max_error:
        return "agrees"
    return "doubtful" if point.error.low <= decision.max_error else "broken"


def promise_sentence(decision: AbstentionPolicy, facts: EvalSetReport) -> str:
    """The promise of the threshold, its evidence, and whether a set confirms it."""
    most = f"at most {format_limit(decision.max_error)} wrong answers"
    if decision.threshold > 1:
        return f"The validation images showed no confidence from which it gives {most}."
    seen = f"{format_count(decision.num_answered, 'validation image')} that it answers"
    ground = (
        f"The threshold promises {most}: the {seen} show that at 95{THIN}% confidence."
        if decision.assured
        else f"The threshold was chosen for {most}, but this is not assured: after the {seen}, "
        f"up to {format_percent(decision.upper_bound)} may be wrong."
    )
    state = check_promise(decision, facts.evaluation.answered)
    if state is None:
        return ground
    check = _PROMISE_TEXTS[state].format(set=images_label(facts))
    return f"{ground} {check[0].upper()}{check[1:]}"


def shift_sentence(facts: EvalSetReport, test: EvalSetReport, decision: AbstentionPolicy | None) -> str:
    """The scores on an extra set, compared with the test images."""
    scores = facts.evaluation
    text = (
        f"On “{facts.name}”, {format_count(scores.num_images, 'image')}, it is right on "
        f"{format_with_interval(scores.accuracy)}{_difference_sentence(facts.drop, images_label(test))}."
    )
    there, here = scores.calibration_error, test.evaluation.calibration_error
    if decision is not None and there.low > here.high:
        text += (
            f" Confidence and accuracy lie {_calibration_gap(there)} apart there, {format_number(here.value)} on "
            f"{images_label(test)}: "
            "a temperature fitted on images of one source does not hold for another."
        )
    point = scores.answered
    if decision is None or point is None or point.error is None:
        return text
    state = check_promise(decision, point)
    word = {"broken": ", more than the limit", "doubtful": ", perhaps more than the limit"}
    return (
        f"{text} It answers {format_percent(point.coverage.value)} of them by itself, and "
        f"{format_with_interval(point.error)} of "
        f"these answers are wrong{word.get(state or '', '')}."
    )


def _difference_sentence(drop: Estimate | None, than: str) -> str:
    if drop is None:
        return ""
    size, bounds = abs(100 * drop.value), sorted(abs(100 * bound) for bound in (drop.low, drop.high))
    if drop.low <= 0 <= drop.high:
        return (
            f", which is no clear difference from {than} ({format_points(drop.low)} to {format_points(drop.high)} "
            "points)"
        )
    word = "fewer" if drop.value < 0 else "more"
    return f": {size:.1f} points {word} than on {than} ({bounds[0]:.1f}–{bounds[1]:.1f})"


def calibration_sentence(scores: EvaluationResult, temperature: float | None) -> str:
    """The distance of confidence and accuracy, before and after temperature scaling."""
    after, before = scores.calibration_error, scores.raw_calibration_error
    if before is None or temperature is None:
        return f"Confidence and accuracy lie {_calibration_gap(after)} apart on average."
    return (
        f"As the network gives it, confidence and accuracy lie {_calibration_gap(before)} apart on average; divided "
        "by the "
        f"temperature {temperature:.2f}, {_calibration_gap(after)}."
    )


def _calibration_gap(error: Estimate) -> str:
    return f"{format_number(error.value)} points ({format_number(error.low)}–{format_number(error.high)})"
