"""Figures as SVG inside a page: text stays text, in the page's font, and colours follow the page's light or dark."""

from __future__ import annotations

import html
import io
import re

from matplotlib import style
from matplotlib.figure import Figure

from pharmclf.reporting.fonts import suppress_font_warnings
from pharmclf.reporting.plots import BLUE, FAINT, GREEN, INK, ORANGE, RED, SOFT

_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    FAINT: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    "#eef1f4": "grid",
    "#ffffff": "paper",
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(figure: Figure, description: str) -> str:
    """A figure as an `<svg>` element without size, script or reference to anything outside; the same text every time.

    Args:
        figure: drawn in the colours of `plots`, which become the page's variables (`var(--blue)` and so on).
        description: what it shows, for those who do not see it; unique among the figures of a page.
    """
    buffer = io.StringIO()
    with style.context({"svg.fonttype": "none", "svg.hashsalt": description}), suppress_font_warnings():
        figure.savefig(buffer, format="svg", metadata=_METADATA, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the numbers of matplotlib's groups are the same in every figure
    opening = f'<svg class="plot" role="img" aria-label="{html.escape(description)}"'
    text = re.sub(r"<svg[^>]*?( viewBox=\"[^\"]*\")[^>]*>", rf"{_literal(opening)}\1>", text, count=1)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _literal(text: str) -> str:
    """A text that stands for itself in the replacement of a regular expression."""
    return text.replace("\\", "\\\\")
