"""A run beside the same two-phase job in plain Keras: speed of the parts and of the whole, at equal test accuracy."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.benchmark.class_folders import link_splits
from pharmclf.benchmark.keras_run import run_keras
from pharmclf.benchmark.options import MeasureOptions
from pharmclf.benchmark.pharmclf_run import run_pharmclf
from pharmclf.benchmark.tables import format_number, format_ratio
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import data_location, split_manifest
from pharmclf.evaluation.metrics import Estimate, proportion

OURS = "ours"
TITLES = {"plain": "plain Keras", "cached": "plain, cached", OURS: "this"}


def benchmark_vs_keras(config: RunConfig, options: MeasureOptions, say: Say) -> dict[str, Any]:
    """Do the job of a configuration in plain Keras and as a run, one after the other, each in a fresh process.

    Args:
        config: the run; it trains in one process, and keeps activations as `feature_cache` and `augment.views` say.
        options: which plain ways, and how long inputs are measured alone.
        say: takes lines for the console.

    Returns:
        sides: of each what it measured, `test_accuracy` and its `interval`; rows: each measure beside the others with
        the ratios; comparable: for each plain way, whether its interval of the test accuracy meets ours.

    Raises:
        ConfigError: images that plain Keras cannot read.
    """
    if not options.sides:
        raise ConfigError("--sides: received none, expected plain, cached or both. Write --sides plain cached")
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        data = storage.absolute(data_location(dataclasses.replace(config, storage=folder)))
        config = dataclasses.replace(config, data=data, storage=f"{folder}/runs", workers="0")
        # in a place of its own, so that the run has to scan the images itself
        manifest = split_manifest(dataclasses.replace(config, storage=f"{folder}/scan"), folder)
        link_splits(manifest, Path(folder) / "splits")
        sides: dict[str, dict[str, Any]] = {}
        for name in options.sides:
            say(f"training in {TITLES[name]}")
            settings = config, f"{folder}/splits", len(manifest.class_names), name == "cached", options.seconds
            sides[name] = run_in_subprocess(partial(run_keras, *settings, time.time()))
        say("training with this package")
        sides[OURS] = run_in_subprocess(partial(run_pharmclf, config, options.seconds, time.time()))
    for side in sides.values():
        accuracy = _accuracy(side.pop("hits"), manifest)
        side |= {"test_accuracy": accuracy.value, "interval": [accuracy.low, accuracy.high]}
    report = {
        "backbone": config.backbone, "image_size": config.image_size, "batch_size": config.batch_size,
        "views": config.views, "train_images": len(manifest.rows("train")), "sides": sides,
        "test_images": len(manifest.rows("test")), "rows": compare(sides), "comparable": is_comparable(sides),
    }  # fmt: skip
    for line in comparison_table(report):
        say(line)
    return report


def _accuracy(hits: Mapping[int, bool], manifest: Manifest) -> Estimate:
    """Of one side.

    Raises:
        RuntimeError: it was not tested on the test images.
    """
    rows = manifest.rows("test")
    if set(hits) != set(rows.tolist()):
        raise RuntimeError(f"{len(hits)} images were tested, expected the {len(rows)} of the test split")
    return proportion(np.array([hits[row] for row in rows.tolist()]), manifest.table["group"].to_numpy()[rows])


def is_comparable(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """For each plain way, whether the interval of its test accuracy meets ours; else it was not the same job. Pure."""
    low, high = sides[OURS]["interval"]
    return {name: side["interval"][0] <= high and low <= side["interval"][1]
            for name, side in sides.items() if name != OURS}  # fmt: skip


def compare(sides: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each measure beside the others: `what`, `unit`, a value for each side, and `ratios` of the plain ways. Pure.

    A ratio says how many times as fast as that way a run is; seconds and images/s alike.
    """
    trained = {name: sum(phase["seconds"] for phase in side["phases"].values()) for name, side in sides.items()}
    trained[OURS] += sides[OURS]["parts_s"].get("activations", 0.0)
    rows = [_row("input alone: read, decode, augment", "images/s", {n: s["input_per_s"] for n, s in sides.items()})]
    for name in sides[OURS]["phases"]:
        rows.append(_row(name, "s", {side: each["phases"][name]["seconds"] for side, each in sides.items()}))
        rows.append(_row(f"{name}: epochs", "", {side: each["phases"][name]["epochs"] for side, each in sides.items()}))
    rows.append(_row("activations", "s", {OURS: sides[OURS]["parts_s"].get("activations", 0.0)}))
    rows.append(_row("training: phases and activations", "s", trained))
    rows.append(_row("whole run, from the start of the process", "s", {n: s["whole_s"] for n, s in sides.items()}))
    return rows


def _row(what: str, unit: str, values: dict[str, float]) -> dict[str, Any]:
    ours = values[OURS]
    ratios = {}
    if unit:
        others = {name: value for name, value in values.items() if name != OURS}
        ratios = {name: value / ours if unit == "s" else ours / value for name, value in others.items() if value > 0}
    return {"what": what, "unit": unit, "values": values, "ratios": ratios}


def comparison_table(report: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    sides = report["sides"]
    others = [name for name in sides if name != OURS]
    lines = []
    for row in report["rows"]:
        digits = 1 if row["unit"] else 0
        values = [format_number(row["values"].get(name), digits) for name in sides]
        lines.append([row["what"], row["unit"], *values, *(format_ratio(row["ratios"].get(name)) for name in others)])
    for name, rate in sides[OURS]["kept_per_s"].items():
        lines.append([f"{name}: kept activations read", "images/s", *("—" for _ in others), format_number(rate),
                      *("—" for _ in others)])  # fmt: skip
    shown = ["{:.3f} ({:.3f}-{:.3f})".format(side["test_accuracy"], *side["interval"]) for side in sides.values()]
    marks = ["equal" if report["comparable"][name] else "NOT EQUAL" for name in others]
    lines.append(["test accuracy", "95 %", *shown, *marks])
    heads = ["", "", *(TITLES[name] for name in sides), *(f"faster than {TITLES[name]}" for name in others)]
    told = align_columns([heads, *lines], left=[0])
    for name in others:
        if not report["comparable"][name]:
            told.append(f"the ratios to {TITLES[name]} are not comparable: the intervals of the accuracies do not meet")
    for name, side in sides.items():
        shares = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in side["parts_s"].items())
        told.append(f"where the time of {TITLES[name]} goes: {shares}")
    return told
