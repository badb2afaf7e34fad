"""Fallback fonts for charts, so that texts in all scripts are readable.

Matplotlib draws a box for a letter that its font lacks, and does not look for another font. So the texts of a figure
get other installed fonts that have their letters. Where none has them, charts show numbers in place of names.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import unicodedata
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from pharmclf.core.tables import display_width
from pharmclf.core.units import format_count

FONT = "DejaVu Sans"
"""The font of all charts; it comes with matplotlib."""
_FALLBACK_FONT = "last resort"  # a font of matplotlib that has a box for every letter
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"}  # categories that are readable without a glyph


def chart_names(class_names: Sequence[str]) -> dict[str, str]:
    """Class name -> its label in charts: the name, or `class 3` for the third where no font has its letters."""
    lacking = _missing_letters(_letters(class_names))
    return {
        name: f"class {number}" if lacking & _letters([name]) else name
        for number, name in enumerate(class_names, start=1)
    }


def numbered(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """(label in charts, name) of the classes that charts show by number."""
    return [(shown, name) for name, shown in chart_names(class_names).items() if shown != name]


def font_notes(class_names: Sequence[str]) -> list[str]:
    """A line for the terminal where no installed font has the letters of some classes; else none."""
    names = [name for _, name in numbered(class_names)]
    if not names:
        return []
    wide = {unicodedata.east_asian_width(letter) in "WF" for letter in _missing_letters(_letters(names))}
    packages = [
        name for name, wanted in (("fonts-noto-cjk", True in wide), ("fonts-noto-core", False in wide)) if wanted
    ]
    return [
        f"no font here has the letters of {format_count(len(names), 'class name')}: "
        f"apt-get install {' '.join(packages)} (or another font that has them). PNG charts show the classes' numbers, "
        "report.html the names"
    ]


def fit_fonts(figure: Figure) -> None:
    """Give each text of a figure further fonts where the own one lacks letters of it."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and _letters([text.get_text()])]
    families = _fonts(_letters(text.get_text() for text in texts))[0] if texts else ()
    for text in texts:
        text.set_fontfamily([FONT, *families])


def format_names(text: str, length: int) -> str:
    """A text of at most `length` columns, shortened in the middle, because names of look-alikes differ at the end.

    A letter of Chinese, Japanese and Korean takes two columns.
    """
    text = " ".join(str(text).split())
    if display_width(text) <= length:
        return text
    tail = (length - 1) // 3
    ends = list(accumulate(map(display_width, text)))
    start = next(place for place, end in enumerate(ends, start=1) if ends[-1] - end <= tail)
    return f"{text[: bisect_right(ends, length - 1 - tail)].rstrip()}…{text[start:].lstrip()}"


@contextlib.contextmanager
def suppress_font_warnings() -> Iterator[None]:
    """Suppress matplotlib's warnings of missing letters and weights; `font_notes` reports what matters."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            yield
    finally:
        logger.setLevel(level)


def text_width(text: str, points: float) -> float:
    """Approximate width of a text at a size in points, in inches."""
    return display_width(text) * points * 0.6 / 72


def _letters(texts: Iterable[str]) -> frozenset[str]:
    """The letters of some texts that the font of charts lacks."""
    return frozenset(
        letter
        for letter in set().union(*texts)
        if unicodedata.category(letter) not in _INVISIBLE_CATEGORIES and ord(letter) not in _own_letters()
    )


def _missing_letters(letters: frozenset[str]) -> frozenset[str]:
    return _fonts(letters)[1] if letters else letters


@functools.cache
def _own_letters() -> Mapping[int, int]:
    return FT2Font(font_manager.findfont(FONT)).get_charmap()


@functools.cache
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    # matplotlib caches its list of fonts in a file, which lacks fonts that are installed later
    files = sorted(font_manager.findSystemFonts(), key=lambda file: ("Regular" not in file, file))  # not bold ones
    return choose_fonts(letters, files)


def choose_fonts(letters: frozenset[str], files: Iterable[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Choose fonts for some letters, the first file of equal ones, and register them with matplotlib.

    Returns:
        Their families, the one with most of the letters first; and the letters that none has.
    """
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    candidates = {file: covered for file in files if (covered := _letters_in_font(file, letters))}
    families = []
    while candidates:
        file = max(candidates, key=lambda name: len(candidates[name]))  # the first of equal ones
        if file not in known:
            font_manager.fontManager.addfont(file)
        families.append(next(entry.name for entry in font_manager.fontManager.ttflist if entry.fname == file))
        letters -= candidates.pop(file)
        candidates = {name: rest for name, covered in candidates.items() if (rest := covered & letters)}
    return tuple(dict.fromkeys(families)), letters


def _letters_in_font(file: str, letters: frozenset[str]) -> frozenset[str]:
    """The letters among some that a font has; none where the font cannot be read, or is a bitmap font."""
    try:
        font = FT2Font(file)
        if not font.scalable or font.family_name.lower().startswith(_FALLBACK_FONT):
            return frozenset()
        return frozenset(letter for letter in letters if font.get_char_index(ord(letter)))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
