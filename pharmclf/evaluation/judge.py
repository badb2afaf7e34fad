"""Decides what a model can be used for, from scores with intervals and from its training; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pharmclf.core.events import EpochRecord
from pharmclf.core.units import format_count, format_examples
from pharmclf.evaluation import metrics
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.accuracy_agreement import AccuracyMismatch
from pharmclf.evaluation.look_alikes import find_look_alikes
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.results import EvaluationResult, accuracy_difference
from pharmclf.evaluation.verdict import SEVERITY, Level, Reason, ReasonCode, Verdict
from pharmclf.training.lr_schedule import chance_loss, has_diverged

NEARLY_ALL = 0.9
"""A model has one answer where at least this share of the images of all other classes gets the same name."""
MORE_OFTEN_THAN_NOT = 0.5
"""Below this accuracy, beyond chance, a proposal costs the person who checks it more than it saves."""
WEAK = 0.9
"""Below this accuracy, beyond chance, more than one proposal in ten must be corrected."""
MAX_UNKNOWN_ANSWERED = 0.05
"""If more images of unknown products are answered, beyond chance, answers cannot be used where such products occur."""
MIN_TRAIN_IMAGES = 20
"""With fewer training images of a class, each halving costs eight points of accuracy or more. Measured on pills10-A, a
linear classifier on features of EfficientNet-Lite0: 3 of a class 0.31, 5 0.41, 10 0.51, 20 0.59, 40 0.64, 140 0.70."""
MIN_TEST_IMAGES = 10
"""With fewer independent test images of a class, its recall may be below 70 % even where all of them are right: the
95 % interval of 9 of 9 begins at 0.70."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known of a model; what is not known gives no reason."""

    test: EvaluationResult
    """Scores on images that it was neither trained nor chosen on."""
    decision: AbstentionPolicy | None
    validation: EvaluationResult | None = None
    elsewhere: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Name of a set from another source -> its scores."""
    unknown: Mapping[str, Estimate] = field(default_factory=dict)
    """Name of a set of unknown products -> the share of its images that is answered."""
    train_images: Mapping[str, int] = field(default_factory=dict)
    """Class -> its training images."""
    history: Sequence[EpochRecord] = ()
    best: tuple[str, int] | None = None
    """(phase, epoch) of the chosen weights."""
    mismatch: AccuracyMismatch | None = None
    """Of the saved model with its best epoch; None: they agree."""


def judge(evidence: Evidence) -> Verdict:
    """Decide what a model can be used for.

    All scores are compared by their 95 % intervals: what chance explains is no reason, and what too few images leave
    open counts as not shown. Of a model that has learnt nothing, only what may be the cause is named.
    """
    failures = [*_divergence(evidence), *_mismatch(evidence.mismatch), *_learnt_nothing(evidence.test)]
    reasons = [*failures, *_few_training_images(evidence.train_images)]
    if not any(reason.level is Level.NOT_USABLE for reason in failures):
        reasons += [
            *_accuracy(evidence.test.accuracy),
            *_threshold(evidence.decision, evidence.test),
            *_other_sets(evidence),
            *_unknown_products(evidence.unknown),
            *_look_alikes(evidence.test),
            *_few_test_images(evidence.test),
        ]
    order = list(ReasonCode)
    return Verdict(tuple(sorted(reasons, key=lambda each: (-SEVERITY[each.level], order.index(each.code)))))


def _divergence(evidence: Evidence) -> Iterator[Reason]:
    """The chosen epoch, or else the last one of a phase, with the validation loss of weights that have diverged."""
    num_classes = len(evidence.test.classes)
    for phase in dict.fromkeys(record.phase for record in evidence.history):
        records = [record for record in evidence.history if record.phase == phase]
        chosen = [record for record in records if (phase, record.epoch) == evidence.best]
        diverged = [record for record in (*chosen, records[-1]) if has_diverged(record.val_loss, num_classes)]
        if not diverged:
            continue
        record, is_chosen = diverged[0], diverged[0] in chosen
        rest = "" if is_chosen else " The weights of a better epoch are used."
        yield Reason(
            code=ReasonCode.DIVERGED,
            level=Level.NOT_USABLE if is_chosen else Level.REVIEW,
            text=(
                f"The loss of phase {phase.removeprefix('phase')} diverged: {record.val_loss:.3g} on validation images "
                f"after epoch {record.epoch + 1}, and a random guess has {chance_loss(num_classes):.3g}.{rest}"
            ),
            remedy=f"Lower --{phase}.learning-rate; --find-lr suggests one.",
        )


def _mismatch(mismatch: AccuracyMismatch | None) -> Iterator[Reason]:
    if mismatch:
        yield Reason(
            code=ReasonCode.SAVED_MODEL_DIFFERS,
            level=Level.NOT_USABLE,
            text=f"T{mismatch.text[1:]}.",
            remedy="Train it again with --overwrite; report it if it happens again.",
        )


def _learnt_nothing(test: EvaluationResult) -> Iterator[Reason]:
    """One answer for all, or no better than a guess.

    The mean recall decides: of every model whose answers have nothing to do with the image it is 1 / classes, however
    many images each class has. Its interval is made of exact ones, as Wilson's are too narrow for two or three images.
    """
    yield from _one_answer(test)
    tested = [item.recall for item in test.classes if item.support]
    sizes = [metrics.independent_size(recall) for recall in tested]
    pairs = zip(tested, sizes, strict=True)
    balanced = metrics.mean_proportion([metrics.exact_interval(recall.value * size, size) for recall, size in pairs])
    guess = 1 / len(tested)
    if balanced.low > guess or len(tested) == 1:
        return
    perfect = metrics.mean_proportion([metrics.exact_interval(size, size) for size in sizes])
    seen = f"mean recall of {_with_interval(balanced)} on {format_count(test.num_images, 'test image')}"
    if perfect.low <= guess:
        yield Reason(
            code=ReasonCode.TOO_FEW_TEST_IMAGES,
            level=Level.NOT_USABLE,
            text=f"Too few test images to show that it does better than a guess ({_percent(guess)}): {seen}.",
            remedy=f"Take more photos: 50 of a class leave {MIN_TEST_IMAGES} to test.",
        )
    else:
        yield Reason(
            code=ReasonCode.AT_CHANCE,
            level=Level.NOT_USABLE,
            text=f"At chance level: {seen}; a guess has {_percent(guess)}.",
            remedy="Check that the images are in the folders of their classes, and train for more epochs.",
        )


def _one_answer(test: EvaluationResult) -> Iterator[Reason]:
    cells = test.cells
    taken = cells.given - cells.hits  # images of other classes that get the name of each
    number = int(taken.argmax())
    others = test.num_images - int(cells.support[number])
    worth = metrics.independent_size(test.accuracy) / test.num_images
    share = metrics.wilson_interval(int(taken[number]) * worth, others * worth)
    if share.value >= NEARLY_ALL and share.low > MORE_OFTEN_THAN_NOT:
        name = test.class_names[number]
        yield Reason(
            code=ReasonCode.ONE_ANSWER,
            level=Level.NOT_USABLE,
            text=f"It answers {name} nearly always: for {_percent(share.value)} of the images of all other classes.",
            remedy="Lower the learning rates, train longer, or weight rare classes: --optimizer.class-weights auto.",
            classes=(name,),
        )


def _accuracy(accuracy: Estimate) -> Iterator[Reason]:
    if accuracy.high < MORE_OFTEN_THAN_NOT:
        code, level, what = ReasonCode.MOSTLY_WRONG, Level.NOT_USABLE, "wrong more often than right"
    elif accuracy.high < WEAK:
        code, level, what = ReasonCode.WEAK, Level.REVIEW, f"wrong on more than {_percent(1 - WEAK, 0)} of the images"
    else:
        return
    yield Reason(
        code=code,
        level=level,
        text=f"It is {what}: its test accuracy is {_with_interval(accuracy)}.",
        remedy="Train for more epochs or with more trained blocks (--config lookalikes), and with more photos.",
    )


def _threshold(decision: AbstentionPolicy | None, test: EvaluationResult) -> Iterator[Reason]:
    """No threshold, one that the test contradicts, or one that too few validation images support."""
    if decision is None or decision.threshold > 1:
        what = "It has no threshold" if decision is None else f"No confidence keeps its errors at {_limit(decision)}"
        yield _threshold_reason(
            ReasonCode.NO_THRESHOLD,
            f"{what}: it does not know when it is unsure.",
            "Have a person check every answer.",
        )
        return
    error = _excess_error(decision, test)
    if error:
        yield _threshold_reason(
            ReasonCode.THRESHOLD_CONTRADICTED,
            f"The test contradicts its threshold: {_with_interval(error)} of its answers are wrong, "
            f"and {_limit(decision)} was the limit.",
            "Have a person check every answer; more validation images choose a better threshold.",
        )
    elif not decision.assured:
        images = format_count(decision.num_validation_images, "validation image")
        yield _threshold_reason(
            ReasonCode.THRESHOLD_NOT_ASSURED,
            f"Its threshold for at most {_limit(decision)} wrong answers is not assured by {images}: "
            f"up to {_percent(decision.upper_bound)} may be wrong.",
            f"Have a person check its answers. Assured would be {decision.num_needed:,} answers without an error: more "
            "photos, or a larger --target-error.",
        )


def _threshold_reason(code: ReasonCode, text: str, remedy: str) -> Reason:
    return Reason(code=code, level=Level.REVIEW, text=text, remedy=remedy)


def _other_sets(evidence: Evidence) -> Iterator[Reason]:
    """Sets whose accuracy differs from that of the test images beyond chance, or on which the threshold fails."""
    test = evidence.test
    if evidence.validation:
        difference = accuracy_difference(evidence.validation, test)
        if not difference.low <= 0 <= difference.high:
            yield Reason(
                code=ReasonCode.SPLITS_DISAGREE,
                level=Level.REVIEW,
                text=(
                    f"Validation and test disagree: {_with_interval(evidence.validation.accuracy)} of the validation "
                    f"images are right, and {_with_interval(test.accuracy)} of the test images."
                ),
                remedy="Check that both show the same products, cameras and light, and no copies of training images.",
            )
    for name, scores in evidence.elsewhere.items():
        error = _excess_error(evidence.decision, scores)
        if error or accuracy_difference(test, scores).high < 0:
            wrong = f", and {_with_interval(error)} of its answers from its threshold are wrong" if error else ""
            yield Reason(
                code=ReasonCode.WORSE_ELSEWHERE,
                level=Level.REVIEW,
                text=f"It does worse on {name}: {_with_interval(scores.accuracy)} of its images are right{wrong}.",
                remedy="Add photos from there to the training images.",
            )


def _unknown_products(answered: Mapping[str, Estimate]) -> Iterator[Reason]:
    for name, share in answered.items():
        if share.low > MAX_UNKNOWN_ANSWERED:
            text = f"It answers {_with_interval(share)} of the images of {name}, products that it does not know."
            remedy = "Have a person check every answer where such products occur, or train with them as classes."
            yield Reason(code=ReasonCode.ANSWERS_UNKNOWN, level=Level.REVIEW, text=text, remedy=remedy)


def _excess_error(decision: AbstentionPolicy | None, scores: EvaluationResult) -> Estimate | None:
    """The share of wrong answers of a set if it is above the limit beyond chance."""
    error = scores.answered.error if scores.answered else None
    return error if decision and error and error.low > decision.max_error else None


def _look_alikes(test: EvaluationResult) -> Iterator[Reason]:
    for group in find_look_alikes(test):
        names = f"{', '.join(group.names[:-1])} and {group.names[-1]}"
        yield Reason(
            code=ReasonCode.LOOK_ALIKES,
            level=Level.REVIEW,
            text=(
                f"It confuses the look-alikes {names}: {_with_interval(group.confused)} of their images get "
                "the name of another."
            ),
            remedy="What helps: closer crops, larger images (--image-size), more photos of them, the back side.",
            classes=group.names,
        )


def _few_training_images(counts: Mapping[str, int]) -> Iterator[Reason]:
    few = sorted((count, name) for name, count in counts.items() if count < MIN_TRAIN_IMAGES)
    if few:
        enough = f"{MIN_TRAIN_IMAGES} to train on"
        yield _few_images(ReasonCode.FEW_TRAINING_IMAGES, "Trained on few images of", few, enough)


def _few_test_images(test: EvaluationResult) -> Iterator[Reason]:
    sizes = ((metrics.independent_size(item.recall), item) for item in test.classes)
    few = sorted((item.support, item.name) for size, item in sizes if round(size, 6) < MIN_TEST_IMAGES)
    if few:
        what, enough = "Tested on too few images for a reliable recall of", f"{MIN_TEST_IMAGES} to test on"
        yield _few_images(ReasonCode.FEW_TEST_IMAGES, what, few, enough)


def _few_images(code: ReasonCode, what: str, few: Sequence[tuple[int, str]], enough: str) -> Reason:
    names = tuple(name for _, name in few)
    shown = format_examples([f"{name} ({count:,})" for count, name in few], 3)
    return Reason(
        code=code,
        level=Level.REVIEW,
        text=f"{what} {format_count(len(few), 'class')}: {shown}.",
        remedy=f"Take more photos: at least {enough}, of each class.",
        classes=names,
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _with_interval(estimate: Estimate) -> str:
    return f"{_percent(estimate.value)} ({100 * estimate.low:.1f}-{_percent(estimate.high)})"


def _limit(decision: AbstentionPolicy) -> str:
    return f"{100 * decision.max_error:.6g} %"
