"""How unlike the training images an image is: its distance from the classes in the features of a trained model.

The Mahalanobis distance to the nearest class (Lee et al. 2018, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples"), on features of unit length (Mueller and Hein 2025, "Mahalanobis++"), in two tensors of
the network. The covariance within the classes is shrunk (Ledoit and Wolf 2004) and kept by its largest directions.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.metrics.intervals import row_blocks

STRANGENESS_FILE = "strangeness.npz"
"""File name of the distances, next to the model."""
_MAX_DIRECTIONS = 256
_SAMPLE = 1000  # training images: twice as many change the answered share of unknown products by a point
_LEAST_OF_CLASS = 5
_MAX_SAMPLE = 20_000
_LEAST_IMAGES = 20  # of training and of validation; with fewer the distances say nothing


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassDistance:
    """The distance of features from the nearest class, in one tensor of the network."""

    means: NDArray[np.float32]
    """(classes, d) mean features of each class."""
    directions: NDArray[np.float32]
    """(d, r) orthonormal: those in which images of one class differ most."""
    variances: NDArray[np.float32]
    """(r,) within a class along these."""
    rest: float
    """Variance within a class along each of the other directions."""
    centre: float
    """Mean distance of the validation images."""
    spread: float
    """Standard deviation of the same."""

    def __call__(self, features: np.ndarray) -> NDArray[np.float64]:
        """(n, d) features of unit length -> (n,) distances, about 0 +/- 1 for images like the validation images."""
        saved = 1.0 / self.rest - 1.0 / self.variances.astype(np.float64)  # (r,)
        means = self.means.astype(np.float64)
        mean_places = means @ self.directions
        nearest = np.empty(len(features))
        for rows in row_blocks(len(features), max(len(means), features.shape[1])):
            x = features[rows].astype(np.float64)
            places = x @ self.directions
            nearest[rows] = (
                _square_distances(x, means, np.ones(x.shape[1])) / self.rest
                - _square_distances(places, mean_places, saved)
            ).min(axis=1)
        return (nearest - self.centre) / self.spread


def _square_distances(x: np.ndarray, means: np.ndarray, weights: np.ndarray) -> NDArray[np.float64]:
    """(n, classes) weighted square distances of (n, d) points from (classes, d) points."""
    weighted = x * weights
    square, of_means = (weighted * x).sum(axis=1), (means * means) @ weights
    return np.asarray(square[:, None] - 2.0 * weighted @ means.T + of_means)


@dataclass(frozen=True, eq=False)
class Strangeness:
    """The score of an image, over all tensors that are looked at."""

    distances: tuple[ClassDistance, ...]

    def __call__(self, features: Sequence[np.ndarray]) -> NDArray[np.float64]:
        """(n, d) features of unit length for each tensor -> (n,) scores; the larger, the more unlike."""
        pairs = zip(self.distances, features, strict=True)
        return np.asarray(sum(distance(part) for distance, part in pairs), np.float64)

    def to_bytes(self) -> bytes:
        """The content of the file: arrays of numpy, which run no code when they are read."""
        arrays: dict[str, np.ndarray] = {}
        for place, each in enumerate(self.distances):
            arrays |= {f"{name}_{place}": np.asarray(value) for name, value in vars(each).items()}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Strangeness:
        """Read what `to_bytes` gives."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            count = sum(name.startswith("means_") for name in arrays)
            return cls(
                tuple(
                    ClassDistance(
                        means=arrays[f"means_{place}"],
                        directions=arrays[f"directions_{place}"],
                        variances=arrays[f"variances_{place}"],
                        **{name: float(arrays[f"{name}_{place}"]) for name in ("rest", "centre", "spread")},
                    )
                    for place in range(count)
                )
            )


def sample_training_rows(manifest: Manifest) -> NDArray[np.int64]:
    """Rows of training images on which the distances are fitted: some of each class, the same each time. Pure."""
    table = manifest.table.loc[manifest.rows("train")]
    of_class = max(_LEAST_OF_CLASS, _SAMPLE // max(1, table["label"].nunique()))
    # the sha256 of a file is as good as a draw, and does not depend on the order of the listing
    rows = table.sort_values("sha256", kind="stable").groupby("label", sort=True).head(of_class).index
    return np.sort(rows[:_MAX_SAMPLE].to_numpy(np.int64))


def fit_strangeness(
    features: Sequence[np.ndarray], classes: np.ndarray, validation: Sequence[np.ndarray]
) -> Strangeness | None:
    """Fit the distances.

    Args:
        features: (n, d) features of unit length of training images, for each tensor.
        classes: (n,) integers.
        validation: (m, d) the same of validation images, by which the distances are scaled.

    Returns:
        None where there are no features, or too few images.
    """
    if not features or len(classes) - len(np.unique(classes)) < _LEAST_IMAGES or len(validation[0]) < _LEAST_IMAGES:
        return None
    fitted = [_fit_distance(part, classes, known) for part, known in zip(features, validation, strict=True)]
    found = tuple(each for each in fitted if each is not None)
    return Strangeness(found) if len(found) == len(features) else None


def _fit_distance(features: np.ndarray, classes: np.ndarray, validation: np.ndarray) -> ClassDistance | None:
    from scipy.linalg import eigh
    from sklearn.covariance import ledoit_wolf_shrinkage

    x = features.astype(np.float64)
    known, numbers = np.unique(classes, return_inverse=True)
    means = np.zeros((len(known), x.shape[1]))
    np.add.at(means, numbers, x)
    means /= np.bincount(numbers)[:, None]
    residuals = x - means[numbers]
    covariance = residuals.T @ residuals / (len(x) - len(known))
    size = len(covariance)
    mean_variance = np.trace(covariance) / size
    if not mean_variance > 0:
        return None  # all images of a class are the same
    shrinkage = float(ledoit_wolf_shrinkage(residuals, assume_centered=True))
    count = min(_MAX_DIRECTIONS, size - 1, len(x))
    largest, directions = eigh(covariance, subset_by_index=(size - count, size - 1))
    variances = (1 - shrinkage) * largest + shrinkage * mean_variance
    rest = (size * mean_variance - variances.sum()) / (size - count)
    if not rest > 0:
        return None
    single = np.float32
    unscaled = ClassDistance(
        means=means.astype(single),
        directions=directions.astype(single),
        variances=variances.astype(single),
        rest=float(rest),
        centre=0.0,
        spread=1.0,
    )
    distances = unscaled(validation)
    if not distances.std() > 0:
        return None
    return dataclasses.replace(unscaled, centre=float(distances.mean()), spread=float(distances.std()))
