"""Suspicious labels: images whose label a model that has not seen them finds unlikely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pharmclf.evaluation.scoring import ScoredDataset

SUSPECTS_FILE = "suspects.csv"
COLUMNS = ("path", "label", "likely", "p_label", "p_likely", "group", "set")


def find_suspects(sets: Sequence[ScoredDataset], class_names: Sequence[str]) -> pd.DataFrame:
    """Rank the images that are predicted as another class than their label, the least likely label first.

    The probability of the label is the self-confidence of Northcutt et al. 2021, "Confident Learning: Estimating
    Uncertainty in Dataset Labels". Near duplicates follow each other.

    Args:
        sets: of images that the predicting models have not seen.
        class_names: in the order of the models' outputs.

    Returns:
        A row for each: the columns of `COLUMNS`, and its `place` in its set. `path` is relative to the images' root.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    parts = []
    for scored in sets:
        wrong, root = scored.table[scored.table["label"] != scored.table["predicted"]], scored.images.manifest.root
        places = wrong.index.to_numpy(np.int64)
        shares, label = scored.probabilities[places].astype(np.float64), wrong["label"].map(numbers).to_numpy(np.int64)
        parts.append(
            pd.DataFrame(
                {
                    "path": wrong["path"].str.removeprefix(root.rstrip("/") + "/"),
                    "label": wrong["label"],
                    "likely": wrong["predicted"],
                    "p_label": shares[np.arange(len(label)), label],
                    "p_likely": shares.max(axis=1),
                    "group": scored.images.groups[places],
                    "set": scored.images.name,
                    "place": places,
                }
            )
        )
    found = pd.concat(parts, ignore_index=True)
    least = found.groupby("group")["p_label"].transform("min")
    return found.assign(least=least).sort_values(["least", "group", "p_label", "path"]).drop(columns="least")


def suspects_csv(suspects: pd.DataFrame) -> bytes:
    """The content of `SUSPECTS_FILE`: a list that `--labels` takes back after a person has corrected its labels."""
    text = suspects.to_csv(columns=list(COLUMNS), index=False, float_format="%.4f", lineterminator="\n")
    return text.encode()
