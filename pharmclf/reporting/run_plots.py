"""Plots of a run: confusion matrix, learning curves, sample predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pharmclf.core.events import EpochRecord
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.reporting.figures import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    RED,
    SOFT,
    chart_style,
    draw_grid,
    mark_phases,
    new_figure,
    rate_text,
    write_key,
)  # fmt: skip
from pharmclf.reporting.fonts import chart_names, format_names, text_width
from pharmclf.reporting.text_format import phase_name

MAX_CLASSES = 100
"""Classes of a confusion matrix, those with most mistakes."""
NUM_SAMPLES = 15
CurveTitle = Literal["Loss", "Accuracy", "Learning rate"]
CURVES: tuple[CurveTitle, ...] = ("Loss", "Accuracy", "Learning rate")
_RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", "#e3f0f8", "#7db8dd", "#0b6ba6"])
_WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fde6d3", "#f5a563", "#c44f00"])


@chart_style()
def confusion_matrix_figure(evaluation: EvaluationResult) -> Figure:
    """True classes as rows, predicted ones as columns: counts as numbers, the share of the row as colour.

    Of more than `MAX_CLASSES` classes only those with most mistakes are shown.
    """
    cells, total = evaluation.cells, len(evaluation.classes)
    shown = np.sort(np.argsort(-cells.mistakes, kind="stable")[:MAX_CLASSES])
    counts, support, size = cells.matrix(shown), cells.support[shown], len(shown)
    names = chart_names(evaluation.class_names)
    labels = [format_names(names[evaluation.class_names[index]], 26) for index in shown]
    cell = float(np.interp(size, [2, 4, 10, 20, 50], [1.5, 1.0, 0.62, 0.36, 0.22]))  # inches
    label_size = float(np.interp(size, [10, 20, 50], [9.0, 8.0, 6.6]))  # points
    count_size = min(10.0, label_size * 1.1, cell * 72 * 0.82 / (0.64 * len(str(counts.max()))))
    longest = max(text_width(label, label_size) for label in labels)
    is_upright = longest > 0.95 * cell
    margin, side, right, top = 0.38 + longest, size * cell, 0.9, 1.15
    bottom = margin + 0.1 if is_upright else 0.62
    width, height = max(margin + side + right, 4.6), top + side + bottom
    subtitle = f"{evaluation.num_images:,} images · accuracy {evaluation.accuracy}"
    if size < total:
        subtitle += f" · the {size} of {total} classes with most mistakes"
    figure = new_figure(width, height, "Confusion matrix", subtitle)
    write_key(figure, 0.25, 0.74, "right", _RIGHT(0.85))
    write_key(figure, 0.92, 0.74, "wrong; darker: a larger share of the class", _WRONG(0.85))
    axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))
    share, diagonal = counts / np.maximum(support, 1)[:, None], np.eye(size, dtype=bool)
    strength = np.where(diagonal, share, share**0.4)  # so that one mistake is visible among many images
    axes.imshow(np.where(diagonal[..., None], _RIGHT(strength), _WRONG(strength)), interpolation="nearest")
    axes.set_xticks(range(size), labels, rotation=90 if is_upright else 0, size=label_size, color=INK)
    axes.set_yticks(range(size), labels, size=label_size, color=INK)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0, pad=4)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(counts):
        colour = "white" if strength[row, column] > 0.62 else INK
        weight = "bold" if row == column and size <= 20 else "normal"
        axes.text(
            column, row, str(counts[row, column]), color=colour, weight=weight, size=count_size, ha="center",
            va="center_baseline",
        )  # fmt: skip
    look: dict[str, Any] = {"size": label_size, "color": SOFT, "shift": 8}
    _caption(axes, 1, side * 72 + 7, "recall", **look)
    for row in range(size):
        recall = f"{counts[row, row] / support[row]:.0%}" if support[row] else "–"
        _caption(axes, 1, (size - row - 0.5) * cell * 72, recall, va="center_baseline", **look)
    figure.text(0.12 / width, (bottom + side / 2) / height, "true class", rotation=90, color=SOFT, va="center")
    figure.text((margin + side / 2) / width, 0.1 / height, "predicted class", color=SOFT, ha="center", va="bottom")
    return figure


def chosen_index(history: Sequence[EpochRecord], best: tuple[str, int] | None = None) -> int:
    """Index of the chosen epoch in a history.

    Args:
        best: its (phase, epoch); None: the epoch with the highest validation accuracy, of equals the lowest validation
            loss, then the first.

    Raises:
        ValueError: an empty history, or a best epoch that is not in it.
    """
    if not history:
        raise ValueError("history: received no epochs, expected at least one")
    if best is not None:
        keys = [(record.phase, record.epoch) for record in history]
        if best not in keys:
            raise ValueError(f"best: received {best}, expected the phase and epoch of an entry of the history")
        return keys.index(best)
    keyed = [(-record.val_accuracy, record.val_loss) for record in history]
    ranked = [tuple(math.inf if math.isnan(number) else number for number in key) for key in keyed]
    return ranked.index(min(ranked))


@chart_style()
def learning_curves_figure(history: Sequence[EpochRecord], best: tuple[str, int] | None = None) -> Figure:
    """Loss, accuracy and learning rate over all epochs, the border between the phases and the chosen epoch marked.

    Args:
        history: one record per epoch, in order; NaN where a number is unknown.

    Raises:
        ValueError: as `chosen_index`.
    """
    chosen = chosen_index(history, best)
    record = history[chosen]
    subtitle = f"chosen: {phase_name(record.phase)}, epoch {chosen + 1} of {len(history)}"
    subtitle += f", validation accuracy {record.val_accuracy:.3f}"
    figure = new_figure(13.2, 4.7, "Learning curves", subtitle)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.2})
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.125, top=0.735)
    for axes, title in zip(panels, CURVES, strict=True):
        axes.set_title(title, pad=24)
        _draw_curves(axes, title, history, chosen)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False, bbox_to_anchor=(0.99, 0.985))
    return figure


@chart_style()
def learning_curve_figure(title: CurveTitle, history: Sequence[EpochRecord], chosen: int) -> Figure:
    """One panel of the learning curves, without heading and legend; `chosen` is the index of the chosen epoch."""
    figure = new_figure(3.7, 2.8)
    _draw_curves(figure.add_axes((0.125, 0.165, 0.855, 0.72)), title, history, chosen)
    return figure


def _draw_curves(axes: Axes, title: CurveTitle, history: Sequence[EpochRecord], chosen: int) -> None:
    epochs, name = np.arange(1, len(history) + 1), title.lower()
    look: dict[str, Any] = {"marker": "o" if len(history) <= 40 else "", "markersize": 3, "linewidth": 1.7}
    if title == "Learning rate":
        rates = [record.learning_rate for record in history]
        axes.plot(epochs, rates, color=GREEN, drawstyle="steps-mid", **look)
        _format_rates(axes, rates)
    else:
        train, val = ([getattr(record, f"{part}_{name}") for record in history] for part in ("train", "val"))
        axes.plot(epochs, train, "--", color=BLUE, label="training", **look)
        axes.plot(epochs, val, "-", color=ORANGE, label="validation", **look)
        axes.plot(
            epochs[chosen], val[chosen], color=ORANGE, label="chosen epoch", zorder=5, marker="*", markersize=15,
            markeredgecolor="white", linestyle="",
        )  # fmt: skip
        known = [value for value in train + val if math.isfinite(value)]
        if title == "Loss":
            axes.set_ylim(0, 1.08 * max([loss for loss in known if loss > 0], default=1.0))
        else:
            axes.set_ylim(max(0.0, min(known, default=0.0) - 0.05), 1.02)
    axes.set_xlabel("epoch")
    draw_grid(axes)
    axes.set_xlim(0.5, len(history) + 0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.axvline(epochs[chosen], color=ORANGE, linewidth=0.9, linestyle=":", zorder=1)
    mark_phases(axes, [record.phase for record in history])


def _format_rates(axes: Axes, rates: list[float]) -> None:
    """Make the y axis logarithmic; its ticks are the rates themselves where they are few."""
    positive = sorted({float(f"{rate:.3g}") for rate in rates if rate > 0})
    if not positive:
        return
    low, high = positive[0] / 1.5, positive[-1] * 1.5
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if len(positive) <= 6 or high / low < 20:
        ticks = [positive[-1]]
        for rate in reversed(positive):  # from the top; a label needs 8 % of the height
            if math.log(ticks[-1] / rate) > 0.08 * math.log(high / low):
                ticks.append(rate)
        axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(rate_text))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


@chart_style()
def sample_predictions_figure(images: np.ndarray, predictions: pd.DataFrame, class_names: Sequence[str] = ()) -> Figure:
    """The first 15 images with predicted class, true class and confidence; ✓ green: right, ✗ red: wrong.

    Args:
        images: (n, S, S, 3) uint8.
        predictions: n rows in the same order with the columns label, predicted, confidence.
        class_names: all classes in the order of the model's outputs, to number those whose letters no font has.

    Raises:
        ValueError: no images, or another number of predictions.
    """
    if not len(images) or len(images) != len(predictions):
        raise ValueError(f"received {len(images)} images and {len(predictions)} predictions, expected a pair or more")
    names = chart_names(class_names)
    rows = list(predictions.head(NUM_SAMPLES).itertuples())
    side, gap, edge, below, top = 2.15, 0.22, 0.3, 0.76, 0.95  # inches; `below` each image are its captions
    columns = min(5, len(rows))
    width = 2 * edge - gap + columns * (side + gap)
    height = top + edge / 2 + math.ceil(len(rows) / columns) * (side + below)
    num_right = sum(str(item.label) == str(item.predicted) for item in rows)
    subtitle = f"{num_right} of {len(rows)} right · ✓ right, ✗ wrong"
    figure = new_figure(width, height, "Sample predictions", subtitle, left=edge)
    for index, item in enumerate(rows):
        row, column = divmod(index, columns)
        left, lower = edge + column * (side + gap), height - top - (row + 1) * side - row * below
        axes = figure.add_axes((left / width, lower / height, side / width, side / height))
        axes.imshow(images[index], interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        predicted, truth = str(item.predicted), str(item.label)
        mark, colour = ("✓", GREEN) if predicted == truth else ("✗", RED)
        axes.spines[:].set(visible=True, color=colour, linewidth=2.2)
        said = f"{mark} {format_names(names.get(predicted, predicted), 23)}"
        _caption(axes, 0, -14, said, size=9, color=colour, weight="bold")
        _caption(axes, 0, -28, f"true: {format_names(names.get(truth, truth), 27)}", size=8, color=SOFT)
        _caption(axes, 0, -41, f"confidence {item.confidence:.1%}", size=8, color=SOFT)
    return figure


def _caption(axes: Axes, x: float, points: float, text: str, *, shift: float = 0.0, **look: Any) -> None:
    """Text at a share x of the panel's width (and `shift` points), some points above its lower edge."""
    axes.annotate(text, (x, 0), xycoords="axes fraction", xytext=(shift, points), textcoords="offset points", **look)
