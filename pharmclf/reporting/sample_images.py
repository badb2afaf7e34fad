"""The pictures of a report: samples, the surest mistakes, the most confused pairs; on some, where the model looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pharmclf import storage
from pharmclf.data.ray_loader import load_images
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.result_files import write_evaluation
from pharmclf.evaluation.results import ConfusedPair, accuracy_difference, most_confused_pairs
from pharmclf.evaluation.scoring import ScoredDataset, evenly_spaced_indices
from pharmclf.reporting import plots
from pharmclf.reporting.report_data import EvalSetReport, PredictedThumbnail

_SAMPLES, _WORST, _PAIRS, _PER_PAIR = 10, 8, 4, 4


def build_set_report(
    scored: ScoredDataset, first: ScoredDataset | None, image_size: int, explainer: Explainer | None
) -> EvalSetReport:
    """What a report says and shows of a set.

    Args:
        scored: the set.
        first: the one that it is compared with; None: this is the first.
        image_size: side of the pictures in pixels, that of the model's input.
        explainer: gives the heatmaps of mistakes; None: there are none.
    """
    table = scored.table
    wrong = table[table["label"] != table["predicted"]].sort_values(["confidence", "row"], ascending=[False, True])
    samples, worst = evenly_spaced_indices(len(table), _SAMPLES), wrong.index[:_WORST].to_numpy()
    pairs = most_confused_pairs(scored.evaluation, _PAIRS)
    confused = [
        wrong.index[(wrong["label"] == pair.label) & (wrong["predicted"] == pair.predicted)][:_PER_PAIR].to_numpy()
        for pair in pairs
    ]
    chosen = np.unique(np.concatenate([samples, worst, *confused])).astype(np.int64)
    explained = np.unique(np.concatenate([worst, *confused])).astype(np.int64) if explainer else chosen[:0]
    pictures = _load_thumbnails(scored, chosen, explained, image_size, explainer)
    return EvalSetReport(
        name=scored.images.name,
        source=scored.images.source,
        evaluation=scored.evaluation,
        samples=[pictures[place] for place in samples if place in pictures],
        worst=[pictures[place] for place in worst if place in pictures],
        confused=_with_thumbnails(pairs, confused, pictures),
        notes=scored.images.notes,
        drop=accuracy_difference(first.evaluation, scored.evaluation) if first else None,
    )


def _with_thumbnails(
    pairs: Sequence[ConfusedPair], places: Sequence[np.ndarray], pictures: dict[int, PredictedThumbnail]
) -> list[tuple[ConfusedPair, list[PredictedThumbnail]]]:
    return [
        (pair, [pictures[place] for place in mine if place in pictures])
        for pair, mine in zip(pairs, places, strict=True)
    ]


def _load_thumbnails(
    scored: ScoredDataset, chosen: np.ndarray, explained: np.ndarray, image_size: int, explainer: Explainer | None
) -> dict[int, PredictedThumbnail]:
    """Place in the table -> picture; a file that is not what the manifest says gives none."""
    table = scored.table
    images, bad = load_images(scored.images.files.select(chosen), image_size)
    images, chosen = images[bad == ""], chosen[bad == ""]
    explained = np.intersect1d(explained, chosen)
    heatmaps: dict[int, np.ndarray] = {}
    if explainer and len(explained):
        of_chosen = np.searchsorted(chosen, explained)
        given = scored.probabilities[explained].argmax(axis=1)  # the evidence for what the model says
        heatmaps = dict(zip(explained.tolist(), explainer.heatmaps(images[of_chosen], given), strict=True))
    found = {}
    for image, place in zip(images, chosen.tolist(), strict=True):
        row = table.iloc[place]
        found[place] = PredictedThumbnail(
            image=image,
            path=str(row["path"]),
            label=str(row["label"]),
            predicted=str(row["predicted"]),
            confidence=float(row["confidence"]),
            abstain=bool(row.get("abstain", False)),
            heatmap=heatmaps.get(place),
        )
    return found


def write_scored_dataset(scored: ScoredDataset, folder: str, image_size: int) -> None:
    """Write the numbers and pictures of a scored set below a folder or prefix."""
    write_evaluation(scored.evaluation, scored.table, folder, probabilities=scored.probabilities)
    pictures = {"confusion_matrix.png": plots.confusion_matrix_png(scored.evaluation)}
    shown = evenly_spaced_indices(len(scored.table), plots.NUM_SAMPLES)
    images, bad = load_images(scored.images.files.select(shown), image_size)
    usable = bad == ""
    pictures["sample_predictions.png"] = plots.sample_predictions_png(
        images[usable], scored.table.iloc[shown[usable]], class_names=scored.evaluation.class_names
    )
    for name, content in pictures.items():
        storage.write_bytes(storage.join(folder, name), content)
