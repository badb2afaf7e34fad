"""What a model answers: from probabilities to the columns of the table of predictions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pharmclf.core.errors import ConfigError
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.evaluate import STRANGENESS, UNKNOWN
from pharmclf.evaluation.prediction_sets import set_names
from pharmclf.evaluation.predictor import Features
from pharmclf.evaluation.strangeness import Strangeness

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("label_2", pa.string()),
        ("confidence_2", pa.float64()),
        ("label_3", pa.string()),
        ("confidence_3", pa.float64()),
        ("possible", pa.string()),
        ("strangeness", pa.float64()),
        ("unknown", pa.bool_()),
        ("abstain", pa.bool_()),
        ("error", pa.string()),
        ("crop_left", pa.float32()),
        ("crop_top", pa.float32()),
        ("crop_side", pa.float32()),
    ]
)
"""One row per image. The three most probable classes and their calibrated probabilities, null where the image is bad or
there are fewer classes; `possible`: the classes that it may be, separated by |, as `PredictionSets` has them, null
without sets; `strangeness`: how unlike the training images it is, and `unknown`: whether that is beyond the model's
limit, null without one; `abstain`: a person must look, since the confidence is below the threshold, or the image is
unknown or bad, null without a threshold; `error`: why the image is bad, else null; `crop_left`, `crop_top`,
`crop_side`: the square that the model looked at, as shares of the image's width and height, null where it looked at all
of it."""
_TOP = 3
_SUM_TOLERANCE = 1e-2  # of 1: what probabilities in half precision sum to


@dataclass(frozen=True, kw_only=True)
class TopKOutput:
    """How a model's probabilities become answers."""

    labels: tuple[str, ...]
    """Class names in the order of the model's outputs."""
    decision: AbstentionPolicy | None = None
    """Its temperature; None: the probabilities stay as they are."""
    threshold: float | None = None
    """Least confidence of an answer; None: nothing abstains."""
    strangeness: Strangeness | None = None
    """Of the model, where its decision has a limit for it."""

    def __call__(self, probabilities: np.ndarray, features: Features = ()) -> dict[str, np.ndarray]:
        """The best classes of some images.

        Args:
            probabilities: (n, 1, classes) of one model.
            features: of the same, for the strangeness.

        Returns:
            `best` (n, k) class numbers, the most probable first, equal ones in the order of the classes, and
            `confidence` (n, k) float64, calibrated; k is 3, or the number of classes. With prediction sets also
            `possible`, (n, classes) booleans, and with a strangeness that, (n,) float64.

        Raises:
            ConfigError: there are not as many as labels, or they are no probabilities.
        """
        given = probabilities[:, 0].astype(np.float64)
        if given.shape[1] != len(self.labels):
            raise ConfigError(
                f"model: received {given.shape[1]} outputs and {len(self.labels)} labels, expected one label for each. "
                "Put the labels.json of this model next to it"
            )
        if not ((given >= 0).all() and (np.abs(given.sum(axis=1) - 1) < _SUM_TOLERANCE).all()):
            raise ConfigError(
                "model: received outputs that are no probabilities, expected numbers from 0 to 1 with the sum 1. "
                "Give a model whose last layer is a softmax"
            )
        calibrated = given if self.decision is None else self.decision.calibrated(given)
        best = np.argsort(-calibrated, axis=1, kind="stable")[:, :_TOP]
        found = {"best": best, "confidence": np.take_along_axis(calibrated, best, axis=1)}
        if self.decision and self.decision.sets:
            found["possible"] = self.decision.sets.members(calibrated)
        if self.strangeness:
            found[STRANGENESS] = self.strangeness(features)
        return found

    def is_unknown(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) booleans: which images of a block with the columns above are unknown."""
        if self.decision is None or STRANGENESS not in block:
            return np.zeros(len(block["best"]), bool)
        return self.decision.is_unknown(block[STRANGENESS])

    def table(self, paths: pa.Array, block: Mapping[str, np.ndarray], bad: np.ndarray) -> pa.Table:
        """Rows of the table of predictions.

        Args:
            paths: (n,) locations.
            block: the columns of a call of this, and `crop` (n, 3), the part of each image that was looked at, as
                `ImageSet.crops`.
            bad: (n,) why an image cannot be used, "" where it can.
        """
        best, confidence = block["best"], block["confidence"]
        is_bad = bad != ""
        names = np.array(self.labels, object)
        columns = {"path": paths, "error": pa.array(bad, pa.string(), mask=~is_bad)}
        for place in range(_TOP):
            suffix = f"_{place + 1}" if place else ""
            given = place < best.shape[1]
            labels = names[best[:, place]] if given else np.full(len(bad), "", object)
            numbers = confidence[:, place] if given else np.zeros(len(bad))
            lacks = is_bad if given else np.ones(len(bad), bool)
            columns[f"label{suffix}"] = pa.array(labels, pa.string(), mask=lacks)
            columns[f"confidence{suffix}"] = pa.array(numbers, pa.float64(), mask=lacks)
        columns["possible"] = pa.nulls(len(bad), pa.string())
        if "possible" in block:
            columns["possible"] = pa.array(set_names(block["possible"], self.labels), pa.string(), mask=is_bad)
        unknown, lacks = self.is_unknown(block), is_bad | (STRANGENESS not in block)
        columns[STRANGENESS] = pa.array(block.get(STRANGENESS, np.zeros(len(bad))), pa.float64(), mask=lacks)
        columns[UNKNOWN] = pa.array(unknown, pa.bool_(), mask=lacks)
        for place, name in enumerate(("crop_left", "crop_top", "crop_side")):
            columns[name] = pa.array(block["crop"][:, place], pa.float32(), from_pandas=True)
        least = -np.inf if self.threshold is None else self.threshold
        abstain = is_bad | unknown | (confidence[:, 0] < least)
        columns["abstain"] = pa.array(abstain, pa.bool_(), mask=np.full(len(bad), self.threshold is None))
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
