"""The benchmark of large data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from pharmclf.benchmark.registry import get_benchmark
from pharmclf.benchmark.scale import _measure, _read_manifest, benchmark_scale
from pharmclf.benchmark.scaling_options import ScaleOptions
from pharmclf.config import ConfigError, RunConfig
from pharmclf.core.subprocess_call import run_in_subprocess


def test_every_part_is_measured_at_its_size_and_compared_to_all_pairs():
    """At the sizes of --quick: a row for each part, and the line of the ratio."""
    options, lines = get_benchmark("scale", quick=True).options, []
    report = benchmark_scale(RunConfig(), options, lines.append)
    assert [(row["part"].partition(",")[0], row["size"]) for row in report["rows"]] == [
        ("copies", 1000), ("copies", 1000), ("copies", 2000), ("splits", 100),
        ("manifest to batches", 200), ("manifest to batches", 2000), ("scores", 100),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["peak_mib"] >= 0 for row in report["rows"])
    assert len(lines) == 9
    assert report["ratios"]["copies, all pairs / index"] > 0


def test_the_smallest_sizes_that_are_accepted_can_be_split():
    with pytest.raises(ConfigError, match="--images: received 99, expected 100 or more"):
        ScaleOptions(images=99)
    _read_manifest(ScaleOptions(images=100).images // 10)()


def fill(size: int) -> Callable[[], object]:
    return lambda: np.ones(size, np.uint8).sum()


def test_the_peak_of_a_part_does_not_depend_on_the_memory_of_the_process_that_starts_it():
    held = np.ones(600 << 20, np.uint8)
    _, peak_mib = run_in_subprocess(partial(_measure, fill, 256 << 20))
    assert len(held) == 600 << 20
    assert 200 < peak_mib < 280
