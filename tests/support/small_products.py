"""Photos of small products: drawn tablets that differ by a mark, anywhere on a table with a grain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 320  # of a photo, pixels
MARKS = ("A", "B", "8", "X", "W")
"""The products, by what is printed on them."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, pixels."""


def draw_photo(
    mark: str, draw: np.random.Generator, *, share: float = 0.16, count: int = 1
) -> tuple[Image.Image, list[Box]]:
    """A photo with tablets on a table, and the boxes of the tablets.

    Args:
        mark: what is printed on the tablets; "": none.
        draw: decides grain and places.
        share: diameter of a tablet, of the photo's side.
        count: tablets.

    Returns:
        The photo, and (left, top, right, bottom) of each tablet in pixels.
    """
    grain = draw.normal(0, 12, (SIDE, SIDE, 1)) + 20 * np.sin(np.arange(SIDE) * draw.uniform(0.2, 0.5))[None, :, None]
    colour = draw.uniform(90, 160, 3)
    photo = Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8))
    boxes: list[Box] = []
    for _ in range(count):
        radius = share * SIDE / 2
        x, y = draw.uniform(radius + 24, SIDE - radius - 24, 2)
        tablet = Image.new("RGBA", (int(2 * radius),) * 2)
        pen = ImageDraw.Draw(tablet)
        pen.ellipse((0, 0, 2 * radius - 1, 2 * radius - 1), (225, 70, 60, 255))
        pen.text((radius, radius), mark, (40, 20, 20, 255), font_size=1.3 * radius, anchor="mm")
        left, top = int(x - radius), int(y - radius)
        photo.paste(tablet, (left, top), tablet)
        boxes.append((left, top, left + tablet.width, top + tablet.height))
    return photo, boxes


def write_photos(folder: Path, per_class: int, seed: int = 0) -> None:
    """Write photos of every product, one folder each."""
    draw = np.random.default_rng(seed)
    for mark in MARKS:
        (folder / f"tablet-{mark}").mkdir(parents=True)
        for number in range(per_class):
            draw_photo(mark, draw)[0].save(folder / f"tablet-{mark}" / f"{number:03d}.png")
