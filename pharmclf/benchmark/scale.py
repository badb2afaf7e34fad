"""Benchmark of the parts around a training on large data sets: the search for copies, the splits, the manifest, scores.

Each part runs in a fresh process, on drawn data, so that its peak of memory is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from pharmclf.benchmark.measure import Report, resident_bytes
from pharmclf.benchmark.scaling_options import ScaleOptions
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.duplicate_candidates import TurnedSearch, hash_search
from pharmclf.data.image_decoding import perceptual_hash
from pharmclf.data.manifest import OK, Manifest
from pharmclf.data.splits import TRAIN, VALIDATION, split_rows

_NUM_BASES = 3000  # drawn images that are blended in pairs
_NUM_STEPS = 50  # of the batch plan


def benchmark_scale(_config: RunConfig, options: ScaleOptions, say: Say) -> Report:
    """Measure each part at its size.

    Returns:
        rows: for each part its name, size, seconds and peak of memory in MiB, without that of its imports and its data;
        ratios.
    """
    parts = [
        ("copies, all pairs", _search_all, options.compared),
        ("copies, index", _search_index, options.compared),
        ("copies, index", _search_index, options.images),
        ("splits, ten images a class", _split, options.classes),
        ("manifest to batches", _read_manifest, options.images // 10),
        ("manifest to batches", _read_manifest, options.images),
        ("scores, an image a class", _evaluate, options.classes),
    ]
    rows: list[Report] = []
    say(f"{'part':<28} {'size':>9} {'seconds':>9} {'peak MiB':>9}")
    for name, prepare, size in parts:
        seconds, peak = run_in_subprocess(partial(_measure, prepare, size))
        say(f"{name:<28} {size:>9,} {seconds:>9.2f} {peak:>9,.0f}")
        rows.append({"part": name, "size": size, "seconds": seconds, "peak_mib": peak})
    ratio = rows[0]["seconds"] / rows[1]["seconds"]
    say(f"seconds of all pairs on one core / index on all, {options.compared:,} images: {ratio:.1f}")
    return {"rows": rows, "ratios": {"copies, all pairs / index": ratio}}


def _measure(prepare: Callable[[int], Callable[[], object]], size: int) -> tuple[float, float]:
    """Seconds of a part after its preparation, and MiB that its peak adds to that."""
    call = prepare(size)
    before, began = resident_bytes(peak=True), time.perf_counter()
    call()
    return time.perf_counter() - began, (resident_bytes(peak=True) - before) / 2**20


def _search_index(size: int) -> Callable[[], object]:
    thumbnails, hashes = _draw_thumbnails(size)
    return lambda: [
        sum(len(pairs) for pairs in hash_search(hashes, thumbnails).pairs()),
        sum(len(pairs) for pairs in TurnedSearch(thumbnails).search.pairs()),
    ]


def _search_all(size: int) -> Callable[[], object]:
    thumbnails, hashes = _draw_thumbnails(size)

    def call() -> None:
        with threadpool_limits(1):  # threads of small products wait for each other longer than they compute
            for search in (hash_search(hashes, thumbnails), TurnedSearch(thumbnails).search):
                sum(len(pairs) for pairs in search.compare_all())

    return call


def _draw_thumbnails(size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Blends of drawn images, (size, 32, 32), every tenth of them white; and their hashes."""
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(part) for part in rng.integers(0, 256, (_NUM_BASES, 6, 6), dtype=np.uint8)]
    bases = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in drawn])
    thumbnails = np.full((size, 32, 32), 255, np.uint8)
    for row in np.flatnonzero(np.arange(size) % 10):
        one, other = bases[rng.integers(0, _NUM_BASES, 2)]
        weight = rng.uniform(0.2, 0.8)
        thumbnails[row] = one * weight + other * (1 - weight)
    return thumbnails, np.array([int(perceptual_hash(image), 16) for image in thumbnails], np.uint64)


def _split(classes: int) -> Callable[[], object]:
    labels = np.repeat([f"class_{number:05}" for number in range(classes)], 10)
    return lambda: split_rows(labels, np.arange(len(labels)), seed=0, test=0.2, validation=0.2)


def _read_manifest(size: int) -> Callable[[], object]:
    """Read a manifest, split it, and make the first steps of a plan."""
    folder = TemporaryDirectory(prefix="pharmclf-benchmark-")
    location = str(Path(folder.name) / "manifest.parquet")
    run_in_subprocess(partial(_write_manifest, size, location))  # memory that it frees here would hide the peak

    def call() -> None:
        with folder:
            manifest = Manifest.read(location)
        rows = manifest.ok
        manifest = manifest.with_splits(split_rows(rows["label"], rows["group"], seed=0, test=0.2, validation=0.2))
        plan = BatchPlan(manifest.rows(TRAIN), manifest.rows(VALIDATION), 64, seed=0, first_epoch=0, epochs=5)
        for step in range(min(_NUM_STEPS, plan.num_steps)):
            plan.step(step)

    return call


def _write_manifest(size: int, location: str) -> None:
    numbers = np.arange(size)
    names = tuple(f"class_{number:03}" for number in range(min(1000, size // 10)))
    table = pd.DataFrame(
        {
            "path": [f"/data/{number % len(names):03}/{number:08}.jpg" for number in numbers],
            "label": np.asarray(names, object)[numbers % len(names)],
            "size_bytes": 10_000, "sha256": [f"{number:064x}" for number in numbers], "width": 300, "height": 300,
            "phash": [f"{number:016x}" for number in numbers], "group": numbers, "split": "", "status": OK,
        }
    )  # fmt: skip
    Manifest(table, names).write(location)


def _evaluate(classes: int) -> Callable[[], object]:
    from pharmclf.evaluation.abstention_policy import fit_policy
    from pharmclf.evaluation.evaluate import evaluate, predictions_table
    from pharmclf.evaluation.result_files import write_evaluation

    rng = np.random.default_rng(0)
    rows, truth = np.arange(classes), rng.permutation(classes)
    probabilities = rng.random((classes, classes), dtype=np.float32) ** 8
    probabilities[rows, truth] += rng.normal(1, 0.5, classes).clip(0)
    for row in probabilities:
        row /= row.sum()
    names = [f"class_{number:05}" for number in range(classes)]
    paths, labels = [f"{row}.jpg" for row in rows], [names[number] for number in truth]

    def call() -> None:
        policy = fit_policy(probabilities, truth, rows, 0.02)
        table = predictions_table(rows, paths, labels, probabilities, names, policy)
        scores = evaluate(table, names, groups=rows, probabilities=probabilities, decision=policy)
        with TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
            write_evaluation(scores, table, folder, probabilities=probabilities)

    return call
