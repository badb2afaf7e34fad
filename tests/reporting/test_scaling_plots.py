"""The picture of a forecast: PNG that opens, with every text readable."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from figure_checks import check_texts, opened

from pharmclf.reporting.benchmark_plots import scaling_figure
from pharmclf.reporting.figures import png_bytes


def make_rows(phases: int = 2, speeds: tuple[float, ...] = (10.0, 25.0, 100.0, 400.0)) -> list[dict[str, Any]]:
    """Made-up rows; a fixed batch ends at 32 GPUs."""
    rows = []
    for phase, batch, speed in itertools.product(range(phases), ("fixed", "grown"), speeds):
        for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            if batch == "grown" or gpus <= 32:
                share = 1 / (1 + (gpus - 1) / (speed * (phase + 1)))
                row = {"phase": f"phase{phase + 1}", "batch": batch, "link_gbit": speed, "gpus": gpus}
                rows.append(row | {"efficiency": share})
    return rows


SIZES = {"phase1": 3.2e6, "phase2": 123.4e6}


def test_a_forecast_is_a_picture():
    png = png_bytes(scaling_figure(make_rows(), SIZES))
    opened(png)
    assert png == png_bytes(scaling_figure(make_rows(), SIZES))


@pytest.mark.parametrize(("phases", "speeds"), [(1, (10.0,)), (2, (10.0, 25.0, 100.0, 400.0)), (2, (0.5, 1600.0))])
def test_no_text_is_clipped_or_covered_by_another(phases: int, speeds: tuple[float, ...]):
    sizes = dict(itertools.islice(SIZES.items(), phases))
    check_texts(scaling_figure(make_rows(phases, speeds), sizes))


def test_an_empty_forecast_is_refused():
    with pytest.raises(ValueError, match="expected a forecast"):
        scaling_figure([], SIZES)
