"""Plots of the hardware of a run over time, a panel for each quantity.

Time without samples, as between two parts of a resumed run, is cut out. Warnings are shaded while they lasted, with ▼
for an alarm and ▽ for a warning, so that no plot needs colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.sample_log import has_pause
from pharmclf.monitoring.samples import NodeSample
from pharmclf.reporting.figures import (
    BLUE,
    DPI,
    GREEN,
    INK,
    ORANGE,
    RED,
    SOFT,
    chart_style,
    draw_grid,
    draw_phase_bar,
    new_figure,
    png_bytes,
)  # fmt: skip
from pharmclf.reporting.hardware_panels import TimePanel, build_panels

MAX_NODES = 2
"""Nodes whose panels are in a report: those with most warnings, then those with GPUs."""
_LOOKS = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("#7a4fa3", ":"))
_MAX_COLOURED = 4  # GPUs with a colour each; of more, only those with a warning stand out
_UNITS = (
    (180.0, 1.0, "seconds", [1, 2, 3, 6, 10]),
    (2 * 3600.0, 60.0, "minutes", [1, 2, 5, 10]),
    (3 * 86400.0, 3600.0, "hours", [1, 2, 3, 6, 10]),
    (float("inf"), 86400.0, "days", [1, 2, 5, 10]),
)
"""Up to which length, the unit in seconds, its name, and the steps of the axis."""
_PHASES = {"phase1": "phase 1", "phase2": "phase 2", "test": "test", "": "preparation"}
_LETTER_INCHES = 0.075  # of the name of a phase


class Timeline:
    """The rows of a node in one sequence, with the time between them cut out."""

    def __init__(self, rows: Sequence[NodeSample], findings: Sequence[HardwareAlert]) -> None:
        """Place the rows.

        Args:
            rows: of a node, the oldest first.
            findings: its warnings.
        """
        self.rows, self.findings = rows, findings
        self.ends_s = np.cumsum([row.seconds for row in rows])
        total_s = sum(row.seconds for row in rows)
        _, self.scale_s, self.unit, self.steps = next(unit for unit in _UNITS if total_s <= unit[0])
        self.total = total_s / self.scale_s
        """Length in the unit of the axis."""
        self.pauses = [place for place, pair in enumerate(itertools.pairwise(rows), start=1) if has_pause(*pair)]
        """Indices of the rows after a pause."""

    def middles(self) -> np.ndarray:
        """(rows,) middle of each row, in the unit of the axis."""
        lengths = np.array([row.seconds for row in self.rows])
        return np.asarray((self.ends_s - lengths / 2) / self.scale_s)

    def place(self, at_s: float) -> float:
        """A moment by the node's clock, in the unit of the axis."""
        for row, end_s in zip(self.rows, self.ends_s, strict=True):
            if at_s <= row.at_s:
                return float(end_s - min(row.seconds, row.at_s - at_s)) / self.scale_s
        return self.total

    def phases(self) -> list[tuple[str, float, float]]:
        """Each phase with its begin and end, in the unit of the axis."""
        phases, begin_s = [], 0.0
        for phase, group in itertools.groupby(self.rows, key=lambda row: row.phase):
            end_s = begin_s + sum(row.seconds for row in group)
            phases.append((phase, begin_s / self.scale_s, end_s / self.scale_s))
            begin_s = end_s
        return phases


def hardware_curves(rows: Iterable[NodeSample], findings: Iterable[HardwareAlert] = ()) -> list[tuple[str, bytes]]:
    """The panels of the report, as (title, PNG): of the `MAX_NODES` nodes with most to show; rows are by time."""
    findings = list(findings)
    by_node: dict[str, list[NodeSample]] = {}
    for row in rows:
        by_node.setdefault(row.node, []).append(row)
    warned = {node: sum(finding.node == node for finding in findings) for node in by_node}
    order = sorted(by_node, key=lambda node: (-warned[node], not by_node[node][-1].gpus, node))
    return [
        (f"{title}, {node}" if len(by_node) > 1 else title, png_bytes(figure))
        for node in order[:MAX_NODES]
        for title, figure in node_figures(by_node[node], [finding for finding in findings if finding.node == node])
    ]


@chart_style()
def node_figures(rows: Sequence[NodeSample], findings: Sequence[HardwareAlert] = ()) -> list[tuple[str, Figure]]:
    """The panels of one node, as (title, figure); its rows are in the order of time."""
    time, figures = Timeline(rows, findings), []
    for panel in build_panels(rows):
        figure = new_figure(6.6, 2.5)
        _draw_panel(figure.add_axes((0.075, 0.19, 0.9, 0.6)), panel, time)
        figures.append((panel.heading, figure))
    return figures


def _draw_panel(axes: Axes, panel: TimePanel, time: Timeline) -> None:
    has_phases = len(time.phases()) > 1
    findings = [finding for finding in time.findings if finding.rule in panel.rules]
    _draw_curves(axes, panel, time, {finding.device for finding in findings})
    _draw_legend(axes, panel, above_phases=has_phases)
    axes.set_xlim(0.0, time.total)
    draw_grid(axes)
    known = [value for curve in panel.curves.values() for value in curve if value is not None]
    top = panel.top or 1.12 * max([*known, *panel.limits], default=1.0) or 1.0
    low = 0.0 if panel.unit != "°C" else min([30.0, *known])
    axes.set_ylim(low, 1.04 * top if panel.top else top)
    axes.yaxis.set_major_locator(
        ticker.MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]) if known else ticker.NullLocator()
    )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, steps=time.steps))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(length=0, pad=3, labelsize=8)
    axes.set_xlabel(time.unit, size=8.5)
    if not known:
        axes.text(0.5, 0.5, "not known on this node", transform=axes.transAxes, color=SOFT, ha="center", va="center")
    for limit in panel.limits if known else ():
        axes.axhline(limit, color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)))
    for finding in findings:
        _shade(axes, finding, time)
    _draw_borders(axes, time)
    if has_phases:
        _name_phases(axes, time)


def _draw_curves(axes: Axes, panel: TimePanel, time: Timeline, warned: Collection[str]) -> None:
    """The curves, interrupted at pauses; of many GPUs in one colour except those with a warning."""
    places = time.middles()
    is_crowded = panel.per_gpu and len(panel.curves) > _MAX_COLOURED
    for number, (name, curve) in enumerate(panel.curves.items()):
        values = np.array([np.nan if value is None else value for value in curve], float)
        if np.isnan(values).all():
            continue
        x, y = np.insert(places, time.pauses, np.nan), np.insert(values, time.pauses, np.nan)
        look: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(places) <= 3 else "", "markersize": 3}
        (colour, line), label = _LOOKS[number % len(_LOOKS)], name
        if is_crowded and name in warned:
            colour, line = RED, "-"
        elif is_crowded:
            colour, line, label = BLUE, "-", "_"
            look |= {"linewidth": 0.7, "alpha": 0.45}
        axes.plot(x, y, line, color=colour, label=label or "_", **look)
        if not label:
            axes.fill_between(x, 0.0, y, color=colour, alpha=0.15, linewidth=0)


def _draw_legend(axes: Axes, panel: TimePanel, *, above_phases: bool) -> None:
    """Names of the curves, above the panel and the names of the phases."""
    handles, labels = axes.get_legend_handles_labels()
    if panel.per_gpu and len(panel.curves) > _MAX_COLOURED:
        handles.insert(0, Line2D([], [], color=BLUE, linewidth=0.9))
        labels.insert(0, f"each of {len(panel.curves)} GPUs")
    if len(panel.curves) > 1 and handles:
        axes.legend(
            handles, labels, ncols=len(labels), frameon=False, fontsize=7.5, labelcolor=SOFT, handlelength=2.0,
            loc="lower right", bbox_to_anchor=(1.005, 1.17 if above_phases else 0.98), borderpad=0.1, columnspacing=1.2,
        )  # fmt: skip


def _shade(axes: Axes, finding: HardwareAlert, time: Timeline) -> None:
    """The time of a warning, with its mark at the upper edge."""
    begin = time.place(finding.at_s)
    end = max(time.place(finding.until_s if finding.until_s is not None else time.rows[-1].at_s), begin)
    is_alarm = finding.level == "alarm"
    colour = RED if is_alarm else ORANGE
    axes.axvspan(begin, end, color=colour, alpha=0.1, linewidth=0)
    axes.plot(
        [begin], [0.96], marker="v", color=colour, markerfacecolor=colour if is_alarm else "white", markersize=5.5,
        clip_on=False, zorder=6, transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def _draw_borders(axes: Axes, time: Timeline) -> None:
    """A line at each border between phases and at each pause."""
    for _, begin, _ in time.phases()[1:]:
        axes.axvline(begin, color=SOFT, linewidth=0.8)
    for place in time.pauses:
        axes.axvline(float(time.ends_s[place - 1]) / time.scale_s, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))


def _name_phases(axes: Axes, time: Timeline) -> None:
    """A bar above each phase, with its name where there is room."""
    inches = axes.get_window_extent().width / DPI
    for phase, begin, end in time.phases():
        name, gap = _PHASES.get(phase, phase), min(0.004 * time.total, 0.2 * (end - begin))
        draw_phase_bar(axes, begin + gap, end - gap, 1.05)
        if (end - begin) / time.total * inches > _LETTER_INCHES * len(name):
            middle, above = (begin + end) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.08, name, transform=above, size=7.5, color=SOFT, ha="center", va="bottom")
