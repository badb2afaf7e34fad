"""The picture of a forecast: the efficiency of many GPUs, a line for each speed of the network.

In the look of `plots`. Each line has markers of its own, so that no picture needs colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pharmclf.reporting.plots import DPI, SOFT, phase_name, png_bytes, styled, write_heading

_SPEEDS = LinearSegmentedColormap.from_list("speeds", ["#7db8dd", "#0072b2", "#08355e"])
_MARKERS = "osD^vPX*"
_TITLES = {"fixed": "a fixed global batch", "grown": "a global batch that grows"}


def scaling_png(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]) -> bytes:
    """Efficiency over the number of GPUs, a row of panels for each phase: the same global batch, and one that grows.

    Args:
        rows: with phase, batch ("fixed" or "grown"), link_gbit, gpus, efficiency (0..1).
        sizes: bytes that are summed in a step of each phase.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: received none, expected a forecast")
    with styled():
        return png_bytes(_figure(rows, sizes))


def _figure(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]) -> Figure:
    height = 1.0 + 3.3 * len(sizes)
    figure = Figure(figsize=(11.0, height), dpi=DPI)
    write_heading(figure, "Expected efficiency", "images/s of each GPU, as a share of those of one alone")
    panels = figure.subplots(len(sizes), 2, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.975, bottom=0.52 / height, top=1 - 1.1 / height, wspace=0.08, hspace=0.3)
    speeds = sorted({row["link_gbit"] for row in rows})
    numbers = sorted({row["gpus"] for row in rows})
    for line, (phase, size) in zip(panels, sizes.items(), strict=True):
        for axes, (batch, title) in zip(line, _TITLES.items(), strict=True):
            mine = [row for row in rows if row["phase"] == phase and row["batch"] == batch]
            _curves(axes, mine, speeds)
            axes.set_title(f"{phase_name(phase)}, {size / 1e6:.1f} MB a step, {title}", size=9.5)
            axes.set_xscale("log", base=2)
            axes.set_xlim(0.9, 1.1 * numbers[-1])
            axes.set_ylim(0, 1.05)
            axes.grid(axis="y", color="#eef1f4", linewidth=0.8)
            axes.set_xticks(numbers, [f"{gpus:g}" for gpus in numbers])
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    for axes in panels[-1]:
        axes.set_xlabel("GPUs")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=min(4, len(labels)), frameon=False, labelcolor=SOFT)
    return figure


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], speeds: Sequence[float]) -> None:
    for place, speed in enumerate(speeds):
        mine = [row for row in rows if row["link_gbit"] == speed]
        axes.plot(
            [row["gpus"] for row in mine],
            [row["efficiency"] for row in mine],
            color=_SPEEDS(float(np.interp(place, [0, max(1, len(speeds) - 1)], [0, 1]))),
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=f"{speed:g} Gbit/s",
            clip_on=False,
        )
