"""When a model answers by itself: its temperature and its threshold, chosen on the validation images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.evaluation import metrics
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.prediction_sets import PredictionSets, fit_sets
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

T = TypeVar("T")
DECISION_FILE = "decision.json"
"""File name of the policy, next to the model."""


@dataclass(frozen=True, kw_only=True)
class AbstentionPolicy:
    """When a model answers by itself, and the coverage and error of that on the validation images.

    An image is answered where the confidence after temperature scaling reaches the threshold; the others are left to a
    human. See `metrics.choose_threshold` for the promise of an `assured` threshold.
    """

    temperature: float
    """T of softmax(log p / T), above 0; above 1 where the model was overconfident."""
    threshold: float
    """Images of at least this confidence are answered; above 1 none is."""
    max_error: float
    """Largest share of wrong answers among those given that was requested, 0..1."""
    assured: bool
    """Whether the validation images show, at 95 % confidence, that the error is at most `max_error`; where not, there
    were too few of them, or too many errors, and the threshold is the best guess."""
    num_validation_images: int
    num_answered: int
    coverage: Estimate
    """Share of the validation images that were answered, 0..1."""
    error: Estimate | None
    """Share of the answered ones that was wrong, 0..1; None where none was answered."""
    upper_bound: float
    """The error is at most this at 95 % confidence, one-sided; 1 where none was answered."""
    num_needed: int
    """Independent images that must be answered without an error before `max_error` can be assured."""
    sets: PredictionSets | None = None
    """The classes that an image may be; None: too few validation images, or an earlier version has fitted it."""

    def __post_init__(self) -> None:
        limits = {"temperature": (0.0, math.inf), "threshold": (-math.inf, math.inf), "max_error": (0.0, 1.0)}
        for name, (low, high) in limits.items():
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name}: received {getattr(self, name)}, expected above {low:g} and below {high:g}")

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, classes) probabilities of the model after temperature scaling, float64; the largest stays the largest."""
        return metrics.apply_temperature(probabilities, self.temperature)

    def accepts(self, confidence: np.ndarray) -> np.ndarray:
        """(n,) booleans: whether images of these confidences, after temperature scaling, are answered."""
        return np.asarray(confidence) >= self.threshold


def fit_policy(probabilities: np.ndarray, truth: np.ndarray, groups: Any, max_error: float) -> AbstentionPolicy:
    """Fit the temperature and choose the threshold.

    Both come from the same validation images, which have also chosen the epoch of the model: the promise is slightly
    optimistic, and the test split shows whether it holds.

    Args:
        probabilities: (n, classes), as the model gives them, of images that it was not trained on.
        truth: (n,) integers, class numbers from 0.
        groups: (n,) numbers or texts; images of one group are near duplicates.
        max_error: largest share of wrong answers among those given, above 0 and below 1.

    Raises:
        ValueError: no rows, arrays that do not fit each other, or a `max_error` that is no share.
    """
    codes, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)[1:]
    if not len(truth) == len(probabilities) == len(codes) or not len(truth):
        raise ValueError(
            f"received {len(probabilities)} probabilities, {len(truth)} classes and {len(codes)} groups, "
            "expected one of each for every image"
        )
    temperature = metrics.fit_temperature(probabilities, truth, 1.0 / sizes[codes])
    best, confidence = metrics.most_probable(probabilities, temperature)
    correct = best == truth
    threshold = metrics.choose_threshold(confidence, correct, codes, max_error)
    point = metrics.operating_point(confidence, correct, codes, threshold.value)
    return AbstentionPolicy(
        temperature=temperature,
        threshold=threshold.value,
        max_error=max_error,
        assured=threshold.assured,
        num_validation_images=point.num_images,
        num_answered=point.num_answered,
        coverage=point.coverage,
        error=point.error,
        upper_bound=threshold.upper_bound,
        num_needed=threshold.num_needed,
        sets=fit_sets(probabilities, truth, codes, temperature=temperature),
    )


def write_policy(decision: AbstentionPolicy, location: str) -> None:
    """Write a policy as JSON, atomically."""
    storage.write_json(location, {SCHEMA_KEY: SCHEMA_VERSION, **dataclasses.asdict(decision)})


def read_policy(location: str) -> AbstentionPolicy:
    """Read a file of `write_policy`.

    Raises:
        ConfigError: a missing or damaged file, or one of another version.
        StorageUnavailableError: the storage does not answer.
    """

    def parse(record: Any) -> AbstentionPolicy:
        check_schema_version(record, location)
        return _parse_policy(record)

    return read_model_file(location, "a model's decision", parse)


def read_model_file(location: str, what: str, parse: Callable[[Any], T]) -> T:
    """Read a JSON file that lies next to a model; `what` it holds is for messages.

    Raises:
        ConfigError: a missing or damaged file.
        StorageUnavailableError: the storage does not answer.
    """
    try:
        return parse(storage.read_json(location))
    except (storage.StorageUnavailableError, ConfigError):
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{location}: expected {what}: {error!r}. Take the file from the model's run again"
        ) from error


def _parse_policy(record: dict[str, Any]) -> AbstentionPolicy:
    values = {field.name: record[field.name] for field in dataclasses.fields(AbstentionPolicy) if field.name != "sets"}
    values["coverage"] = _parse_estimate(values["coverage"])
    values["error"] = None if values["error"] is None else _parse_estimate(values["error"])
    for name in ("temperature", "threshold", "max_error", "upper_bound"):
        values[name] = float(values[name])
    if not isinstance(values["assured"], bool):
        raise TypeError(f"assured: received {values['assured']!r}")
    return AbstentionPolicy(**values, sets=_parse_sets(record.get("sets")))


def _parse_sets(record: dict[str, Any] | None) -> PredictionSets | None:
    if record is None:
        return None
    own = {int(number): float(value) for number, value in record["least_of_class"].items()}
    coverage, least = float(record["coverage"]), float(record["least"])
    return PredictionSets(coverage=coverage, least=least, least_of_class=own, num_groups=int(record["num_groups"]))


def _parse_estimate(record: dict[str, float]) -> Estimate:
    return Estimate(float(record["value"]), float(record["low"]), float(record["high"]))
