"""An evaluation as files: predictions.parquet, report.txt and metrics.json."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.evaluation.metrics import ConfusionCounts, Estimate, RiskCoverage
from pharmclf.evaluation.predictions_table import ABSTAIN, COLUMNS
from pharmclf.evaluation.results import Evaluation, most_confused_pairs
from pharmclf.evaluation.text import report_text

SCHEMA_VERSION = 2
MAX_MATRIX_CLASSES = 200
"""Up to so many classes metrics.json has the whole confusion matrix, of more the class numbers of its cells."""
_CURVE_POINTS = 200
_GROUP_NUMBERS = 2**24  # probabilities in a row group of predictions.parquet: 64 MiB


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values for JSON; every estimate is {value, low, high}, what is not known is None."""
    return {
        "schema_version": SCHEMA_VERSION,
        "num_images": evaluation.num_images,
        "num_groups": evaluation.num_groups,
        "interval": "95 %; Wilson at the effective sample size, for macro F1 and calibration a bootstrap over groups",
        "accuracy": dataclasses.asdict(evaluation.accuracy),
        "macro_f1": dataclasses.asdict(evaluation.macro_f1),
        "top_k_accuracy": {str(k): dataclasses.asdict(item) for k, item in evaluation.top_k_accuracy.items()},
        "calibration_error": dataclasses.asdict(evaluation.calibration_error),
        "raw_calibration_error": _optional(evaluation.raw_calibration_error),
        "reliability": [dataclasses.asdict(part) for part in evaluation.reliability],
        "answered": dataclasses.asdict(evaluation.answered) if evaluation.answered else None,
        "risk_coverage": _curve(evaluation.risk_coverage.downsampled(_CURVE_POINTS)),
        "classes": [dataclasses.asdict(item) for item in evaluation.classes],
        "most_confused_pairs": [dataclasses.asdict(pair) for pair in most_confused_pairs(evaluation)],
        **_confusion(evaluation.cells),
    }


def _confusion(cells: ConfusionCounts) -> dict[str, Any]:
    """The whole matrix of few classes; of many, whose matrix would be nearly all zeros, the cells that hold images."""
    if cells.num_classes <= MAX_MATRIX_CLASSES:
        return {"confusion": cells.matrix().tolist()}
    parts = {"true": cells.truth, "predicted": cells.predicted, "images": cells.counts}
    return {"confusion": None, "confusion_cells": {name: part.tolist() for name, part in parts.items()}}


def _optional(estimate: Estimate | None) -> dict[str, float] | None:
    return dataclasses.asdict(estimate) if estimate else None


def _curve(curve: RiskCoverage) -> dict[str, list[float]]:
    return {
        "thresholds": curve.thresholds.tolist(),
        "coverage": curve.coverage.tolist(),
        "error": curve.error.tolist(),
    }


def _write_parquet(table: pa.Table, probabilities: tuple[np.ndarray, np.ndarray] | None, sink: Any) -> None:
    """Write a table with the probabilities, (n, classes) and the order of their rows, in row groups that fit memory."""
    if probabilities is None:
        pq.write_table(table, sink, compression="zstd")
        return
    values, order = probabilities
    num_classes = values.shape[1]
    schema = table.schema.append(pa.field("probabilities", pa.list_(pa.float32(), num_classes)))
    step = max(1, _GROUP_NUMBERS // num_classes)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(order), step):
            flat = pa.array(np.ascontiguousarray(values[order[start : start + step]], np.float32).ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, num_classes)
            writer.write_table(table.slice(start, step).append_column(schema.field("probabilities"), column))


def write_evaluation(
    evaluation: Evaluation, predictions: pd.DataFrame, location: str, *, probabilities: np.ndarray | None = None
) -> list[str]:
    """Write predictions.parquet, report.txt and, last, metrics.json below a folder or prefix.

    Args:
        evaluation: the scores.
        predictions: what they were computed from, as `predictions_table` makes it; written sorted by `row`.
        location: the folder or prefix.
        probabilities: (n, classes) in the table's order, as the model gives them (before temperature scaling, unlike
            `confidence`): the column `probabilities`, a list of float32; left out without them.

    Returns:
        The three locations.
    """
    order = np.argsort(predictions["row"].to_numpy(), kind="stable")
    columns = [*COLUMNS, *([ABSTAIN] if ABSTAIN in predictions else [])]
    table = pa.Table.from_pandas(predictions[columns].iloc[order], preserve_index=False)
    sink = pa.BufferOutputStream()
    _write_parquet(table, None if probabilities is None else (probabilities, order), sink)
    names = ("predictions.parquet", "report.txt", "metrics.json")
    locations = [storage.join(location, name) for name in names]
    storage.write_bytes(locations[0], sink.getvalue().to_pybytes())
    storage.write_bytes(locations[1], report_text(evaluation, predictions).encode())
    storage.write_json(locations[2], to_dict(evaluation))
    return locations
