"""Gathers what a report shows of data sets, of scored sets with their images, and of the machine."""

from __future__ import annotations

import platform
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from pharmclf import storage
from pharmclf.core.units import format_memory
from pharmclf.data.decoded_image import Crop
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_counts
from pharmclf.data.ray_loader import load_images
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import ABSTAIN
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.result_files import write_evaluation
from pharmclf.evaluation.results import accuracy_difference, most_confused_pairs
from pharmclf.evaluation.scoring import ScoredDataset, UnknownScores
from pharmclf.monitoring.cores import usable_cores
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.image_sample import evenly_spaced_indices, load_thumbnails, load_upright, sample_dataset
from pharmclf.reporting.report_data import DatasetReport, EvalSetReport, PredictedThumbnail, Prediction, UnknownReport
from pharmclf.reporting.run_plots import NUM_SAMPLES, confusion_matrix_figure, sample_predictions_figure

_GROUPS, _PER_GROUP, _QUARANTINED = 4, 4, 50
_SAMPLES, _WORST, _PAIRS, _PER_PAIR, _SUSPECTS = 10, 8, 4, 4, 12
MAX_PREDICTIONS = 1000
"""Rows of the table of test images: a row takes about 150 bytes of the page."""


def build_dataset_report(manifest: Manifest, *, has_splits: bool = True) -> DatasetReport:
    """The data section of a report; a bounded sample of the images is read.

    Args:
        has_splits: whether it is the data of a run; if not, a model is tested on all of it, whatever a list says.
    """
    if not has_splits:
        manifest = manifest.with_splits(["test"] * len(manifest.ok))
    rows = manifest.ok
    sizes = rows["group"].value_counts()
    copies = sizes[sizes > 1]
    bad = manifest.quarantined
    examples, quality = sample_dataset(manifest)
    groups = [rows.index[rows["group"] == group][:_PER_GROUP].tolist() for group in sorted(copies.index)[:_GROUPS]]
    return DatasetReport(
        counts=split_counts(manifest),
        quarantined=[(str(row.path), str(row.status)) for row in bad.head(_QUARANTINED).itertuples()],
        num_quarantined=len(bad),
        num_duplicate_groups=len(copies),
        num_duplicate_images=int(copies.sum()),
        num_torn_groups=int((rows.groupby("group")["split"].nunique() > 1).sum()),
        duplicate_groups=[list(load_thumbnails(manifest, group).values()) for group in groups],
        examples=examples,
        quality=quality,
        notes=manifest.notes,
        has_splits=has_splits,
        white_level=manifest.white_level,
    )


def describe_machine(device: str, workers: int) -> list[tuple[str, str]]:
    """Devices, and the machine of the driver, as (what, text)."""
    memory = format_memory(psutil.virtual_memory().total)
    return [
        ("device", device),
        ("workers", str(workers) if workers else "none; in one process"),
        ("driver", f"{platform.system()} {platform.machine()}, {usable_cores()} CPU cores, {memory}"),
    ]


def build_set_report(
    scored: ScoredDataset, first: ScoredDataset | None, image_size: int, explainer: Explainer | None
) -> EvalSetReport:
    """The sections of a report on one set.

    Args:
        first: the set that it is compared with; None: this is the first.
        image_size: side of the model's input in pixels, for the heatmaps.
        explainer: computes the heatmaps of mistakes; None: there are none.
    """
    table, root = scored.table, scored.images.manifest.root
    wrong = table[table["label"] != table["predicted"]].sort_values(["confidence", "row"], ascending=[False, True])
    samples, worst = evenly_spaced_indices(len(table), _SAMPLES), wrong.index[:_WORST].to_numpy()
    pairs = most_confused_pairs(scored.evaluation, _PAIRS)
    confused = [
        wrong.index[(wrong["label"] == pair.label) & (wrong["predicted"] == pair.predicted)][:_PER_PAIR].to_numpy()
        for pair in pairs
    ]
    chosen = np.unique(np.concatenate([samples, worst, *confused])).astype(np.int64)
    explained = np.unique(np.concatenate([worst, *confused])).astype(np.int64) if explainer else chosen[:0]
    thumbnails = _load_thumbnails(scored, chosen, explained, image_size, explainer)

    def select(indices: np.ndarray) -> list[PredictedThumbnail]:
        return [thumbnails[index] for index in indices if index in thumbnails]

    return EvalSetReport(
        name=scored.images.name,
        source=scored.images.source,
        evaluation=scored.evaluation,
        samples=select(samples),
        worst=select(worst),
        confused=[(pair, select(indices)) for pair, indices in zip(pairs, confused, strict=True)],
        notes=scored.images.notes,
        predictions=() if first else list_predictions(table, root),
        root=root,
        drop=accuracy_difference(first.evaluation, scored.evaluation) if first else None,
    )


def build_unknown_report(scores: UnknownScores) -> UnknownReport:
    """The section of a report on images of unknown products."""
    images, table = scores.images, scores.table
    worst = table[~table[ABSTAIN]].sort_values(["confidence", "row"], ascending=[False, True]).index[:_WORST]
    return UnknownReport(
        name=images.name,
        source=images.source,
        num_images=len(table),
        answered=scores.answered,
        unknown=scores.unknown,
        products=scores.products,
        worst=list(_load_shown(images, table, worst.to_numpy(np.int64), {}).values()),
        notes=images.notes,
    )


def load_suspects(sets: Sequence[ScoredDataset], suspects: pd.DataFrame) -> list[PredictedThumbnail]:
    """Thumbnails of the first of the images with suspicious labels.

    Args:
        sets: that the suspects were found in.
        suspects: of `find_suspects`.
    """
    first = suspects.head(_SUSPECTS)
    images: dict[tuple[str, int], PredictedThumbnail] = {}
    for scored in sets:
        places = first.loc[first["set"] == scored.images.name, "place"].to_numpy(np.int64)
        found = _load_shown(scored.images, scored.table, places, {})
        images |= {(scored.images.name, place): thumbnail for place, thumbnail in found.items()}
    keys = zip(first["set"], first["place"], strict=True)
    return [images[key] for key in keys if key in images]


def _load_thumbnails(
    scored: ScoredDataset, chosen: np.ndarray, explained: np.ndarray, image_size: int, explainer: Explainer | None
) -> dict[int, PredictedThumbnail]:
    """Index in the table -> thumbnail, some with heatmaps."""
    files = scored.images.files
    heatmaps: dict[int, np.ndarray] = {}
    if explainer and len(explained):
        images, bad = load_images(files.select(explained), image_size)
        explained = explained[bad == ""]
        maps = explainer.heatmaps(images[bad == ""], scored.probabilities[explained].argmax(axis=1))
        shown = files.select(explained)
        heatmaps = {index: _place_map(maps[n], shown.crop(n)) for n, index in enumerate(explained.tolist())}
    return _load_shown(scored.images, scored.table, chosen, heatmaps)


def _load_shown(
    images: EvalDataset, table: pd.DataFrame, chosen: np.ndarray, heatmaps: Mapping[int, np.ndarray]
) -> dict[int, PredictedThumbnail]:
    """Index in the table -> thumbnail; without files that differ from the manifest."""
    rows = table.iloc[chosen].to_dict("records")
    return {
        index: PredictedThumbnail(image=image, heatmap=heatmaps.get(index), **_prediction(row))
        for index, image, row in zip(chosen.tolist(), load_upright(images.files.select(chosen)), rows, strict=True)
        if image is not None
    }


def _place_map(heatmap: np.ndarray, crop: Crop | None) -> np.ndarray:
    """The heatmap (S, S) of a part of an image, in that of the whole image: (S, S)."""
    if crop is None:
        return heatmap
    size = len(heatmap)
    left, top, right, bottom = (round(value) for value in crop.in_pixels(size, size))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    whole = np.zeros_like(heatmap)
    part = Image.fromarray(heatmap.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    whole[top:bottom, left:right] = np.asarray(part)[: size - top, : size - left]
    return whole


def list_predictions(table: pd.DataFrame, root: str, most: int = MAX_PREDICTIONS) -> list[Prediction]:
    """The images of a set that a reader wants to see first: the surest mistakes, then the least sure right answers.

    Args:
        table: of `predictions_table`.
        root: the folder or prefix that paths leave out.
    """
    right = table["label"] == table["predicted"]
    doubt = table["confidence"].where(right, -table["confidence"])
    order = table.assign(right=right, doubt=doubt).sort_values(["right", "doubt", "row"])
    prefix = root.rstrip("/") + "/"
    return [Prediction(**_prediction(row, prefix)) for row in order.head(most).to_dict("records")]


def _prediction(row: Mapping[Hashable, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a `Prediction` from a row of `predictions_table`."""
    return {
        "path": str(row["path"]).removeprefix(prefix),
        "label": str(row["label"]),
        "predicted": str(row["predicted"]),
        "confidence": float(row["confidence"]),
        "abstain": bool(row[ABSTAIN]) if ABSTAIN in row else None,
    }


def write_scored_dataset(scored: ScoredDataset, folder: str, image_size: int) -> None:
    """Write the scores and plots of a scored set below a folder or prefix."""
    write_evaluation(scored.evaluation, scored.table, folder, probabilities=scored.probabilities)
    shown = evenly_spaced_indices(len(scored.table), NUM_SAMPLES)
    images, bad = load_images(scored.images.files.select(shown), image_size)
    usable = bad == ""
    samples = sample_predictions_figure(images[usable], scored.table.iloc[shown[usable]], scored.evaluation.class_names)
    for name, figure in (
        ("confusion_matrix.png", confusion_matrix_figure(scored.evaluation)),
        ("sample_predictions.png", samples),
    ):
        storage.write_bytes(storage.join(folder, name), png_bytes(figure))
