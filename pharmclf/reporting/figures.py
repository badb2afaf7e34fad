"""The look of all charts, and their output as PNG and SVG.

Matplotlib without pyplot, so without global figures and without a display. Right is blue or green, wrong is orange or
red (the palette of Okabe and Ito, safe for colour-blind readers); shapes, dashes and texts say the same without colour.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pharmclf.reporting.fonts import FONT, fit_fonts, suppress_font_warnings
from pharmclf.reporting.text_format import phase_name

DPI = 150
INK, SOFT, FAINT, GRID = "#1f2933", "#6b7785", "#dfe4ea", "#eef1f4"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#d55e00", "#00795c", "#c0330b"
Colour = str | tuple[float, float, float, float]
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
_CSS_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    FAINT: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    GRID: "grid",
    "#ffffff": "paper",
}


@contextlib.contextmanager
def chart_style() -> Iterator[None]:
    """Draw with the look of all charts; also a decorator of functions that draw."""
    with style.context(["default", _STYLE]):
        yield


@chart_style()
def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with suppress_font_warnings():
        fit_fonts(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


@chart_style()
def inline_svg(figure: Figure, description: str) -> str:
    """A figure as an `<svg>` element without size, script or external reference; equal figures give equal text.

    Text stays text, in the page's font, and colours become the page's variables (`var(--blue)` and so on), which follow
    its light or dark mode.

    Args:
        figure: drawn in the colours of this module.
        description: alternative text; unique among the figures of a page.
    """
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with style.context({"svg.fonttype": "none", "svg.hashsalt": description}), suppress_font_warnings():
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the numbers of matplotlib's groups are the same in every figure
    opening = f'<svg class="plot" role="img" aria-label="{html.escape(description)}"'
    text = re.sub(r"<svg[^>]*?( viewBox=\"[^\"]*\")[^>]*>", lambda match: f"{opening}{match[1]}>", text, count=1)
    for colour, name in _CSS_VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text).strip()


def new_figure(width: float, height: float, title: str = "", subtitle: str = "", *, left: float = 0.25) -> Figure:
    """A figure of a size in inches, with title and subtitle at the upper left, `left` inches from the edge."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    if title:
        figure.text(left / width, 1 - 0.22 / height, title, size=14, weight="bold", va="top")
        figure.text(left / width, 1 - 0.52 / height, subtitle, size=9, color=SOFT, va="top")
    return figure


def write_key(figure: Figure, left: float, top: float, text: str, colour: Colour, size: float = 9) -> None:
    """An entry of a legend, a coloured square and its meaning; places in inches from the left and the upper edge."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, "■", size=size, color=colour, va="top")
    figure.text((left + 0.17) / width, 1 - top / height, text, size=9, color=SOFT, va="top")


def draw_grid(axes: Axes, axis: Literal["y", "both"] = "y") -> None:
    """Grid lines below all that is drawn."""
    axes.grid(axis=axis, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def mark_phases(axes: Axes, phases: Sequence[str]) -> None:
    """A line at each border between phases, and their names above a panel whose x axis counts epochs from 1."""
    starts = [index for index in range(len(phases)) if index == 0 or phases[index] != phases[index - 1]]
    above = axes.get_xaxis_transform()
    for start, end in zip(starts, [*starts[1:], len(phases)], strict=True):
        if start:
            axes.axvline(start + 0.5, color=SOFT, linewidth=1.0)
        gap = 0.01 * len(phases)
        draw_phase_bar(axes, start + 0.5 + gap, end + 0.5 - gap, 1.03)
        middle, name = (start + end + 1) / 2, phase_name(phases[start])
        axes.text(middle, 1.05, name, transform=above, size=8, color=SOFT, ha="center", va="bottom")


def draw_phase_bar(axes: Axes, begin: float, end: float, height: float) -> None:
    """The bar above a panel that shows the extent of a phase; `height` as a share of the panel's height."""
    axes.plot(
        [begin, end], [height, height], color=FAINT, linewidth=2.5, clip_on=False, solid_capstyle="butt",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def rate_text(rate: float, _: object = None) -> str:
    """0.00005 -> 5e-5."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
