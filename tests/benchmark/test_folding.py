"""The benchmark of folded normalisation on small images."""

from __future__ import annotations

import pytest

from pharmclf.config import RunConfig

pytestmark = pytest.mark.tf


def test_every_network_is_timed_plain_and_folded():
    """Forward three networks, and the gradients of two depths of one; each line is printed."""
    from pharmclf.benchmark.folding import benchmark_folding

    lines: list[str] = []
    report = benchmark_folding(RunConfig(batch_size=2, image_size=32), lines.append)
    kinds = [(row["backbone"], row["kind"]) for row in report["rows"]]
    assert kinds == [
        ("efficientnet_lite0", "forward"), ("mobilenet_v2", "forward"), ("resnet50", "forward"),
        ("efficientnet_lite0", "8 blocks trained"), ("efficientnet_lite0", "11 blocks trained"),
    ]  # fmt: skip
    assert all(row["ratio"] == row["folded"] / row["plain"] > 0 for row in report["rows"])
    assert len(lines) == len(kinds)
