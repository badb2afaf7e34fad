"""One panel of the hardware over time: its curves, limits, warnings, phases and pauses.

Time in which nothing was read, as between two parts of a resumed run, is cut out. What was too much is shaded where it
lasted, with ▼ for an alarm and ▽ for a warning, so that no picture needs colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.sample_log import has_pause
from pharmclf.monitoring.samples import NodeSample
from pharmclf.reporting.plots import BLUE, DPI, FAINT, GREEN, INK, ORANGE, RED, SOFT

_LOOKS = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("#7a4fa3", ":"))
_ALONE = 4  # GPUs that have a colour each; of more, those stand out that a warning is of
_UNITS = (
    (180.0, 1.0, "seconds", [1, 2, 3, 6, 10]),
    (2 * 3600.0, 60.0, "minutes", [1, 2, 5, 10]),
    (3 * 86400.0, 3600.0, "hours", [1, 2, 3, 6, 10]),
    (float("inf"), 86400.0, "days", [1, 2, 5, 10]),
)
"""Up to which length, the unit in seconds, its name, and the steps of the axis."""
_PHASES = {"phase1": "phase 1", "phase2": "phase 2", "test": "test", "": "preparation"}
_LETTER_INCHES = 0.075  # of the name of a phase
_LIMIT: dict[str, Any] = {"color": SOFT, "linewidth": 0.9, "linestyle": (0, (1, 2))}


@dataclass(frozen=True)
class TimeCurve:
    """One line of a panel."""

    name: str
    values: Sequence[float | None]
    """One for each row."""


@dataclass(frozen=True, kw_only=True)
class TimePanel:
    """One picture of one quantity."""

    title: str
    curves: Sequence[TimeCurve]
    unit: str = "%"
    top: float | None = None
    """Of the axis; None: what the values need."""
    rules: Sequence[str] = ()
    """Keys of `THRESHOLDS` whose warnings are shown here."""
    limits: Sequence[float] = ()
    """Where warnings begin."""
    many: bool = False
    """Whether there is a curve for each GPU."""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}"


class Timeline:
    """The rows of a node one behind the other, with the time that lies between them cut out."""

    def __init__(self, rows: Sequence[NodeSample], findings: Sequence[HardwareAlert]) -> None:
        """Work out where each row stands.

        Args:
            rows: of a node, the oldest first.
            findings: its warnings.
        """
        self.rows, self.findings = rows, findings
        self.total_s = sum(row.seconds for row in rows)
        self.ends_s = np.cumsum([row.seconds for row in rows])
        _, self.scale_s, self.unit, self.steps = next(unit for unit in _UNITS if self.total_s <= unit[0])
        self.pauses = [place for place, pair in enumerate(itertools.pairwise(rows), start=1) if has_pause(*pair)]
        """Places of the rows that came after a pause."""

    def middles(self) -> np.ndarray:
        """(rows,) where each row is drawn, in the unit of the axis."""
        lengths = np.array([row.seconds for row in self.rows])
        return np.asarray((self.ends_s - lengths / 2) / self.scale_s)

    def of(self, at_s: float) -> float:
        """A moment by the node's clock, in the unit of the axis."""
        for row, end_s in zip(self.rows, self.ends_s, strict=True):
            if at_s <= row.at_s:
                return float(end_s - min(row.seconds, row.at_s - at_s)) / self.scale_s
        return self.total_s / self.scale_s

    def phases(self) -> list[tuple[str, float, float]]:
        """Each phase with its begin and end."""
        found, begin = [], 0.0
        for phase, group in itertools.groupby(self.rows, key=lambda row: row.phase):
            end = begin + sum(row.seconds for row in group)
            found.append((phase, begin / self.scale_s, end / self.scale_s))
            begin = end
        return found


def draw_panel(
    axes: Axes, panel: TimePanel, time: Timeline, *, titled: bool = True, named: bool = True, bottom: bool = True
) -> None:
    """Draw one panel.

    Args:
        axes: empty, with room above.
        panel: what is drawn.
        time: of the node.
        titled: with its title.
        named: with the names of the phases.
        bottom: with the unit of the time.
    """
    named = named and len(time.phases()) > 1
    places = time.middles()
    mine = [found for found in time.findings if found.rule in panel.rules]
    _curves(axes, panel, places, time.pauses, {found.device for found in mine})
    _legend(axes, panel, named=named)
    axes.set_xlim(0.0, time.total_s / time.scale_s)
    if titled:
        axes.set_title(panel.heading, pad=20 if named else 6, size=9.5)
    axes.grid(axis="y", color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    known = [value for curve in panel.curves for value in curve.values if value is not None]
    top = panel.top or 1.12 * max([*known, *panel.limits], default=1.0) or 1.0
    low = 0.0 if panel.unit != "°C" else min([30.0, *known])
    axes.set_ylim(low, 1.04 * top if panel.top else top)
    axes.yaxis.set_major_locator(
        ticker.MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]) if known else ticker.NullLocator()
    )
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, steps=time.steps))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(length=0, pad=3, labelsize=8)
    if bottom:
        axes.set_xlabel(time.unit, size=8.5)
    if not known:
        axes.text(0.5, 0.5, "not known on this node", transform=axes.transAxes, color=SOFT, ha="center", va="center")
    for limit in panel.limits if known else ():
        axes.axhline(limit, **_LIMIT)
    for found in mine:
        _shade(axes, found, time)
    _borders(axes, time, named=named)


def _curves(axes: Axes, panel: TimePanel, places: np.ndarray, pauses: Sequence[int], warned: set[str]) -> None:
    look: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(places) <= 3 else "", "markersize": 3}
    crowd = panel.many and len(panel.curves) > _ALONE
    for number, curve in enumerate(panel.curves):
        values = np.array([np.nan if value is None else value for value in curve.values], float)
        if np.isnan(values).all():
            continue
        at, shown = np.insert(places, pauses, np.nan), np.insert(values, pauses, np.nan)
        colour, line = _LOOKS[number % len(_LOOKS)]
        label = curve.name
        if crowd:
            colour, line = (RED, "-") if curve.name in warned else (BLUE, "-")
            label = curve.name if curve.name in warned else "_"
            look |= {"linewidth": 1.4 if curve.name in warned else 0.7, "alpha": 1.0 if curve.name in warned else 0.45}
        axes.plot(at, shown, line, color=colour, label=label or "_", **look)
        if not label:
            axes.fill_between(at, 0.0, shown, color=colour, alpha=0.15, linewidth=0)


def _legend(axes: Axes, panel: TimePanel, *, named: bool) -> None:
    """Names of the curves, above the panel and the names of the phases."""
    handles, labels = axes.get_legend_handles_labels()
    if panel.many and len(panel.curves) > _ALONE:
        handles.insert(0, Line2D([], [], color=BLUE, linewidth=0.9))
        labels.insert(0, f"each of {len(panel.curves)} GPUs")
    if len(panel.curves) > 1 and handles:
        about: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": SOFT, "handlelength": 2.0}
        place = {
            "loc": "lower right",
            "bbox_to_anchor": (1.005, 1.17 if named else 0.98),
            "borderpad": 0.1,
            "columnspacing": 1.2,
        }
        axes.legend(handles, labels, ncols=len(labels), **about, **place)


def _shade(axes: Axes, found: HardwareAlert, time: Timeline) -> None:
    """While a warning lasted, with its mark at the upper edge."""
    begin = time.of(found.at_s)
    end = max(time.of(found.until_s if found.until_s is not None else time.rows[-1].at_s), begin)
    alarm = found.level == "alarm"
    colour = RED if alarm else ORANGE
    axes.axvspan(begin, end, color=colour, alpha=0.1, linewidth=0)
    look: dict[str, Any] = {"color": colour, "markersize": 5.5, "clip_on": False, "zorder": 6}
    look["markerfacecolor"] = colour if alarm else "white"
    axes.plot([begin], [0.96], marker="v", transform=axes.get_xaxis_transform(), **look)


def _borders(axes: Axes, time: Timeline, *, named: bool) -> None:
    """A line at each border between phases and at each pause; above the upper panels the names of the phases."""
    phases = time.phases()
    width = time.total_s / time.scale_s
    for _, begin, _ in phases[1:]:
        axes.axvline(begin, color=SOFT, linewidth=0.8)
    for place in time.pauses:
        axes.axvline(float(time.ends_s[place - 1]) / time.scale_s, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    inches = axes.get_window_extent().width / DPI
    for phase, begin, end in phases if named else ():
        name, over = _PHASES.get(phase, phase), axes.get_xaxis_transform()
        gap = min(0.004 * width, 0.2 * (end - begin))
        look: dict[str, Any] = {"color": FAINT, "linewidth": 2.5, "clip_on": False, "solid_capstyle": "butt"}
        axes.plot([begin + gap, end - gap], [1.05, 1.05], transform=over, **look)
        if (end - begin) / width * inches > _LETTER_INCHES * len(name):
            about: dict[str, Any] = {"size": 7.5, "color": SOFT, "ha": "center", "va": "bottom"}
            axes.text((begin + end) / 2, 1.08, name, transform=over, **about)


def mark_handles() -> list[Line2D]:
    """What the marks of all panels mean, for a legend."""
    look: dict[str, Any] = {"marker": "v", "linestyle": "", "markersize": 5.5}
    return [
        Line2D([], [], color=RED, label="alarm", **look),
        Line2D([], [], color=ORANGE, markerfacecolor="white", label="warning", **look),
        Line2D([], [], label="limit", **_LIMIT),
    ]
