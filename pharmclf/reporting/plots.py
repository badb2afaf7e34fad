"""Pictures of a run as PNG bytes: confusion matrix, learning curves, sample predictions, contact sheets.

Matplotlib without pyplot, so without global figures and without a display. Right is blue or green, wrong is orange or
red (after the palette of Okabe and Ito, which colour-blind people can tell apart), and ✓ or ✗ says it without colours.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pharmclf.core.events import EpochRecord
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.reporting.fonts import FONT, chart_names, fit_fonts, suppress_font_warnings, text_width
from pharmclf.reporting.fonts import format_names as format_names

DPI = 150
MAX_CLASSES = 100
NUM_SAMPLES = 15
INK, SOFT, FAINT = "#1f2933", "#6b7785", "#dfe4ea"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#d55e00", "#00795c", "#c0330b"
_RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", "#e3f0f8", "#7db8dd", "#0b6ba6"])
_WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fde6d3", "#f5a563", "#c44f00"])
_STYLE = {
    "font.family": FONT,
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "figure.facecolor": "white",
}
styled = functools.partial(style.context, ["default", _STYLE])
"""The context in which all pictures are drawn."""


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes every time."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with suppress_font_warnings():
        fit_fonts(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_heading(figure: Figure, title: str, subtitle: str, *, left: float = 0.25) -> None:
    """Title and subtitle at the upper left, `left` inches from the edge."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - 0.22 / height, title, size=14, weight="bold", va="top")
    figure.text(left / width, 1 - 0.52 / height, subtitle, size=9, color=SOFT, va="top")


def confusion_matrix_png(evaluation: EvaluationResult, *, title: str = "Confusion matrix") -> bytes:
    """True classes as rows, predicted ones as columns: counts as numbers, the share of the row as colour.

    Of more than `MAX_CLASSES` classes only those with most mistakes are shown.
    """
    with styled():
        return png_bytes(_confusion_figure(evaluation, title))


def _confusion_figure(evaluation: EvaluationResult, title: str) -> Figure:
    cells, total = evaluation.cells, len(evaluation.classes)
    hits, every = cells.hits, cells.support
    mistakes = cells.given + every - 2 * hits
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])
    counts, support = cells.matrix(shown), every[shown]
    share = counts / np.maximum(support, 1)[:, None]
    size = len(shown)
    called = chart_names(evaluation.class_names)
    names = [format_names(called[evaluation.class_names[index]], 26) for index in shown]
    cell = float(np.interp(size, [2, 4, 10, 20, 50], [1.5, 1.0, 0.62, 0.36, 0.22]))  # inches
    label_size = float(np.interp(size, [10, 20, 50], [9.0, 8.0, 6.6]))  # points
    digits = len(str(counts.max()))
    count_size = min(10.0, label_size * 1.1, cell * 72 * 0.82 / (0.64 * digits))
    longest = max(text_width(name, label_size) for name in names)
    upright = longest > 0.95 * cell
    margin, side, right, top = 0.38 + longest, size * cell, 0.9, 1.15
    bottom = margin + 0.1 if upright else 0.62
    width, height = max(margin + side + right, 4.6), top + side + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    subtitle = f"{evaluation.num_images:,} images · accuracy {evaluation.accuracy}"
    if size < total:
        subtitle += f" · the {size} of {total} classes with most mistakes"
    write_heading(figure, title, subtitle)
    legend = ((0.25, _RIGHT(0.85), "right"), (0.92, _WRONG(0.85), "wrong; darker: a larger share of the class"))
    for left, colour, text in legend:
        figure.text(left / width, 1 - 0.74 / height, "■", size=9, color=colour, va="top")
        figure.text((left + 0.17) / width, 1 - 0.74 / height, text, size=9, color=SOFT, va="top")
    axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))
    strength = np.where(np.eye(size, dtype=bool), share, share**0.4)  # so that one mistake is seen among many images
    colours = np.where(np.eye(size, dtype=bool)[..., None], _RIGHT(strength), _WRONG(strength))
    axes.imshow(colours, interpolation="nearest")
    axes.set_xticks(range(size), names, rotation=90 if upright else 0, size=label_size, color=INK)
    axes.set_yticks(range(size), names, size=label_size, color=INK)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#eef1f4", linewidth=0.6)
    axes.tick_params(which="both", length=0, pad=4)
    axes.spines[:].set_visible(False)
    middle: dict[str, Any] = {"ha": "center", "va": "center_baseline", "size": count_size}
    for row, column in np.argwhere(counts):
        look: dict[str, Any] = {"color": "white" if strength[row, column] > 0.62 else INK}
        look["weight"] = "bold" if row == column and size <= 20 else "normal"
        axes.text(column, row, str(counts[row, column]), **look, **middle)
    _caption(axes, 1, side * 72 + 7, "recall", size=label_size, color=SOFT, shift=8)
    for row, index in enumerate(shown):
        text = f"{hits[index] / support[row]:.0%}" if support[row] else "–"
        _caption(
            axes, 1, (size - row - 0.5) * cell * 72, text, size=label_size, color=SOFT, shift=8, va="center_baseline"
        )
    figure.text(0.12 / width, (bottom + side / 2) / height, "true class", rotation=90, color=SOFT, va="center")
    figure.text((margin + side / 2) / width, 0.1 / height, "predicted class", color=SOFT, ha="center", va="bottom")
    return figure


def best_epoch(history: Sequence[EpochRecord]) -> int:
    """Index of the entry with the highest validation accuracy; then the lowest validation loss, then the first."""
    keys = [(-record.val_accuracy, record.val_loss) for record in history]
    ranked = [tuple(math.inf if math.isnan(number) else number for number in key) for key in keys]
    return min(range(len(ranked)), key=lambda index: ranked[index])


def learning_curves_png(history: Sequence[EpochRecord], *, best: tuple[str, int] | None = None) -> bytes:
    """Loss, accuracy and learning rate over all epochs, the border between the phases and the chosen epoch marked.

    Args:
        history: one record per epoch, in order; NaN where a number is unknown.
        best: (phase, epoch) of the chosen epoch; if not given, the one with the highest validation accuracy.

    Raises:
        ValueError: an empty history, or a best epoch that is not in it.
    """
    if not history:
        raise ValueError("history: received no epochs, expected at least one")
    chosen = best_epoch(history)
    if best is not None:
        found = [index for index, record in enumerate(history) if (record.phase, record.epoch) == best]
        if not found:
            raise ValueError(f"best: received {best}, expected the phase and epoch of an entry of the history")
        chosen = found[-1]
    with styled():
        return png_bytes(_curves_figure(history, chosen))


def _curves_figure(history: Sequence[EpochRecord], chosen: int) -> Figure:
    figure = Figure(figsize=(13.2, 4.7), dpi=DPI)
    best = history[chosen]
    subtitle = f"chosen: {phase_name(best.phase)}, epoch {chosen + 1} of {len(history)}"
    write_heading(figure, "Learning curves", f"{subtitle}, validation accuracy {best.val_accuracy:.3f}")
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.2})
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.125, top=0.735)
    for axes, title in zip(panels, ("Loss", "Accuracy", "Learning rate"), strict=True):
        axes.set_title(title, pad=24)
        draw_curves(axes, title, history, chosen)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False, bbox_to_anchor=(0.99, 0.985))
    return figure


def draw_curves(axes: Axes, title: str, history: Sequence[EpochRecord], chosen: int) -> None:
    """One panel of the learning curves: Loss, Accuracy or Learning rate; `chosen` is the index of the chosen epoch."""
    epochs, name = np.arange(1, len(history) + 1), title.lower()
    look: dict[str, Any] = {"marker": "o" if len(history) <= 40 else "", "markersize": 3, "linewidth": 1.7}
    if title == "Learning rate":
        rates = [record.learning_rate for record in history]
        axes.plot(epochs, rates, color=GREEN, drawstyle="steps-mid", **look)
        _rate_axis(axes, rates)
    else:
        train, val = ([getattr(record, f"{part}_{name}") for record in history] for part in ("train", "val"))
        star: dict[str, Any] = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "linestyle": ""}
        axes.plot(epochs, train, "--", color=BLUE, label="training", **look)
        axes.plot(epochs, val, "-", color=ORANGE, label="validation", **look)
        axes.plot(epochs[chosen], val[chosen], color=ORANGE, label="chosen epoch", zorder=5, **star)
        known = [value for value in train + val if math.isfinite(value)]
        if title == "Loss":
            axes.set_ylim(0, 1.08 * max([loss for loss in known if loss > 0], default=1.0))
        else:
            axes.set_ylim(max(0.0, min(known, default=0.0) - 0.05), 1.02)
    axes.set_xlabel("epoch")
    axes.grid(axis="y", color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(0.5, len(history) + 0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.axvline(epochs[chosen], color=ORANGE, linewidth=0.9, linestyle=":", zorder=1)
    mark_phases(axes, [phase_name(record.phase) for record in history])


def _rate_axis(axes: Axes, rates: list[float]) -> None:
    """A logarithmic axis that names the rates themselves where they are few."""
    positive = sorted({float(f"{rate:.3g}") for rate in rates if rate > 0})
    if not positive:
        return
    low, high = positive[0] / 1.5, positive[-1] * 1.5
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if len(positive) <= 6 or high / low < 20:
        named = [positive[-1]]
        for rate in reversed(positive):  # from the top, where there is room for a label
            if math.log(named[-1] / rate) > 0.08 * math.log(high / low):
                named.append(rate)
        axes.set_yticks(named)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(rate_text))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def rate_text(rate: float, _: object = None) -> str:
    """0.00005 -> 5e-5."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def phase_name(phase: str) -> str:
    """phase1 -> phase 1."""
    return phase.replace("phase", "phase ").replace("  ", " ")


def mark_phases(axes: Axes, phases: list[str]) -> None:
    """A line at each border between phases, and the phases' names above the panel."""
    starts = [index for index in range(len(phases)) if index == 0 or phases[index] != phases[index - 1]]
    for start, end in zip(starts, [*starts[1:], len(phases)], strict=True):
        if start:
            axes.axvline(start + 0.5, color=SOFT, linewidth=1.0)
        place = axes.get_xaxis_transform()
        ends = [start + 0.5 + 0.01 * len(phases), end + 0.5 - 0.01 * len(phases)]
        look: dict[str, Any] = {"color": FAINT, "linewidth": 2.5, "clip_on": False, "solid_capstyle": "butt"}
        axes.plot(ends, [1.03, 1.03], transform=place, **look)
        axes.text(
            (start + end + 1) / 2, 1.05, phases[start], transform=place, size=8, color=SOFT, ha="center", va="bottom"
        )


def sample_predictions_png(
    images: np.ndarray,
    predictions: pd.DataFrame,
    *,
    title: str = "Sample predictions",
    class_names: Sequence[str] = (),
) -> bytes:
    """The first 15 images with predicted class, true class and confidence; ✓ green: right, ✗ red: wrong.

    Args:
        images: (n, S, S, 3) uint8.
        predictions: n rows in the same order with the columns label, predicted, confidence.
        title: heading of the picture.
        class_names: all classes in the order of the model's outputs, to number those whose letters no font here has.

    Raises:
        ValueError: no images, or another number of predictions.
    """
    called = chart_names(class_names)
    if not len(images) or len(images) != len(predictions):
        raise ValueError(f"received {len(images)} images and {len(predictions)} predictions, expected a pair or more")
    shown = list(predictions.head(NUM_SAMPLES).itertuples())
    rights = [str(item.label) == str(item.predicted) for item in shown]
    with styled():
        figure, panels = _grid(images[: len(shown)], min(5, len(shown)), side=2.15, caption=0.76, heading=0.95)
        write_heading(figure, title, f"{sum(rights)} of {len(rights)} right · ✓ right, ✗ wrong", left=0.3)
        for axes, item, right in zip(panels, shown, rights, strict=True):
            colour = GREEN if right else RED
            axes.spines[:].set(visible=True, color=colour, linewidth=2.2)
            mark, said, truth = "✓" if right else "✗", str(item.predicted), str(item.label)
            _caption(
                axes, 0, -14, f"{mark} {format_names(called.get(said, said), 23)}", size=9, color=colour, weight="bold"
            )
            _caption(axes, 0, -28, f"true: {format_names(called.get(truth, truth), 27)}", size=8, color=SOFT)
            _caption(axes, 0, -41, f"confidence {item.confidence:.1%}", size=8, color=SOFT)
        return png_bytes(figure)


def contact_sheet_png(images: np.ndarray, titles: Sequence[str], columns: int, *, title: str = "") -> bytes:
    """Images in a grid with a title below each.

    Args:
        images: (n, S, S, 3) uint8.
        titles: n texts.
        columns: images per row.
        title: heading of the picture; none if empty.

    Raises:
        ValueError: no images, another number of titles, or no columns.
    """
    if not len(images) or len(images) != len(titles) or columns < 1:
        received = f"{len(images)} images, {len(titles)} titles and {columns} columns"
        raise ValueError(f"received {received}, expected a title for each image, and 1 or more of all")
    with styled():
        figure, panels = _grid(images, columns, side=1.5, caption=0.28, heading=0.7 if title else 0.25)
        if title:
            write_heading(figure, title, "", left=0.3)
        for axes, text in zip(panels, titles, strict=True):
            _caption(axes, 0.5, -12, format_names(text, 21), size=7.5, color=INK, ha="center")
        return png_bytes(figure)


def _grid(
    images: np.ndarray, columns: int, *, side: float, caption: float, heading: float
) -> tuple[Figure, list[Axes]]:
    """A figure with one square panel per image; all lengths in inches."""
    edge, gap = 0.3, 0.22
    rows = math.ceil(len(images) / columns)
    width, height = 2 * edge - gap + columns * (side + gap), heading + edge / 2 + rows * (side + caption)
    figure = Figure(figsize=(width, height), dpi=DPI)
    panels = []
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, lower = edge + column * (side + gap), height - heading - (row + 1) * side - row * caption
        axes = figure.add_axes((left / width, lower / height, side / width, side / height))
        axes.imshow(image, interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=FAINT, linewidth=0.8)
        panels.append(axes)
    return figure, panels


def _caption(axes: Axes, x: float, points: float, text: str, *, shift: float = 0.0, **look: Any) -> None:
    """Text at a share x of the panel's width (and `shift` points), some points above its lower edge."""
    axes.annotate(text, (x, 0), xycoords="axes fraction", xytext=(shift, points), textcoords="offset points", **look)
