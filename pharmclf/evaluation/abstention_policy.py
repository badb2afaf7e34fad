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
from pharmclf.core.hashing import sha256_bytes
from pharmclf.evaluation import metrics
from pharmclf.evaluation.drift import Appearance
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.prediction_sets import PredictionSets, fit_sets
from pharmclf.evaluation.strangeness import STRANGENESS_FILE, Strangeness
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

T = TypeVar("T")
_UNKNOWN_COST = 0.05  # answers that may be lost for it, as a share of the validation images
_MOST_LOST = 0.1  # of the answers
DECISION_FILE = "decision.json"
"""File name of the policy, next to the model."""


@dataclass(frozen=True, kw_only=True)
class UnknownLimit:
    """From which strangeness an image is of no known product, or shows one as no training image does."""

    limit: float
    """Images of a larger strangeness are unknown."""
    share: Estimate
    """Share of the validation images, all of known products, that are beyond it, 0..1."""
    sha256: str = ""
    """Of the file of the strangeness, hex."""


@dataclass(frozen=True, kw_only=True)
class AbstentionPolicy:
    """When a model answers by itself, and the coverage and error of that on the validation images.

    An image is answered where it is not unknown, and the confidence after temperature scaling reaches the threshold;
    the others are left to a human. See `metrics.choose_threshold` for the promise of an `assured` threshold.
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
    unknown: UnknownLimit | None = None
    """Which images are unknown; None: too few images to know, or an earlier version has fitted it."""
    appearance: Appearance | None = None
    """How the images of its data set look; None: there are too few, or an earlier version has fitted it."""

    def __post_init__(self) -> None:
        limits = {"temperature": (0.0, math.inf), "threshold": (-math.inf, math.inf), "max_error": (0.0, 1.0)}
        for name, (low, high) in limits.items():
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name}: received {getattr(self, name)}, expected above {low:g} and below {high:g}")

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, classes) probabilities of the model after temperature scaling, float64; the largest stays the largest."""
        return metrics.apply_temperature(probabilities, self.temperature)

    def is_unknown(self, strangeness: np.ndarray) -> np.ndarray:
        """(n,) booleans: whether images of this strangeness are unknown."""
        return np.asarray(strangeness > self.unknown.limit if self.unknown else np.zeros(len(strangeness), bool))

    def accepts(self, confidence: np.ndarray, strangeness: np.ndarray | None = None) -> np.ndarray:
        """(n,) booleans: whether images of these confidences, after temperature scaling, are answered."""
        sure = np.asarray(confidence) >= self.threshold
        return sure if strangeness is None else sure & ~self.is_unknown(strangeness)


def fit_policy(
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: Any,
    max_error: float,
    strangeness: np.ndarray | None = None,
) -> AbstentionPolicy:
    """Fit the temperature, and choose the threshold and which images are unknown.

    Both come from the same validation images, which have also chosen the epoch of the model: the promise is slightly
    optimistic, and the test split shows whether it holds.

    Args:
        probabilities: (n, classes), as the model gives them, of images that it was not trained on.
        truth: (n,) integers, class numbers from 0.
        groups: (n,) numbers or texts; images of one group are near duplicates.
        max_error: largest share of wrong answers among those given, above 0 and below 1.
        strangeness: (n,) scores; None: no image is unknown.

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
    unknown = None
    if strangeness is not None:
        unknown = _choose_limit(strangeness, confidence >= threshold.value, codes)
        known = strangeness <= unknown.limit
        threshold = metrics.choose_threshold(confidence[known], correct[known], codes[known], max_error)
        confidence = np.where(known, confidence, -1.0)  # which no threshold is below
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
        unknown=unknown,
    )


def _choose_limit(strangeness: np.ndarray, answered: np.ndarray, groups: np.ndarray) -> UnknownLimit:
    """The lowest limit that loses few answers; of a model that answers nothing, few images."""
    known = np.sort(strangeness[answered] if answered.any() else strangeness)
    lost = int(min(_UNKNOWN_COST * len(strangeness), _MOST_LOST * len(known)))
    limit = float(known[len(known) - 1 - lost])
    return UnknownLimit(limit=limit, share=metrics.proportion(strangeness > limit, groups))


def write_policy(decision: AbstentionPolicy, location: str, strangeness: Strangeness | None = None) -> AbstentionPolicy:
    """Write a policy as JSON, atomically.

    Args:
        strangeness: what the limit of the policy is for; it is written next to it, and the policy names its sha256.

    Returns:
        The policy as it was written.
    """
    if strangeness and decision.unknown:
        content = strangeness.to_bytes()
        storage.write_bytes(storage.join(storage.parent(location), STRANGENESS_FILE), content)
        unknown = dataclasses.replace(decision.unknown, sha256=sha256_bytes(content))
        decision = dataclasses.replace(decision, unknown=unknown)
    storage.write_json(location, {SCHEMA_KEY: SCHEMA_VERSION, **dataclasses.asdict(decision)})
    return decision


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
    optional = ("sets", "unknown", "appearance")
    names = [field.name for field in dataclasses.fields(AbstentionPolicy) if field.name not in optional]
    values = {name: record[name] for name in names}
    values["coverage"] = _parse_estimate(values["coverage"])
    values["error"] = None if values["error"] is None else _parse_estimate(values["error"])
    for name in ("temperature", "threshold", "max_error", "upper_bound"):
        values[name] = float(values[name])
    if not isinstance(values["assured"], bool):
        raise TypeError(f"assured: received {values['assured']!r}")
    return AbstentionPolicy(
        **values,
        sets=_parse_sets(record.get("sets")),
        unknown=_parse_unknown(record.get("unknown")),
        appearance=_parse_appearance(record.get("appearance")),
    )


def _parse_sets(record: dict[str, Any] | None) -> PredictionSets | None:
    if record is None:
        return None
    own = {int(number): float(value) for number, value in record["least_of_class"].items()}
    coverage, least = float(record["coverage"]), float(record["least"])
    return PredictionSets(coverage=coverage, least=least, least_of_class=own, num_groups=int(record["num_groups"]))


def _parse_appearance(record: dict[str, Any] | None) -> Appearance | None:
    if record is None:
        return None
    (dark, usual, bright), (blurred, normal, sharp) = record["brightness"], record["sharpness"]
    brightness, sharpness = (float(dark), float(usual), float(bright)), (float(blurred), float(normal), float(sharp))
    return Appearance(brightness=brightness, sharpness=sharpness)


def _parse_unknown(record: dict[str, Any] | None) -> UnknownLimit | None:
    if record is None:
        return None
    share, sha256 = _parse_estimate(record["share"]), str(record["sha256"])
    return UnknownLimit(limit=float(record["limit"]), share=share, sha256=sha256)


def _parse_estimate(record: dict[str, float]) -> Estimate:
    return Estimate(float(record["value"]), float(record["low"]), float(record["high"]))
