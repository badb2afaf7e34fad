"""Bar charts of a benchmark: a panel for each measure, a bar for each thing compared, its figure and ratio beside it.

In the look of `plots`; every bar carries its number as text, so that no picture needs colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pharmclf.reporting.plots import BLUE, DPI, FAINT, INK, SOFT, format_names, png_bytes, styled, write_heading

_PARTS = ("#08355e", "#0072b2", "#7db8dd", "#d55e00", "#f5a563", "#00795c", "#8fc9b5", "#6b7785")
_BAR, _HEAD, _FOOT = 0.34, 0.62, 0.12  # inches


@dataclass(frozen=True)
class Bar:
    """One thing that is compared."""

    label: str
    value: float
    text: str
    """The figure, and the ratio to another bar."""
    interval: tuple[float, float] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the value is the sum of; empty: it is one piece."""


@dataclass(frozen=True)
class BarPanel:
    """One measure."""

    title: str
    bars: Sequence[Bar]


def bars_png(title: str, subtitle: str, panels: Sequence[BarPanel]) -> bytes:
    """Panels below each other, bars from the left.

    Raises:
        ValueError: no panels, or one without bars.
    """
    if not panels or not all(panel.bars for panel in panels):
        raise ValueError(f"panels: received {len(panels)}, expected one or more with a bar or more each")
    with styled():
        bars = sorted((bar for panel in panels for bar in panel.bars), key=lambda bar: -len(bar.parts))
        names = list(dict.fromkeys(name for bar in bars for name in bar.parts))  # in the order of the longest list
        top = 1.0 + (0.3 if names else 0.0)
        heights = [_HEAD + _BAR * len(panel.bars) + _FOOT for panel in panels]
        width, height = 11.0, top + sum(heights) + 0.15
        figure = Figure(figsize=(width, height), dpi=DPI)
        write_heading(figure, title, subtitle)
        if names:
            _legend(figure, names, width, height)
        longest = max(len(format_names(bar.label, 46)) for panel in panels for bar in panel.bars)
        left = 0.45 + 0.075 * longest
        at = height - top
        for panel, own in zip(panels, heights, strict=True):
            lower = at - own + _FOOT
            axes = figure.add_axes(
                (left / width, lower / height, (width - left - 2.6) / width, _BAR * len(panel.bars) / height)
            )
            _draw(axes, panel, names)
            at -= own
        return png_bytes(figure)


def _legend(figure: Figure, names: Sequence[str], width: float, height: float) -> None:
    at = 0.25
    for place, name in enumerate(names):
        figure.text(at / width, 1 - 0.82 / height, "■", size=10, color=_PARTS[place % len(_PARTS)], va="top")
        figure.text((at + 0.17) / width, 1 - 0.82 / height, name, size=9, color=SOFT, va="top")
        at += 0.42 + 0.078 * len(name)


def _draw(axes: Axes, panel: BarPanel, names: Sequence[str]) -> None:
    most = max(max(bar.value, bar.interval[1] if bar.interval else 0.0) for bar in panel.bars) or 1.0
    for place, bar in enumerate(panel.bars):
        begun = 0.0
        for name, value in bar.parts.items():
            axes.barh(place, value, 0.68, left=begun, color=_PARTS[names.index(name) % len(_PARTS)])
            begun += value
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
