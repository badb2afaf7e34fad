"""Plots of how far confidence can be trusted: reliability, and the error for each share of images answered.

Each line has its own dashes and marker, so that no plot needs colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.reporting.figures import BLUE, FAINT, GREEN, INK, ORANGE, RED, SOFT, chart_style, draw_grid, new_figure
from pharmclf.reporting.fonts import format_names

_WIDTH, _HEIGHT = 4.6, 4.1  # inches of a panel
_MAX_POINTS = 300  # of a line
_FEWEST = 20  # answers from which on a line is drawn: the error of fewer is noise
_DOTS = (0, (1.5, 1.5))
_LOOKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("s", {"color": SOFT, "linestyle": (0, (4, 2))}),
    ("o", {"color": BLUE, "linestyle": "-"}),
    ("^", {"color": ORANGE, "linestyle": (0, (6, 1.5))}),
    ("D", {"color": GREEN, "linestyle": (0, (1.5, 1))}),
    ("v", {"color": INK, "linestyle": (0, (6, 1.5, 1.5, 1.5))}),
)
_PERCENT = ticker.FuncFormatter(lambda share, _: f"{100 * share:.4g} %")


@chart_style()
def reliability_figure(evaluation: EvaluationResult, threshold: float | None) -> Figure:
    """Accuracy over confidence, with 95 % intervals, above the share of the images at each confidence.

    Args:
        threshold: confidence from which the model answers by itself; None: not drawn.
    """
    figure, (left, bottom, width, height) = _add_figure()
    axes = figure.add_axes((left, bottom + 0.2 * height, width, 0.8 * height))
    below = figure.add_axes((left, bottom, width, 0.15 * height), sharex=axes)
    bins = evaluation.reliability
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    axes.text(
        0.03, 0.05, "as sure as it is right", size=8, color=SOFT, rotation=45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    for item in bins:
        bounds = [item.accuracy.low, item.accuracy.high]
        axes.plot([item.confidence, item.confidence], bounds, color=BLUE, linewidth=1.6, alpha=0.4)
    shares = [item.count / evaluation.num_images for item in bins]
    areas = [12 + 90 * share**0.5 for share in shares]
    places, values = [item.confidence for item in bins], [item.accuracy.value for item in bins]
    axes.scatter(places, values, areas, BLUE, linewidths=0, clip_on=False, zorder=3)
    widths, top = [item.high - item.low for item in bins], 1.05 * max(shares)
    below.bar([item.low for item in bins], shares, widths, align="edge", color=FAINT, linewidth=0)
    if threshold is not None and threshold <= 1:
        for part in (axes, below):
            part.axvline(threshold, color=ORANGE, linewidth=1.1, linestyle=_DOTS)
        side = -1 if threshold > 0.5 else 1
        below.annotate(
            f"answers from {threshold:.3f}", (threshold, top), xytext=(4 * side, -2), textcoords="offset points",
            size=8, color=SOFT, ha="right" if side < 0 else "left", va="top",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="right")
    draw_grid(axes, "both")
    axes.tick_params(labelbottom=False)
    below.set(xlabel="confidence", ylim=(0, top), yticks=[])
    below.set_ylabel("images", labelpad=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MultipleLocator(0.2))
        axis.set_major_formatter(_PERCENT)
    return figure


@chart_style()
def risk_coverage_figure(curves: Mapping[str, EvaluationResult], decision: AbstentionPolicy | None) -> Figure:
    """The error for each share of the images answered, the surest first, and the place of the threshold.

    Args:
        curves: name -> evaluation with its risk-coverage curve; validation, test, then extra sets.
        decision: the threshold with its promise; None: only the curves.
    """
    names = {name: format_names(name, 16) for name in curves}
    columns = 3 if max(map(len, names.values())) <= 10 else 2
    figure, box = _add_figure(legend=0.08 + 0.2 * math.ceil((len(names) + (decision is not None)) / columns))
    axes = figure.add_axes(box)
    top = 1.5 * decision.max_error if decision else 0.0
    first = 0 if "validation" in curves else 1
    for place, (name, evaluation) in enumerate(curves.items(), start=first):
        marker, look = _LOOKS[place % len(_LOOKS)]
        coverage, error = _line(evaluation)
        axes.plot(coverage, error, linewidth=1.7, label=names[name], **look)
        top = max([top, *(1.15 * error[coverage >= 0.3])])
        point = evaluation.answered
        if point is not None and point.error is not None:
            _draw_point(axes, point.coverage, point.error, marker, look["color"])
            top = max(top, 1.05 * point.error.high)
    if decision:
        label = f"at most {100 * decision.max_error:.6g} %"
        axes.axhline(decision.max_error, color=RED, linewidth=1.1, linestyle=_DOTS, label=label)
    axes.set(xlim=(0, 1), ylim=(0, min(1.0, top) or 0.01), xlabel="answered by the model", ylabel="wrong among them")
    draw_grid(axes, "both")
    axes.xaxis.set_major_locator(ticker.MultipleLocator(0.2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, frameon=False, labelcolor=SOFT, fontsize=8,
        handlelength=2.4,
    )  # fmt: skip
    return figure


def _draw_point(axes: Axes, coverage: Estimate, error: Estimate, marker: str, colour: str) -> None:
    thin: dict[str, Any] = {"color": colour, "linewidth": 1.2, "alpha": 0.6}
    axes.plot([coverage.low, coverage.high], [error.value, error.value], **thin)
    axes.plot([coverage.value, coverage.value], [error.low, error.high], **thin)
    axes.plot(
        coverage.value, error.value, marker, color=colour, markersize=7, markeredgecolor="white", clip_on=False,
        zorder=4,
    )  # fmt: skip


def _line(evaluation: EvaluationResult) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and error of at most `_MAX_POINTS` points of the curve, without its noisy beginning."""
    curve = evaluation.risk_coverage
    points = np.flatnonzero(curve.coverage * evaluation.num_images >= min(_FEWEST, evaluation.num_images))
    points = points[np.unique(np.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).round().astype(int))]
    return curve.coverage[points], curve.error[points]


def _add_figure(legend: float = 0.0) -> tuple[Figure, tuple[float, float, float, float]]:
    """An empty figure, and the box in it for axes, in shares of its size; `legend` is the height above it, inches."""
    above, left, bottom = 0.12 + legend, 0.72, 0.55
    height = _HEIGHT + above
    box = (left / _WIDTH, bottom / height, (_WIDTH - left - 0.28) / _WIDTH, (height - bottom - above) / height)
    return new_figure(_WIDTH, height), box
