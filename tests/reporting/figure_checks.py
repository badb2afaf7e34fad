"""What every figure must be: a PNG that opens, with every text readable."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pharmclf.reporting.figures import chart_style


def opened(png: bytes) -> Image.Image:
    """A PNG on a white ground."""
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    return image


def boxes(figure: Figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text that is drawn, with its place in pixels; ticks beyond the ends of an axis are not drawn."""
    with chart_style():
        figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            within = [axes.axison and low - 1e-9 <= tick.get_loc() <= high + 1e-9 for tick in axis.get_major_ticks()]
            hidden |= {
                tick.label1 for tick, is_drawn in zip(axis.get_major_ticks(), within, strict=True) if not is_drawn
            }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent().extents) for text in texts if text not in hidden]


def check_texts(figure: Figure, shared: float = 0.0) -> None:
    """No text is clipped, and no two have more than so many pixels in common, in width and in height."""
    names, places = zip(*boxes(figure), strict=True)
    low, high = np.array(places)[:, None, :2], np.array(places)[:, None, 2:]
    outside = (low < 0).any(axis=(1, 2)) | (high > figure.get_size_inches() * figure.dpi).any(axis=(1, 2))
    assert not outside.any(), [names[index] for index in np.flatnonzero(outside)]
    common = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
    covered = (common > shared).all(axis=2) & ~np.eye(len(names), dtype=bool)
    assert not covered.any(), [names[index] for index in np.argwhere(covered)[0]]
