"""Benchmark of a run against the same two-phase job in plain Keras: speed of the parts, at equal accuracy."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pharmclf import storage
from pharmclf.benchmark.keras_run import run_keras
from pharmclf.benchmark.measure import MeasureOptions, Report, SideResult, format_number, format_ratio
from pharmclf.benchmark.pharmclf_run import local_runs, run_pharmclf
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_manifest
from pharmclf.data.splits import SPLITS
from pharmclf.evaluation.metrics import Estimate, proportion

OURS = "ours"
TITLES = {"plain": "plain Keras", "cached": "plain, cached", OURS: "this"}
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # that image_dataset_from_directory reads


@dataclass(frozen=True)
class Side:
    """One side of the comparison, with its test accuracy."""

    result: SideResult
    accuracy: Estimate


@dataclass(frozen=True)
class ComparedRow:
    """One measure of all sides."""

    what: str
    unit: str
    values: Mapping[str, float]
    """By side."""
    ratios: Mapping[str, float]
    """By plain side, how many times as fast a run is."""


def benchmark_vs_keras(config: RunConfig, options: MeasureOptions, say: Say) -> Report:
    """Train in plain Keras and as a run, one after the other, each in a fresh process.

    Args:
        config: the run; it trains in one process, and caches features as its settings say.
        options: the plain sides, and the seconds of measuring inputs alone.

    Returns:
        sides: fields of SideResult, `test_accuracy` and its `interval`; rows: fields of ComparedRow; comparable: for
        each plain side, whether its interval of the test accuracy overlaps that of the run.

    Raises:
        ConfigError: images that plain Keras cannot read.
    """
    with prepare_comparison(config) as (config, manifest, splits):
        results: dict[str, SideResult] = {}
        for name in options.sides:
            say(f"training in {TITLES[name]}")
            settings = config, splits, len(manifest.class_names), name == "cached", options.seconds
            results[name] = run_in_subprocess(partial(run_keras, *settings, time.time()))
        say("training with this package")
        results[OURS] = run_in_subprocess(partial(run_pharmclf, config, options.seconds, time.time()))
    sides = {name: Side(result, _accuracy(result.hits, manifest)) for name, result in results.items()}
    rows = compare(sides)
    for line in comparison_table(sides, rows):
        say(line)
    return {
        "backbone": config.backbone, "image_size": config.image_size, "batch_size": config.batch_size,
        "views": config.views, "train_images": len(manifest.rows("train")),
        "test_images": len(manifest.rows("test")), "sides": {name: side_to_dict(side) for name, side in sides.items()},
        "rows": [dataclasses.asdict(row) for row in rows], "comparable": is_comparable(sides),
    }  # fmt: skip


@contextlib.contextmanager
def prepare_comparison(config: RunConfig) -> Iterator[tuple[RunConfig, Manifest, str]]:
    """A run in this process in an empty storage, its images with their splits, and the folder of `link_splits`.

    Raises:
        ConfigError: as `link_splits`.
    """
    with local_runs(dataclasses.replace(config, num_workers="0")) as local:
        folder = local.storage
        # below another storage, so that the run has to scan the images itself
        manifest = split_manifest(dataclasses.replace(local, storage=f"{folder}/scan"), folder)
        link_splits(manifest, Path(folder) / "splits")
        yield dataclasses.replace(local, storage=f"{folder}/runs"), manifest, f"{folder}/splits"


def side_to_dict(side: Side) -> Report:
    """Plain values of a side for the JSON."""
    values = dataclasses.asdict(side.result)
    del values["hits"]
    return values | {"test_accuracy": side.accuracy.value, "interval": [side.accuracy.low, side.accuracy.high]}


def link_splits(manifest: Manifest, folder: Path) -> None:
    """Make class folders `<split>/<class number>/<row>.jpg` of links to the images, as plain Keras reads them.

    Raises:
        ConfigError: images that it cannot read.
    """
    rows = manifest.ok
    remote = [path for path in rows["path"] if storage.is_remote(path)]
    unreadable = remote or [path for path in rows["path"] if Path(path).suffix.lower() not in _SUFFIXES]
    if unreadable:
        raise ConfigError(
            f"{unreadable[0]} and {len(unreadable)} images in all: plain Keras reads {', '.join(_SUFFIXES)} from a "
            "local disk, nothing else. Give a data set of those to compare with it"
        )
    for split in SPLITS:
        for number in range(len(manifest.class_names)):
            (folder / split / f"{number:04d}").mkdir(parents=True)
    numbers = {name: number for number, name in enumerate(manifest.class_names)}
    for row, path, label, split in zip(rows.index, rows["path"], rows["label"], rows["split"], strict=True):
        link = folder / split / f"{numbers[label]:04d}" / f"{row:09d}{Path(path).suffix.lower()}"
        link.symlink_to(storage.absolute(path))


def _accuracy(hits: Mapping[int, bool], manifest: Manifest) -> Estimate:
    """Test accuracy of one side.

    Raises:
        RuntimeError: it was not tested on the test images.
    """
    rows = manifest.rows("test")
    if set(hits) != set(rows.tolist()):
        raise RuntimeError(f"{len(hits)} images were tested, expected the {len(rows)} of the test split")
    return proportion(np.array([hits[row] for row in rows.tolist()]), manifest.table["group"].to_numpy()[rows])


def is_comparable(sides: Mapping[str, Side]) -> dict[str, bool]:
    """For each plain side, whether its accuracy interval overlaps ours; else it was not the same job. Pure."""
    ours = sides[OURS].accuracy
    plain = {name: side.accuracy for name, side in sides.items() if name != OURS}
    return {name: each.low <= ours.high and ours.low <= each.high for name, each in plain.items()}


def compare(sides: Mapping[str, Side]) -> list[ComparedRow]:
    """Each measure of all sides, with the ratios; pure."""
    results = {name: side.result for name, side in sides.items()}
    ours = results[OURS]
    pass_s = ours.parts_s.get("activations", 0.0)
    trained = {name: sum(phase.seconds for phase in each.phases.values()) for name, each in results.items()}
    trained[OURS] += pass_s
    rows = [
        _row("input alone: read, decode, augment", "images/s", {n: each.input_per_s for n, each in results.items()})
    ]
    for phase in ours.phases:
        rows.append(_row(phase, "s", {name: each.phases[phase].seconds for name, each in results.items()}))
        rows.append(_row(f"{phase}: epochs", "", {name: each.phases[phase].epochs for name, each in results.items()}))
    rows.append(_row("feature cache", "s", {OURS: pass_s}))
    rows.append(_row("training: phases and feature cache", "s", trained))
    rows.append(_row("all, from the start of the process", "s", {name: each.whole_s for name, each in results.items()}))
    return rows


def _row(what: str, unit: str, values: dict[str, float]) -> ComparedRow:
    ours, ratios = values[OURS], dict[str, float]()
    if unit:
        others = {name: value for name, value in values.items() if name != OURS and value > 0}
        ratios = {name: value / ours if unit == "s" else ours / value for name, value in others.items()}
    return ComparedRow(what, unit, values, ratios)


def comparison_table(sides: Mapping[str, Side], rows: Sequence[ComparedRow]) -> list[str]:
    """The comparison as lines of text; pure."""
    others, comparable = [name for name in sides if name != OURS], is_comparable(sides)
    cells = [["", "", *(TITLES[name] for name in sides), *(f"faster than {TITLES[name]}" for name in others)]]
    for row in rows:
        values = [format_number(row.values.get(name), 1 if row.unit else 0) for name in sides]
        cells.append([row.what, row.unit, *values, *(format_ratio(row.ratios.get(name)) for name in others)])
    for phase, rate in sides[OURS].result.kept_per_s.items():
        values = [format_number(rate if name == OURS else None) for name in sides]
        cells.append([f"{phase}: feature cache read", "images/s", *values, *(format_ratio(None) for _ in others)])
    marks = ["equal" if comparable[name] else "NOT EQUAL" for name in others]
    cells.append(["test accuracy", "95 %", *(str(side.accuracy) for side in sides.values()), *marks])
    lines = align_columns(cells, left=[0])
    for name in others:
        if not comparable[name]:
            lines.append(f"the ratios to {TITLES[name]} are not comparable: the accuracy intervals do not overlap")
    for name, side in sides.items():
        parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in side.result.parts_s.items())
        lines.append(f"time of {TITLES[name]}: {parts}")
    return lines
