"""The benchmark of large data sets."""

from __future__ import annotations

from pharmclf.benchmark.registry import get_benchmark
from pharmclf.benchmark.scale import benchmark_scale
from pharmclf.config import RunConfig


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
