"""Facts of a report made by hand: predictions with a given number of mistakes, and pictures of coloured noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pharmclf.core.events import EpochRecord
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.prediction_sets import PredictionSets
from pharmclf.evaluation.results import EvaluationResult, accuracy_difference, most_confused_pairs
from pharmclf.reporting.next_steps import TrainedModel
from pharmclf.reporting.report_data import (
    DatasetReport,
    EvalSetReport,
    MeasuredThumbnail,
    PhaseSummary,
    PredictedThumbnail,
    QualityMeasure,
    ReportData,
    RunSummary,
    Thumbnail,
)
from pharmclf.reporting.report_inputs import list_predictions
from support.epoch_records import epoch_record

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'; alert(3); //",
    "{{ 7*7 }}{% raw %}",
    "</style></pre><svg onload=alert(4)>",
    "a|b`c*d_e[f](javascript:alert(5))",
    "turned \u202ednuora\nand broken",
    "&lt;b&gt; $x$",
)
"""Names of classes that would do harm where they are not escaped."""
LONG = tuple(f"Amoxicillin trihydrate prolonged release film-coated tablets {number} mg" for number in range(50))
"""Fifty names that differ at their ends."""


def make_decision(threshold: float = 0.8, *, assured: bool = True, max_error: float = 0.05) -> AbstentionPolicy:
    """A decision; a threshold above 1 answers nothing."""
    answers = threshold <= 1
    return AbstentionPolicy(
        temperature=1.5,
        threshold=threshold,
        max_error=max_error,
        assured=assured and answers,
        num_validation_images=300,
        num_answered=240 if answers else 0,
        coverage=Estimate(0.8, 0.75, 0.84) if answers else Estimate(0.0, 0.0, 0.01),
        error=Estimate(0.01, 0.003, 0.03) if answers else None,
        upper_bound=0.032 if answers else 1.0,
        num_needed=59,
        sets=PredictionSets(coverage=0.98, least=0.2, least_of_class={}, num_groups=300),
    )


def make_scores(
    names: Sequence[str], decision: AbstentionPolicy | None, *, per_class: int = 20, mistakes: int = 2, surest: int = 0
) -> tuple[EvaluationResult, Any]:
    """An evaluation, and its table of predictions.

    Args:
        names: of the classes.
        decision: temperature and threshold.
        per_class: images of each class.
        mistakes: of those, images that are given the next class, with little confidence.
        surest: of the mistakes of each class, those of high confidence.
    """
    num_classes, places = len(names), np.tile(np.arange(per_class), len(names))
    truth = np.repeat(np.arange(num_classes), per_class)
    given = np.where(places < mistakes, (truth + 1) % num_classes, truth)
    sure = (places >= mistakes) | (places < surest)
    most = np.where(sure, 0.97 + 0.02 * places / per_class, 0.62 + 0.05 * places / per_class)
    probabilities = np.repeat((1 - most) / (num_classes - 1), num_classes).reshape(-1, num_classes)
    probabilities[np.arange(len(truth)), given] = most
    paths = [f"/images/{number:05}.jpg" for number in range(len(truth))]
    labels = [names[number] for number in truth]
    rows = np.arange(len(truth))
    table = predictions_table(rows, paths, labels, probabilities.astype(np.float32), names, decision)
    scores = evaluate(
        table, names, groups=rows, probabilities=probabilities.astype(np.float32), decision=decision, resamples=20
    )
    return scores, table


def make_pictures(table: Any, rows: Sequence[int], *, side: int = 48, heat: bool = False) -> list[PredictedThumbnail]:
    """Pictures of some rows of a table of predictions."""
    generator = np.random.default_rng(0)
    return [
        PredictedThumbnail(
            image=generator.integers(0, 255, (side, side, 3), dtype=np.uint8),
            path=str(table["path"][row]),
            label=str(table["label"][row]),
            predicted=str(table["predicted"][row]),
            confidence=float(table["confidence"][row]),
            abstain=bool(table["abstain"][row]) if "abstain" in table else False,
            heatmap=generator.random((side, side)).astype(np.float32) if heat else None,
        )
        for row in rows
    ]


def make_set(
    name: str, names: Sequence[str], decision: AbstentionPolicy | None, *, side: int = 48, **scores: Any
) -> EvalSetReport:
    """A set with its pictures; more arguments go to `make_scores`."""
    evaluation, table = make_scores(names, decision, **scores)
    wrong = [int(row) for row in np.flatnonzero(table["label"] != table["predicted"])]
    pairs = []
    for pair in most_confused_pairs(evaluation, 3):
        rows = np.flatnonzero((table["label"] == pair.label) & (table["predicted"] == pair.predicted))[:4]
        pairs.append((pair, make_pictures(table, rows.tolist(), side=side)))
    return EvalSetReport(
        name=name,
        source=f"/images/{name}",
        evaluation=evaluation,
        samples=make_pictures(table, range(0, len(table), len(table) // 8), side=side, heat=True),
        worst=make_pictures(table, wrong[:6], side=side, heat=True),
        confused=pairs,
        predictions=list_predictions(table, "/images"),
        root="/images",
    )


def make_history(phase1: int = 4, phase2: int = 3) -> list[EpochRecord]:
    """Made-up epochs of two phases, numbered from 0 in each."""
    epochs = [("phase1", number) for number in range(phase1)] + [("phase2", number) for number in range(phase2)]
    return [
        epoch_record(
            phase,
            epoch,
            train_loss=2 / (index + 1),
            train_accuracy=1 - 0.5 / (index + 1),
            val_loss=2.2 / (index + 1),
            val_accuracy=0.95 - 0.5 / (index + 1),
            learning_rate=1e-4 if phase == "phase1" else 1e-5,
        )
        for index, (phase, epoch) in enumerate(epochs)
    ]


def make_facts(
    names: Sequence[str] = ("amber", "birch", "cedar"),
    *,
    decision: AbstentionPolicy | None = None,
    extra: Sequence[str] = ("shifted",),
    extra_mistakes: int = 8,
    side: int = 48,
    **scores: Any,
) -> ReportData:
    """All facts of a run.

    Args:
        names: of the classes.
        decision: that of `make_decision` if not given.
        extra: names of the extra sets.
        extra_mistakes: images of each class of an extra set that are given another.
        side: of the pictures, pixels.
        scores: of the test split, to `make_scores`.
    """
    decision = decision or make_decision()
    validation, _ = make_scores(names, decision)
    test = make_set("test", names, decision, side=side, **scores)
    sets = [test]
    for name in extra:
        item = make_set(name, names, decision, side=side, mistakes=extra_mistakes, surest=extra_mistakes // 2)
        drop = accuracy_difference(test.evaluation, item.evaluation)
        sets.append(EvalSetReport(**{**vars(item), "drop": drop, "notes": [f"left out: {names[0]} (2 images)"]}))
    phases = [
        PhaseSummary(name="phase1", epochs=4, seconds=30.0, images_per_second=123.4, val_accuracy=0.8),
        PhaseSummary(
            name="phase2",
            epochs=3,
            seconds=45.0,
            images_per_second=20.5,
            val_accuracy=0.9,
            test_accuracy=test.evaluation.accuracy,
        ),
    ]
    run = RunSummary(
        name="made", backbone="lite0", workers=2, train_images=60, phases=phases, seconds_total=75.0,
        best_checkpoint="/runs/made/best",
    )  # fmt: skip
    images = [picture.image for picture in test.samples[:2]]
    thumbnails = [Thumbnail(image=image, path=f"/images/{names[0]}.jpg", label=names[0]) for image in images]
    ends = [
        MeasuredThumbnail(**vars(item), value=value, is_outlier=value < 0.1)
        for item, value in zip(thumbnails, (0.02, 0.9), strict=True)
    ]
    values = np.array([0.02, *np.linspace(0.4, 0.6, 30), 0.9])
    counts = [(name, 20, 5, 20) for name in names]
    facts = ReportData(
        sets=sets,
        held_out=validation,
        suspects=test.worst,
        num_suspects=len(test.worst),
        decision=decision,
        validation=validation,
        run=run,
        history=make_history(),
        best=("phase2", 1),
        data=DatasetReport(
            counts=[*counts, ("all", 20 * len(names), 5 * len(names), 20 * len(names))],
            quarantined=[(f"/images/{names[-1]}/x.jpg", "not an image")],
            num_quarantined=1,
            num_duplicate_groups=1,
            num_duplicate_images=2,
            num_torn_groups=0,
            duplicate_groups=[thumbnails],
            examples={name: Thumbnail(image=images[0], path=f"/images/{name}.jpg", label=name) for name in names[:200]},
            quality=[
                QualityMeasure(name="size", values=np.full(60, 300.0), extremes=()),
                QualityMeasure(name="brightness", values=values, extremes=ends),
                QualityMeasure(name="sharpness", values=values, extremes=ends[:1]),
            ],
            notes=[f"a note on {names[0]}"],
        ),
        config_yaml=f"name: made\ndata: {names[0]}\n",
        versions={"python": "3.11", "keras": "3.15"},
        fingerprints={"data": "0" * 32},
        hardware=[("GPU", "none")],
        command=f"python jobs/train.py --name '{names[0]}'",
        created="2026-11-25 21:40 UTC",
    )
    return facts.with_verdict(TrainedModel(model="runs/made", data=names[0], name="made"))


def alone(names: Sequence[str] = ("amber", "birch", "cedar"), **scores: Any) -> ReportData:
    """The facts of an evaluation without a run and without a threshold."""
    return ReportData(sets=[make_set("test", names, None, **scores)], decision=None)
