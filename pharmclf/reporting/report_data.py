"""What the report and the model card are made of: plain facts, gathered elsewhere, drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pharmclf.core.events import EpochRecord
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.results import ConfusedPair, EvaluationResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnail:
    """An image of the data set."""

    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    path: str
    """Where the file lies."""
    label: str
    """Its class, as the data set says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedThumbnail(Thumbnail):
    """An image with what the model says of it."""

    predicted: str
    """The most probable class."""
    confidence: float
    """Probability of that class after temperature scaling, 0..1."""
    abstain: bool
    """Whether the model leaves it to a human."""
    heatmap: np.ndarray | None = None
    """(S, S) floats 0..1, how much each place spoke for the predicted class (Grad-CAM); None: not computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSetReport:
    """One set of images that the model was tested on."""

    name: str
    """test, or the name that the user gave to the set."""
    source: str
    """Where its images lie."""
    evaluation: EvaluationResult
    samples: Sequence[PredictedThumbnail] = ()
    """Some of its images, right and wrong as they come."""
    worst: Sequence[PredictedThumbnail] = ()
    """The mistakes that the model was surest of, the surest first."""
    confused: Sequence[tuple[ConfusedPair, Sequence[PredictedThumbnail]]] = ()
    """The pairs of classes most confused, each with some of its pictures."""
    notes: Sequence[str] = ()
    """What a person should know of the set; one line each."""
    drop: Estimate | None = None
    """Accuracy of this set minus that of the test split, -1..1; None: of the test split itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetReport:
    """The data set of a run."""

    counts: Sequence[tuple[str, int, int, int]]
    """(class, images in train, validation, test), and a last line "all" with the sums."""
    quarantined: Sequence[tuple[str, str]] = ()
    """(path, reason) of images that cannot be used; perhaps only the first."""
    num_quarantined: int
    num_duplicate_groups: int
    """Groups of two or more images that are copies of one picture."""
    num_duplicate_images: int
    """Images in those groups."""
    num_torn_groups: int
    """Those of the groups that lie in several splits, because the list of the data set says so."""
    duplicate_groups: Sequence[Sequence[Thumbnail]] = ()
    """Some of those groups."""
    notes: Sequence[str] = ()
    """What a person should know of the data set; one line each."""
    has_splits: bool = True
    """Whether it is divided; if not, all of it is there to test a model on, and counts as test."""
    white_level: int = MAX_VALUE
    """The value that is white in its files of 16 bits per channel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """All that the report shows. What is None or empty is left out."""

    sets: Sequence[EvalSetReport]
    """The test split first, then the extra sets; at least one."""
    decision: AbstentionPolicy | None
    """When the model answers by itself."""
    validation: EvaluationResult | None = None
    """Scores on the images that temperature and threshold were chosen on."""
    result: Mapping[str, Any] | None = None
    """The content of result.json; None: evaluated without a run."""
    history: Sequence[EpochRecord] | None = None
    """One record per epoch."""
    best: tuple[str, int] | None = None
    """(phase, epoch) of the chosen weights."""
    data: DatasetReport | None = None
    config_yaml: str = ""
    """The resolved configuration."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """What was used -> its hash."""
    hardware: Sequence[tuple[str, str]] = ()
    """(what, text), such as ("GPU", "NVIDIA L4, 23 GB")."""
    hardware_curves: Sequence[tuple[str, bytes]] = ()
    """(title, PNG) of the machine's load over time."""
    command: str | None = None
    """The command line that made this."""
    created: str = ""
    """When, as a text with its time zone."""

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
        return str(self.result["name"]) if self.result else self.test.name
