"""How near an exported model is to the Keras model on the same images, and whether that is near enough; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf.core.errors import RunError
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.export.formats import CLOSE, Tolerance


class ExportError(RunError):
    """An exported model that cannot be made, cannot be run, or does not answer as the Keras model does."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same images."""

    num_images: int
    largest_difference: float
    """Of any probability of any image, 0..1; not a number where the exported model gives such."""
    num_equal: int
    """Images that get the same class from both."""
    num_close: int
    """Images whose probabilities differ by `CLOSE` at most."""
    num_same_side: int | None
    """Images that both answer or both leave to a human; None without a decision."""
    strangeness_difference: float | None = None
    """Of any strangeness; None where the exported model gives none."""

    @property
    def equal_share(self) -> float:
        """Share of the images that get the same class from both, 0..1."""
        return self.num_equal / self.num_images

    def __str__(self) -> str:
        text = f"largest difference of a probability {self.largest_difference:.1e}, "
        text += f"equal answers {self.num_equal:,} of {self.num_images:,} ({self.equal_share:.1%})"
        if self.strangeness_difference is not None:
            text += f", largest difference of a strangeness {self.strangeness_difference:.1e}"
        moved = 0 if self.num_same_side is None else self.num_images - self.num_same_side
        return text + (f", {moved:,} on the other side of the threshold" if moved else "")


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """What a model says of n images."""

    probabilities: np.ndarray
    """(n, classes)."""
    strangeness: np.ndarray | None = None
    """(n,) scores; None: the model gives none."""

    def first(self, count: int) -> ModelOutputs:
        """What it says of the first images."""
        strangeness = None if self.strangeness is None else self.strangeness[:count]
        return ModelOutputs(self.probabilities[:count], strangeness)

    def accepted(self, decision: AbstentionPolicy) -> np.ndarray:
        """(n,) booleans: whether a decision answers the images."""
        return decision.accepts(decision.calibrated(self.probabilities).max(axis=1), self.strangeness)


def compare(
    one: ModelOutputs,
    other: ModelOutputs,
    decision: AbstentionPolicy | None = None,
    found_decision: AbstentionPolicy | None = None,
) -> Comparison:
    """Compare what two models say of the same images.

    Args:
        one: of the Keras model, n > 0 images.
        other: of the exported model.
        decision: of the Keras model, if it has one.
        found_decision: that of the exported model, where it is another one.

    Raises:
        ExportError: the exported model gives arrays of another shape.
    """
    reference, found = one.probabilities, other.probabilities
    if found.shape != reference.shape:
        raise ExportError(f"it gives probabilities of shape {found.shape}, expected {reference.shape}")
    same_side, apart = None, None
    if decision is not None:
        same_side = int((one.accepted(decision) == other.accepted(found_decision or decision)).sum())
    if one.strangeness is not None and other.strangeness is not None:
        if other.strangeness.shape != one.strangeness.shape:
            shapes = f"{other.strangeness.shape}, expected {one.strangeness.shape}"
            raise ExportError(f"it gives strangeness of shape {shapes}")
        apart = float(np.abs(other.strangeness.astype(np.float64) - one.strangeness).max())
    differences = np.abs(found.astype(np.float64) - reference).max(axis=1)
    return Comparison(
        num_images=len(reference),
        largest_difference=float(differences.max()),
        num_close=int((differences <= CLOSE).sum()),
        num_equal=int((found.argmax(axis=1) == reference.argmax(axis=1)).sum()),
        num_same_side=same_side,
        strangeness_difference=apart,
    )


def check_policy(decision: AbstentionPolicy, found: AbstentionPolicy) -> None:
    """Refuse a model that keeps less of a promise than the Keras model does.

    Args:
        decision: of the Keras model.
        found: of the exported model, chosen with its own probabilities on the same kind of images.

    Raises:
        ExportError: it answers nothing, or its error is not assured, where the Keras model's is.
    """
    if found.threshold > 1 >= decision.threshold:
        raise ExportError(f"no threshold keeps the error at {found.max_error:.2%}, so that it answers no image")
    if decision.assured and not found.assured:
        raise ExportError(
            f"{found.num_validation_images:,} validation images do not assure an error of at most "
            f"{found.max_error:.2%}; with the Keras model they do"
        )


def check_tolerance(comparison: Comparison, tolerance: Tolerance) -> None:
    """Refuse a model that is too far from the Keras model.

    Raises:
        ExportError: it is.
    """
    if not comparison.largest_difference <= tolerance.difference:  # NaN fails too
        raise ExportError(f"{comparison}; expected a difference of at most {tolerance.difference:g}")
    apart = comparison.strangeness_difference
    if apart is not None and tolerance.strangeness is not None and not apart <= tolerance.strangeness:
        raise ExportError(f"{comparison}; expected a difference of strangeness of at most {tolerance.strangeness:g}")
    if comparison.num_close < tolerance.close_share * comparison.num_images:
        raise ExportError(
            f"{comparison}, {comparison.num_close:,} within {CLOSE:g}; expected at least {tolerance.close_share:.0%}"
        )
    if comparison.equal_share < tolerance.equal_share:
        raise ExportError(f"{comparison}; expected equal answers for at least {tolerance.equal_share:.0%}")
