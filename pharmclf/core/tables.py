"""Tables of plain text for terminals and logs."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int] | None = None) -> list[str]:
    """Rows of cells as lines of aligned columns, two spaces apart, without spaces at the end.

    Args:
        rows: the heading among them, if there is one; each of the same length.
        left: columns that are aligned to the left, counted from 0, or from the end as -1; the others are aligned to
            the right. None: all to the left.

    Raises:
        ValueError: rows of different lengths.
    """
    if not rows:
        return []
    columns = list(zip(*rows, strict=True))
    widths = [max(map(display_width, column)) for column in columns]
    to_left = {column % len(columns) for column in (range(len(columns)) if left is None else left)}
    lines = []
    for row in rows:
        cells = []
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - display_width(text))
            cells.append(text + space if column in to_left else space + text)
        lines.append("  ".join(cells).rstrip())
    return lines


def display_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
