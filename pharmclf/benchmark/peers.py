"""Benchmark of accuracy over time: a run, the same job in plain Keras, and fine-tuning in PyTorch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pharmclf.benchmark.keras_run import run_keras_points
from pharmclf.benchmark.measure import AccuracyPoint, PeersOptions, Report, format_number, format_ratio
from pharmclf.benchmark.peer_runs import get_or_make_torch_python, run_pharmclf_points, run_torch_points
from pharmclf.benchmark.vs_keras import prepare_comparison
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import RunError
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.metrics.intervals import share_interval
from pharmclf.monitoring.cores import usable_cores

OURS = "pharmclf"
TITLES = {OURS: "this package", "keras": "plain Keras, cache()", "torch": "PyTorch, all blocks"}


@dataclass(frozen=True)
class PeerRow:
    """A contestant."""

    side: str
    title: str
    epochs: int
    seconds: float
    """To the end of the last epoch."""
    target_s: float | None
    """To the target; None: not reached."""
    ratio: float | None
    """Of `target_s` to that of this package; None where one of both has not reached the target."""
    accuracy: Estimate
    """Of the final model on the test images."""


def benchmark_peers(config: RunConfig, options: PeersOptions, say: Say) -> Report:
    """Train each contestant once on the same images, splits and cores, one after the other.

    Args:
        config: the run, and the job in plain Keras; both train without GPUs, as PyTorch does.
        options: the contestants, the target, the epochs in PyTorch.

    Returns:
        rows: fields of PeerRow; curves: of each contestant [seconds, test accuracy of its best model so far];
        skipped: reasons by contestant; notes.

    Raises:
        ConfigError: images that plain Keras cannot read.
    """
    points, skipped = dict[str, Sequence[AccuracyPoint]](), dict[str, str]()
    with prepare_comparison(dataclasses.replace(config, accelerator="cpu")) as (config, manifest, splits):
        phase1, phase2 = (dataclasses.replace(phase, image_size="") for phase in (config.phase1, config.phase2))
        peers_config = dataclasses.replace(config, image_size=options.peers_image_size, phase1=phase1, phase2=phase2)
        if "torch" in options.sides:
            try:
                python = get_or_make_torch_python()
            except RunError as error:
                skipped["torch"] = str(error)
                say(f"{TITLES['torch']} is skipped: {error}")
        for side in (side for side in (*options.sides, OURS) if side not in skipped):
            say(f"training with {TITLES[side]}")
            if side == "torch":
                points[side] = run_torch_points(peers_config, manifest, options.peers_epochs, python)
            elif side == "keras":
                call = partial(run_keras_points, peers_config, splits, len(manifest.class_names), time.time())
                points[side] = run_in_subprocess(call)
            else:
                points[side] = run_in_subprocess(partial(run_pharmclf_points, config, time.time()))
    curves = {side: best_so_far(points[side]) for side in TITLES if side in points}
    tested = manifest.rows("test")
    rows = compare_curves(curves, manifest.table["group"].to_numpy()[tested], options.peers_target)
    notes = _notes(len(manifest.rows("train")), len(tested), options.peers_image_size)
    for line in [*peers_table(rows, options.peers_target), *notes]:
        say(line)
    return {
        "backbone": config.backbone, "image_size": config.image_size, "target": options.peers_target,
        "train_images": len(manifest.rows("train")), "test_images": len(tested), "notes": notes, "skipped": skipped,
        "rows": [dataclasses.asdict(row) for row in rows], "curves": curves,
        "points": {side: [dataclasses.asdict(point) for point in each] for side, each in points.items()},
    }  # fmt: skip


def best_so_far(points: Sequence[AccuracyPoint]) -> list[tuple[float, float]]:
    """(seconds, test accuracy) after each epoch, of the model with the best validation accuracy up to then; pure.

    As in a run, of equal ones that with the lowest validation loss counts.
    """
    best, curve = points[0], list[tuple[float, float]]()
    for point in points:
        best = max(best, point, key=lambda each: (each.val_accuracy, -each.val_loss))
        curve.append((point.seconds, best.test_accuracy))
    return curve


def time_to(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Seconds after which a curve first is at the target or above; None: never. Pure."""
    return next((seconds for seconds, accuracy in curve if accuracy >= target), None)


def compare_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], groups: np.ndarray, target: float
) -> list[PeerRow]:
    """A row for each contestant; pure.

    Args:
        curves: of `best_so_far`, by contestant.
        groups: of near duplicates, of each test image.
    """
    times = {side: time_to(curve, target) for side, curve in curves.items()}
    ours = times[OURS]
    rows = []
    for side, curve in curves.items():
        reached, (seconds, accuracy) = times[side], curve[-1]
        ratio = reached / ours if reached is not None and ours else None
        rows.append(PeerRow(side, TITLES[side], len(curve), seconds, reached, ratio, share_interval(accuracy, groups)))
    return rows


def peers_table(rows: Sequence[PeerRow], target: float) -> list[str]:
    """The comparison as lines of text; pure."""
    cells = [["", f"test accuracy {target:g} after", "ratio", "epochs", "last epoch after", "test accuracy (95 %)"]]
    for row in rows:
        reached = "not reached" if row.target_s is None else f"{format_number(row.target_s)} s"
        ratio, end = format_ratio(row.ratio), f"{format_number(row.seconds)} s"
        cells.append([row.title, reached, ratio, str(row.epochs), end, str(row.accuracy)])
    return align_columns(cells, left=[0])


def _notes(train_images: int, test_images: int, peers_size: int) -> list[str]:
    return [
        f"one run of each, one after the other on the same {usable_cores()} cores, without a GPU: {train_images} "
        f"training and {test_images} test images; another seed moves a time by an epoch or more",
        "a time counts from the start of the process to the end of an epoch with its validation, without tests on the "
        "test images, saved models and reports; the accuracy is that of the best model by validation so far",
        f"plain Keras and PyTorch look at whole images of {peers_size} px, decode each once and keep it in memory; "
        "PyTorch uses Pillow",
    ]
