"""The data of a report and a model card, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from pharmclf.core.events import EpochRecord
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.accuracy_agreement import AccuracyMismatch
from pharmclf.evaluation.drift import Appearance
from pharmclf.evaluation.judge import MAX_UNKNOWN_ANSWERED, Evidence, judge
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.results import ConfusedPair, EvaluationResult
from pharmclf.evaluation.verdict import Verdict
from pharmclf.reporting.next_steps import NextStep, TrainedModel, next_steps

MeasureName = Literal["size", "brightness", "sharpness"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnail:
    """An image of the data set."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB, upright, with its aspect ratio."""
    path: str
    label: str
    """Its class in the data set."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer of the model to one image."""

    path: str
    """In `EvalSetReport.predictions` without the `root` of the set."""
    label: str
    """Its class in the data set."""
    predicted: str
    """The most probable class."""
    confidence: float
    """Probability of that class after temperature scaling, 0..1."""
    abstain: bool | None
    """Whether the model leaves it to a human; None: it has no threshold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedThumbnail(Thumbnail, Prediction):
    """An image with its prediction."""

    heatmap: np.ndarray | None = None
    """(S, S) floats 0..1 over the whole image, evidence for the predicted class at each place (Grad-CAM); None: not
    computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredThumbnail(Thumbnail):
    """An image at an end of a measured range."""

    value: float
    """In the unit of its measure."""
    is_outlier: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class QualityMeasure:
    """One property of the images of a data set."""

    name: MeasureName
    """Size: the shorter side in pixels, of all images; brightness 0..1 and sharpness: of a sample."""
    values: np.ndarray
    """(n,) floats, rising."""
    extremes: Sequence[MeasuredThumbnail]
    """The outliers, or else the images at the ends of the range; the lowest first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSetReport:
    """One set of images that the model was tested on."""

    name: str
    """test, or the name of an extra set."""
    source: str
    evaluation: EvaluationResult
    samples: Sequence[PredictedThumbnail] = ()
    """Some of its images, evenly spaced."""
    worst: Sequence[PredictedThumbnail] = ()
    """The mistakes with the highest confidence, the highest first."""
    confused: Sequence[tuple[ConfusedPair, Sequence[PredictedThumbnail]]] = ()
    """The most confused pairs of classes, each with some of its images."""
    predictions: Sequence[Prediction] = ()
    """The mistakes, the surest first, then the other images, the least sure first; of large sets not all."""
    root: str = ""
    """The folder or prefix of its images, which the paths of `predictions` leave out."""
    notes: Sequence[str] = ()
    """Remarks for readers, one line each."""
    drop: Estimate | None = None
    """Accuracy of this set minus that of the test split, -1..1; None: of the test split itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnknownReport:
    """Images of products that the model does not know."""

    name: str
    source: str
    num_images: int
    answered: Estimate
    """Share of them that it answers all the same, 0..1."""
    unknown: Estimate | None
    """Share that it calls unknown; None: it has no limit for that."""
    products: Sequence[tuple[str, int, Estimate]]
    """(product, images, share answered), the most answered first."""
    worst: Sequence[PredictedThumbnail] = ()
    """The answered ones of the highest confidence."""
    notes: Sequence[str] = ()
    """Remarks for readers, one line each."""

    @property
    def is_too_much(self) -> bool:
        """Whether it answers so many, beyond chance, that the verdict says so."""
        return self.answered.low > MAX_UNKNOWN_ANSWERED


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetReport:
    """The data set of a run."""

    counts: Sequence[tuple[str, int, int, int]]
    """(class, images in train, validation, test), and a last line "all" with the sums."""
    quarantined: Sequence[tuple[str, str]] = ()
    """(path, reason) of unusable images, at least of the first."""
    num_quarantined: int
    num_duplicate_groups: int
    """Groups of two or more images that are near duplicates."""
    num_duplicate_images: int
    """Images in those groups."""
    num_torn_groups: int
    """Groups that lie in several splits, as the list of the data set has them."""
    duplicate_groups: Sequence[Sequence[Thumbnail]] = ()
    examples: Mapping[str, Thumbnail] = field(default_factory=dict)
    """Class -> one of its images; of very many classes not all."""
    quality: Sequence[QualityMeasure] = ()
    notes: Sequence[str] = ()
    """Remarks for readers, one line each."""
    has_splits: bool = True
    """Whether it is divided into splits; if not, a model is tested on all of it, which counts as test."""
    white_level: int = MAX_VALUE
    """The value of white in its files of 16 bits per channel."""

    @property
    def appearance(self) -> Appearance | None:
        """How its images look; None where too few were measured."""
        values = {measure.name: measure.values.tolist() for measure in self.quality}
        return Appearance.of_values(values.get("brightness", ()), values.get("sharpness", ()))


@dataclass(frozen=True, kw_only=True)
class PhaseSummary:
    """One phase of training."""

    name: str
    """phase1 or phase2."""
    epochs: int
    seconds: float
    images_per_second: float
    val_accuracy: float
    """Best validation accuracy of the phase, 0..1."""
    test_accuracy: Estimate | None = None
    """Test accuracy of the phase's best weights; None: not evaluated."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run, apart from its scores."""

    name: str
    backbone: str
    workers: int
    """Workers that trained; 0: in the calling process."""
    train_images: int
    phases: Sequence[PhaseSummary]
    """In the order of training."""
    seconds_total: float
    """Wall-clock time of the run, seconds."""
    price: float | None = None
    """Of its machines for that time; None: unknown."""
    best_checkpoint: str
    """Location of the checkpoint that the model was made of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """The content of a report. Sections without data are left out."""

    sets: Sequence[EvalSetReport]
    """The test split first, then the extra sets; at least one."""
    unknown: Sequence[UnknownReport] = ()
    """Sets of images of unknown products."""
    held_out: EvaluationResult | None = None
    """Scores on all images, each predicted by the model of a fold that has not seen it; None: it has no folds."""
    suspects: Sequence[PredictedThumbnail] = ()
    """The first of the images whose labels are suspicious."""
    num_suspects: int = 0
    """All of them, which `suspects.csv` lists."""
    decision: AbstentionPolicy | None
    validation: EvaluationResult | None = None
    """Scores on the images with which temperature and threshold were chosen."""
    verdict: Verdict | None = None
    """What the model can be used for; None: it was not judged."""
    next_steps: Sequence[NextStep] = ()
    run: RunSummary | None = None
    """None: evaluated without a run."""
    history: Sequence[EpochRecord] | None = None
    best: tuple[str, int] | None = None
    """(phase, epoch) of the chosen weights."""
    data: DatasetReport | None = None
    config_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Input, such as data or weights -> its hash."""
    hardware: Sequence[tuple[str, str]] = ()
    """(what, text), such as ("GPU", "NVIDIA L4, 23 GB")."""
    hardware_curves: Sequence[tuple[str, bytes]] = ()
    """(title, PNG) of the load of the machines over time."""
    command: str | None = None
    created: str = ""
    """Date and time with the time zone."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("sets: received none, expected the test split at least")

    @property
    def test(self) -> EvalSetReport:
        """The first set."""
        return self.sets[0]

    @property
    def name(self) -> str:
        """The name of the run, or else of the first set."""
        return self.run.name if self.run else self.test.name

    def with_verdict(self, trained: TrainedModel, mismatch: AccuracyMismatch | None = None) -> ReportData:
        """The same content with the verdict on the model, and the commands that come next.

        Args:
            mismatch: of the saved model with the epoch that it was saved from; None: they agree, or it is not known.
        """
        counts = self.data.counts[:-1] if self.data and self.data.has_splits else ()
        verdict = judge(
            Evidence(
                test=self.test.evaluation,
                decision=self.decision,
                validation=self.validation,
                elsewhere={item.name: item.evaluation for item in self.sets[1:]},
                unknown={item.name: item.answered for item in self.unknown},
                train_images={name: train for name, train, _, _ in counts},
                history=self.history or (),
                best=self.best,
                mismatch=mismatch,
            )
        )
        return replace(self, verdict=verdict, next_steps=next_steps(verdict, trained))
