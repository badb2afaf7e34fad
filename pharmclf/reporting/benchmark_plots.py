"""Plots of benchmarks: bar charts of what is compared, accuracy over time, and the efficiency expected of many GPUs.

Every bar carries its number as text, and every line its own markers, so that no plot needs colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pharmclf.reporting.figures import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    SOFT,
    chart_style,
    draw_grid,
    new_figure,
    write_key,
)  # fmt: skip
from pharmclf.reporting.fonts import format_names
from pharmclf.reporting.text_format import phase_name

_PARTS = ("#08355e", "#0072b2", "#7db8dd", "#d55e00", "#f5a563", "#00795c", "#8fc9b5", "#6b7785")
_BAR, _HEAD, _FOOT = 0.34, 0.62, 0.12  # inches
_SPEEDS = LinearSegmentedColormap.from_list("speeds", ["#7db8dd", "#0072b2", "#08355e"])
_MARKERS = "osD^vPX*"
_BATCHES = {"fixed": "a fixed global batch", "grown": "a global batch that grows"}


@dataclass(frozen=True)
class Bar:
    """One of the things compared."""

    label: str
    value: float
    text: str
    """The value, and its ratio to another bar."""
    interval: tuple[float, float] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    """Summands of the value; empty: the bar has one colour."""


@dataclass(frozen=True)
class BarPanel:
    """One measure."""

    title: str
    bars: Sequence[Bar]


@chart_style()
def bars_figure(title: str, subtitle: str, panels: Sequence[BarPanel]) -> Figure:
    """Panels below each other, bars from the left.

    Raises:
        ValueError: no panels, or one without bars.
    """
    if not panels or not all(panel.bars for panel in panels):
        raise ValueError(f"panels: received {len(panels)}, expected one or more with a bar or more each")
    bars = sorted((bar for panel in panels for bar in panel.bars), key=lambda bar: -len(bar.parts))
    parts = dict.fromkeys(name for bar in bars for name in bar.parts)  # in the order of the longest list
    colours = {name: _PARTS[place % len(_PARTS)] for place, name in enumerate(parts)}
    top = 1.0 + (0.3 if colours else 0.0)
    heights = [_HEAD + _BAR * len(panel.bars) + _FOOT for panel in panels]
    width, height = 11.0, top + sum(heights) + 0.15
    figure = new_figure(width, height, title, subtitle)
    at = 0.25
    for name, colour in colours.items():
        write_key(figure, at, 0.82, name, colour, size=10)
        at += 0.42 + 0.078 * len(name)
    left = 0.45 + 0.075 * max(len(format_names(bar.label, 46)) for bar in bars)
    upper = height - top
    for panel, panel_height in zip(panels, heights, strict=True):
        upper -= panel_height
        box = (left / width, (upper + _FOOT) / height, (width - left - 2.6) / width, _BAR * len(panel.bars) / height)
        _draw_bars(figure.add_axes(box), panel, colours)
    return figure


def _draw_bars(axes: Axes, panel: BarPanel, colours: Mapping[str, str]) -> None:
    most = max(max(bar.value, bar.interval[1] if bar.interval else 0.0) for bar in panel.bars) or 1.0
    for place, bar in enumerate(panel.bars):
        begin = 0.0
        for name, value in bar.parts.items():
            axes.barh(place, value, 0.68, left=begin, color=colours[name])
            begin += value
        if not bar.parts:
            axes.barh(place, bar.value, 0.68, color=BLUE)
        end = bar.value
        if bar.interval:
            axes.plot(bar.interval, (place, place), color=INK, linewidth=1.4, marker="|", markersize=7)
            end = max(end, bar.interval[1])
        axes.annotate(
            bar.text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", size=9, color=INK,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_title(panel.title, pad=6)
    axes.set_yticks(range(len(panel.bars)), [format_names(bar.label, 46) for bar in panel.bars], color=INK)
    axes.set_xticks([])
    axes.set_xlim(0, most)
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color=FAINT)


@chart_style()
def curves_figure(
    title: str, subtitle: str, curves: Mapping[str, Sequence[tuple[float, float]]], target: float
) -> Figure:
    """Accuracies that are kept until the next point, over time, and a target.

    Args:
        curves: by name, (seconds, accuracy 0..1) in the order of time.
        target: accuracy of the dashed line, 0..1.
    """
    figure = new_figure(11.0, 5.2, title, subtitle)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.975, bottom=0.11, top=0.83)
    unit, seconds = ("minutes", 60.0) if max(curve[-1][0] for curve in curves.values()) >= 180 else ("seconds", 1.0)
    for place, (name, curve) in enumerate(curves.items()):
        times, values = zip(*curve, strict=True)
        axes.plot(
            [time / seconds for time in times], values, drawstyle="steps-post", label=name, linewidth=1.6,
            color=(BLUE, ORANGE, GREEN)[place % 3], marker=_MARKERS[place % len(_MARKERS)], markersize=5,
        )  # fmt: skip
    axes.axhline(target, color=SOFT, linestyle="--", linewidth=1.0, label=f"target, {target:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit} from the start of the process")
    axes.set_ylabel("test accuracy")
    draw_grid(axes, "both")
    figure.legend(loc="upper right", ncols=len(curves) + 1, frameon=False, labelcolor=SOFT)
    return figure


@chart_style()
def scaling_figure(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]) -> Figure:
    """Efficiency over the number of GPUs, a row of panels for each phase, a line for each speed of the network.

    Args:
        rows: with phase, batch ("fixed" or "grown"), link_gbit, gpus, efficiency (0..1).
        sizes: bytes that are summed in a step of each phase.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: received none, expected a forecast")
    height = 1.0 + 3.3 * len(sizes)
    subtitle = "images/s of each GPU, as a share of those of one alone"
    figure = new_figure(11.0, height, "Expected efficiency", subtitle)
    panels = figure.subplots(len(sizes), 2, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.975, bottom=0.52 / height, top=1 - 1.1 / height, wspace=0.08, hspace=0.3)
    numbers = sorted({row["gpus"] for row in rows})
    for line, (phase, size) in zip(panels, sizes.items(), strict=True):
        for axes, (batch, title) in zip(line, _BATCHES.items(), strict=True):
            _draw_speeds(axes, [row for row in rows if row["phase"] == phase and row["batch"] == batch], rows)
            axes.set_title(f"{phase_name(phase)}, {size / 1e6:.1f} MB a step, {title}", size=9.5)
            axes.set_xscale("log", base=2)
            axes.set_xlim(0.9, 1.1 * numbers[-1])
            axes.set_ylim(0, 1.05)
            draw_grid(axes)
            axes.set_xticks(numbers, [f"{gpus:g}" for gpus in numbers])
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    for axes in panels[-1]:
        axes.set_xlabel("GPUs")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=min(4, len(labels)), frameon=False, labelcolor=SOFT)
    return figure


def _draw_speeds(axes: Axes, rows: Sequence[Mapping[str, Any]], all_rows: Sequence[Mapping[str, Any]]) -> None:
    speeds = sorted({row["link_gbit"] for row in all_rows})
    for place, speed in enumerate(speeds):
        points = [(row["gpus"], row["efficiency"]) for row in rows if row["link_gbit"] == speed]
        axes.plot(
            [gpus for gpus, _ in points],
            [efficiency for _, efficiency in points],
            color=_SPEEDS(float(np.interp(place, [0, max(1, len(speeds) - 1)], [0, 1]))),
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=f"{speed:g} Gbit/s",
            clip_on=False,
        )
