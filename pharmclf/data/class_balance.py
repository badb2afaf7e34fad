"""How evenly the training images are spread over the classes; pure."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

_UNBALANCED = 3.0
"""Times as many images of the largest class as of the smallest one, from which it is said."""


def imbalance_note(labels: Iterable[str]) -> str:
    """What to know of classes that differ much in size; "" where they do not.

    Args:
        labels: of the training images.
    """
    counts = pd.Series(list(labels), dtype=object).value_counts(sort=False).sort_index()
    if counts.empty or counts.max() < _UNBALANCED * counts.min():
        return ""
    most, fewest = counts.idxmax(), counts.idxmin()
    return (
        f"note: unbalanced classes: {counts.max():,} training images of {most}, {counts.min():,} of {fewest}. Accuracy "
        "says little of small classes; with optimizer.class_weights auto all classes weigh alike, and epochs are "
        "chosen by balanced accuracy"
    )
