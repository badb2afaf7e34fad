"""The table of predictions: what the model said of each image.

One row per image: `row` (int64, row of the manifest), `path`, `label` (true class, text), `predicted` (text) and
`confidence` (probability of the predicted class, 0..1, float64). With a decision the confidence is that after
temperature scaling, and `abstain` (bool) says which images are left to a human. Probabilities of all classes are an
array of their own, (images, classes) float32 in the table's order, as the model gives them: a list column would be
slow and large in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pharmclf.evaluation import metrics
from pharmclf.evaluation.abstention_policy import AbstentionPolicy

COLUMNS = ("row", "path", "label", "predicted", "confidence")
"""The columns that every table of predictions has."""
ABSTAIN = "abstain"
"""The column that it has with a decision."""


def predictions_table(
    rows: np.ndarray,
    paths: Sequence[str],
    labels: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    decision: AbstentionPolicy | None = None,
) -> pd.DataFrame:
    """The table of predictions, in the order of its arguments.

    Args:
        rows: (n,) rows of the manifest.
        paths: n locations.
        labels: n true classes.
        probabilities: (n, classes), as the model gives them.
        class_names: in the order of the model's outputs.
        decision: the model's temperature and threshold, if it has them.

    Raises:
        ValueError: probabilities that do not fit the rows or the classes.
    """
    if probabilities.shape != (len(rows), len(class_names)):
        expected = (len(rows), len(class_names))
        raise ValueError(f"probabilities: received shape {probabilities.shape}, expected {expected}")
    best = probabilities.argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
    if decision:
        confidence = metrics.most_probable(probabilities, decision.temperature)[1]
    else:
        confidence = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0].astype(np.float64)
    table = pd.DataFrame(
        {
            "row": np.asarray(rows, np.int64),
            "path": np.asarray(paths, object),
            "label": np.asarray(labels, object),
            "predicted": np.asarray(class_names, object)[best],
            "confidence": confidence,
        }
    )
    return table.assign(**{ABSTAIN: ~decision.accepts(confidence)}) if decision else table
