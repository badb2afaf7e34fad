"""Plots of a sweep: the curves of its trials, and the accuracy over its parameters.

The shape of a marker shows the state of a trial, so that no plot needs colours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pharmclf.core.units import format_count
from pharmclf.reporting.figures import BLUE, INK, ORANGE, RED, SOFT, chart_style, draw_grid, mark_phases, new_figure
from pharmclf.reporting.fonts import format_names
from pharmclf.reporting.sweep_axes import accuracy_range, accuracy_ticks, build_scales, clipped_accuracies
from pharmclf.reporting.trial_info import TrialInfo, TrialState, best_trial

Look = dict[str, Any]
"""Keyword arguments of matplotlib's `plot`."""
_ACCURACY = LinearSegmentedColormap.from_list("accuracy", ["#d9e6f0", "#86b9dc", "#2a7fba", "#08355e"])
_DASHES = (0, (4, 2))
_MARKS: dict[str, Look] = {
    "best": {"marker": "*", "color": ORANGE, "markersize": 15, "markeredgecolor": "white"},
    "plain run": {"marker": "D", "color": INK, "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.2},
    "trained": {"marker": "o", "color": BLUE, "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6},
    "stopped": {"marker": "x", "color": SOFT, "markersize": 5.0, "markeredgewidth": 1.3},
    "running": {"marker": "o", "color": BLUE, "markersize": 5.0, "markerfacecolor": "white"},
    "diverged": {"marker": "v", "color": RED, "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6},
    "failed": {"marker": "s", "color": INK, "markersize": 4.5, "markerfacecolor": "white"},
}


@chart_style()
def trial_curves_figure(trials: Sequence[TrialInfo]) -> Figure:
    """The validation accuracy of every trial over its epochs, counted over both phases; the best one is orange.

    The border between the phases is drawn where it is the same in all trials.

    Raises:
        ValueError: no trials.
    """
    best, crowd = best_trial(trials), float(np.interp(len(trials), [8, 60, 200], [1.0, 0.6, 0.35]))
    looks: dict[str, Look] = {
        "best": {"color": ORANGE, "linewidth": 2.4},
        "plain run": {"color": INK, "linewidth": 1.3, "linestyle": _DASHES},
        "trained": {"color": BLUE, "alpha": 0.75 * crowd, "linewidth": 1.3},
        "stopped": {"color": SOFT, "alpha": 0.55 * crowd, "linewidth": 1.0},
        "running": {"color": BLUE, "alpha": 0.9, "linewidth": 1.2, "linestyle": ":"},
        "diverged": {"color": RED, "alpha": 0.6 * crowd, "linewidth": 1.0},
        "failed": {"color": INK, "alpha": 0.5, "linewidth": 1.0},
    }
    figure = _add_figure((9.6, 5.4), "Trials", trials, {key: look | _MARKS[key] for key, look in looks.items()})
    axes = figure.add_axes((0.075, 0.095, 0.9, 0.66))
    steady = [trial for trial in trials if trial.state != "diverged" or trial is best]
    low, high = accuracy_range([epoch.val_accuracy for trial in steady for epoch in trial.history.values()])
    last = max((number for trial in trials for number in trial.history), default=1)
    for trial in trials:
        if not trial.history:
            continue
        epochs, shares = list(trial.history), [epoch.val_accuracy for epoch in trial.history.values()]
        # a curve below the axis ends at its lower edge; trained ones are many, so their ends are small
        end = epochs[-1], low if math.isnan(shares[-1]) else max(low, shares[-1])
        mark = _MARKS[trial.state] | ({"markersize": 4.0} if trial.state == "trained" else {})
        axes.plot(*end, zorder=3, clip_on=False, **mark)
        if trial is best:
            axes.plot(epochs, shares, zorder=5, **looks["best"])
            _annotate_best(axes, trial, last)
        elif trial.number == 0:
            axes.plot(epochs, shares, zorder=4, **looks["plain run"])
            axes.plot(*end, zorder=4, clip_on=False, **_MARKS["plain run"])
        else:
            axes.plot(epochs, shares, zorder=2, **looks[trial.state])
    axes.set_ylim(low, high + 0.07 * (high - low))
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("epoch")
    _format_accuracies(axes, low, high)
    axes.set_ylabel("validation accuracy")
    if best is None:
        axes.text(0.5, 0.5, "no epoch is finished", transform=axes.transAxes, ha="center", color=SOFT)
    elif phases := _common_phases(trials):
        mark_phases(axes, phases)
    return figure


def _annotate_best(axes: Axes, trial: TrialInfo, last: int) -> None:
    """A star at the trial's best epoch, with its number and accuracy above."""
    epoch, accuracy = trial.best_number or 0, trial.best_accuracy
    axes.plot(epoch, accuracy, zorder=6, clip_on=False, **_MARKS["best"])
    side, shift = ("left", -5) if epoch < 0.2 * last else ("right", 5) if epoch > 0.85 * last else ("center", 0)
    axes.annotate(
        f"trial {trial.number}: {accuracy:.3f}", (epoch, accuracy), xytext=(shift, 9), textcoords="offset points",
        ha="center" if last == 1 else side, va="bottom", color=INK, weight="bold", zorder=7,
    )  # fmt: skip


def _common_phases(trials: Sequence[TrialInfo]) -> list[str]:
    """The phase of each epoch, where all trials agree on it; else empty."""
    phases: dict[int, str] = {}
    for trial in trials:
        for number, epoch in trial.history.items():
            if phases.setdefault(number, epoch.phase) != epoch.phase:
                return []
    return [phases[at] for at in sorted(phases)] if sorted(phases) == list(range(1, len(phases) + 1)) else []


@chart_style()
def parameters_figure(trials: Sequence[TrialInfo], log_names: Collection[str] = ()) -> Figure:
    """The best validation accuracy over each parameter, a panel for each; the best trial and the plain run stand out.

    Diverged trials, and those far below the others, are at the lower edge.

    Args:
        log_names: parameters to draw on a logarithmic axis, where all their values are above 0.

    Raises:
        ValueError: no trials.
    """
    scales = build_scales(trials, log_names)
    columns = 3 if len(scales) in (3, 5, 6) else min(4, max(len(scales), 1))
    tall, gap, left, top = 1.95, 0.25, 0.78, 1.18  # inches
    side = max(2.55, 6.4 / columns - gap)
    upright = any(scale.category and scale.longest * len(scale.ticks) > 30 for scale in scales)  # names of categories
    below = 1.65 if upright else 0.62
    width = max(7.2, left + columns * (side + gap))
    height = top + math.ceil(len(scales) / columns) * (tall + below)
    heights, (low, high) = clipped_accuracies(trials)
    figure = _add_figure((width, height), "Parameters", trials, _MARKS, note=_cut_note(trials, low))
    best = best_trial(trials)
    for index, scale in enumerate(scales):
        row, column = divmod(index, columns)
        corner = (left + column * (side + gap)) / width, 1 - (top + row * (tall + below) + tall) / height
        axes = figure.add_axes((*corner, side / width, tall / height))
        axes.set_xlabel(format_names(scale.name, 32), color=INK)
        axes.set_ylim(low, high)
        axes.set_xlim(*scale.limits)
        axes.set_xticks([place for place, _ in scale.ticks], [text for _, text in scale.ticks], size=8)
        axes.tick_params(axis="x", rotation=90 if scale.category and upright else 0)
        _format_accuracies(axes, low, high)
        if column == 0:
            axes.set_ylabel("best validation accuracy")
        axes.tick_params(axis="y", labelleft=column == 0)
        for trial in trials:
            spot = scale.places[trial.number], heights.get(trial.number, math.nan)
            front = 2 if trial.state in ("stopped", "diverged") else 3
            axes.plot(*spot, zorder=front, clip_on=False, **_MARKS[trial.state])
            if trial is best:
                axes.plot(*spot, zorder=5, clip_on=False, **_MARKS["best"])
            elif trial.number == 0:
                axes.plot(*spot, zorder=4, clip_on=False, **_MARKS["plain run"])
    return figure


@chart_style()
def parallel_coordinates_figure(trials: Sequence[TrialInfo], log_names: Collection[str] = ()) -> Figure:
    """A line for each trial through an axis per parameter to its best validation accuracy; darker is better.

    Args and Raises: as `parameters_figure`.
    """
    scales = build_scales(trials, log_names)
    last, height = len(scales), 5.6  # inches
    left = max(0.95, 0.25 + 0.075 * max((scale.longest for scale in scales[:1]), default=0))  # room for its ticks
    width = max(7.2, left + 0.8 + 1.55 * last)
    heights, (low, high) = clipped_accuracies(trials)
    looks: dict[str, Look] = {
        "best": {"color": ORANGE, "linewidth": 2.6, "marker": "o", "markersize": 5, "zorder": 5},
        "plain run": {"color": INK, "linewidth": 1.3, "linestyle": _DASHES, "zorder": 4},
    }
    legend = looks | {state: _MARKS[state] for state in ("running", "diverged", "failed")}
    figure = _add_figure((width, height), "Parameters together", trials, legend, note=_cut_note(trials, low))
    axes = figure.add_axes((left / width, 0.3 / height, 1 - (left + 0.9) / width, 1 - 1.95 / height))
    axes.set_axis_off()
    strip = (last, last + 0.012 * width * max(last, 1) / (width - left - 0.9), 0, 1)  # the colours of the accuracies
    axes.imshow(
        np.linspace(0, 1, 256)[:, None], cmap=_ACCURACY, extent=strip, aspect="auto", origin="lower", clip_on=False
    )
    axes.set(xlim=(0, max(last, 1)), ylim=(0, 1))
    for index, name in enumerate([*(scale.name for scale in scales), "best validation\naccuracy"]):
        axes.plot([index, index], [0, 1], color=SOFT, linewidth=1.1, zorder=3, clip_on=False)
        text = name if index == last else ".\n".join(format_names(part, 19) for part in name.rsplit(".", 1))
        axes.text(index, 1.04, text, ha="center", va="bottom", weight="bold", size=8.5)
    for index, scale in enumerate(scales):
        for place, text in scale.ticks:
            _write_tick(axes, index, scale.share(place), text, ha="right", shift=-5)
    for tick, text in accuracy_ticks(low, high):
        _write_tick(axes, last, (tick - low) / (high - low), text, ha="left", shift=15)
    best, thin = best_trial(trials), float(np.interp(len(trials), [16, 200], [1.4, 0.7]))
    for trial in sorted(trials, key=lambda trial: heights.get(trial.number, low)):  # the better ones on top
        if trial.number not in heights:
            continue
        share = (heights[trial.number] - low) / (high - low)
        line = [*(scale.share(scale.places[trial.number]) for scale in scales), share]
        look: Look = {"color": _ACCURACY(share), "linewidth": thin, "alpha": 0.85}
        if trial is best or trial.number == 0:
            look = looks["best" if trial is best else "plain run"]
        axes.plot(range(last + 1), line, clip_on=False, solid_joinstyle="round", **look)
        if trial.state in legend:
            axes.plot(last, share, zorder=6, clip_on=False, **_MARKS[trial.state])
    return figure


def _write_tick(axes: Axes, x: float, y: float, text: str, *, ha: str, shift: float) -> None:
    """A value next to an upright axis, `shift` points to the right, readable over the lines."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
    axes.annotate(
        text, (x, y), xytext=(shift, 0), textcoords="offset points", ha=ha, va="center", size=8, color=SOFT, zorder=7,
        bbox=box,
    )  # fmt: skip


def _format_accuracies(axes: Axes, low: float, high: float) -> None:
    ticks = accuracy_ticks(low, high)
    axes.set_yticks([tick for tick, _ in ticks], [text for _, text in ticks])
    draw_grid(axes)


def _cut_note(trials: Sequence[TrialInfo], low: float) -> str:
    """How many trials, apart from diverged ones, are drawn at the lower edge; "": none."""
    count = sum(trial.state != "diverged" and trial.best_accuracy < low for trial in trials)
    return f"{count} below {low:.2f} at the lower edge" if count else ""


def _add_figure(
    size: tuple[float, float], title: str, trials: Sequence[TrialInfo], looks: Mapping[str, Look], note: str = ""
) -> Figure:
    """An empty figure of a size in inches, with a heading that sums the trials up, and the legend of their looks."""
    if not trials:
        raise ValueError("trials: received none, expected at least one")
    best = best_trial(trials)
    parts = [format_count(len(trials), "trial")]
    parts.append(f"best: trial {best.number} with {best.best_accuracy:.3f}" if best else "no epoch is finished")
    waiting = sum(not trial.history and trial.state != "diverged" for trial in trials)
    parts += [f"{waiting} without a finished epoch"] if waiting and best else []
    figure = new_figure(*size, title, " · ".join([*parts, *([note] if note else [])]))
    counts = Counter(trial.state for trial in trials)
    labels = {"best": "best" if best.number else "best: the plain run"} if best else {}
    plain = next((trial for trial in trials if trial.number == 0), None)
    if plain and plain is not best and (plain.history or plain.state == "diverged"):
        labels["plain run"] = "plain run"
    labels |= {state: f"{counts[state]} {state}" for state in get_args(TrialState) if counts[state] and state in looks}
    handles = [Line2D([], [], label=label, **_legend_look(looks[key])) for key, label in labels.items()]
    figure.legend(
        handles=handles, ncols=7, frameon=False, fontsize=8.5, labelcolor=SOFT, loc="upper left", handlelength=1.7,
        bbox_to_anchor=(0.13 / size[0], 1 - 0.68 / size[1]), handletextpad=0.6, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _legend_look(look: Look) -> Look:
    """A look for the legend: with a line where it has a width, and opaque."""
    return {"linestyle": "-"} | look | {"alpha": 1.0} if "linewidth" in look else {"linestyle": ""} | look
