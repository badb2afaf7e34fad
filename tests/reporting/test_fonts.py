"""Class names in scripts that the charts' own font lacks: another font that has them, or numbers and a legend."""

from __future__ import annotations

import html
import io
import logging
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image
from support.report_examples import make_facts, make_scores

from pharmclf.reporting import fonts
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.run_plots import confusion_matrix_figure

CHINESE, THAI, RUSSIAN, ARABIC = "阿司匹林", "พาราเซตามอล", "Парацетамол", "أسبرين"
NAMES = ("Paracetamol", CHINESE, THAI, RUSSIAN, ARABIC)


def write_font(folder, family, letters):
    """A font in which each of some letters is a full square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, shapes = pen.glyph(), sorted(set(letters))
    order = [".notdef", *(f"u{ord(letter):04X}" for letter in shapes)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in shapes})
    builder.setupGlyf({name: square if name != ".notdef" else TTGlyphPen(None).glyph() for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=500)
    builder.setupPost()
    file = str(folder / f"{family}.ttf")
    builder.save(file)
    return file


@pytest.fixture
def installed(monkeypatch):
    """Says which fonts a machine has, besides those of matplotlib."""
    known = list(font_manager.fontManager.ttflist)

    def install(*files):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
        fonts._fonts.cache_clear()

    yield install
    fonts._fonts.cache_clear()
    font_manager.fontManager.ttflist = known


def letters_of(family):
    return set(map(chr, FT2Font(font_manager.findfont(family)).get_charmap()))


def test_every_letter_of_a_name_is_in_a_font_that_is_chosen_for_it(installed, tmp_path):
    installed(write_font(tmp_path, "Square Thai", THAI), write_font(tmp_path, "Square Chinese", CHINESE))
    families, lacking = fonts._fonts(fonts._letters(NAMES))
    assert set(families) == {"Square Thai", "Square Chinese"}
    assert lacking == set()
    for name in NAMES:
        assert set(name) <= set().union(*map(letters_of, [fonts.FONT, *families]))
    assert fonts.font_notes(NAMES) == []
    assert list(fonts.chart_names(NAMES).values()) == list(NAMES)


def test_of_the_faces_of_a_font_the_regular_one_is_taken(installed, tmp_path):
    """Files are listed by name, and Bold comes before Regular."""
    installed(*(write_font(tmp_path, f"Square-{face}", CHINESE) for face in ("Black", "Bold", "Regular")))
    assert fonts._fonts(frozenset(CHINESE)) == (("Square-Regular",), frozenset())


def test_the_font_with_more_of_the_letters_is_taken_and_one_that_adds_nothing_is_not(tmp_path):
    files = [
        write_font(tmp_path, "Square First", CHINESE[:2]),
        write_font(tmp_path, "Square All", CHINESE),
        str(tmp_path / "not-there.ttf"),
    ]
    assert fonts.choose_fonts(frozenset(CHINESE + "林กข"), files) == (("Square All",), frozenset("กข"))


def test_the_font_of_matplotlib_with_a_box_for_every_letter_is_not_taken():
    boxes = [entry.fname for entry in font_manager.fontManager.ttflist if "last resort" in entry.name.lower()]
    assert fonts.choose_fonts(frozenset(CHINESE), boxes) == ((), frozenset(CHINESE))


def test_a_name_is_drawn_with_the_font_that_has_its_letters_and_nothing_is_said(installed, tmp_path, caplog):
    scores, _ = make_scores(("a", CHINESE), None, per_class=4)

    def ink(png):
        return int((np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == (0x1F, 0x29, 0x33)).all(axis=-1).sum())

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        installed()
        numbered = ink(png_bytes(confusion_matrix_figure(scores)))
        installed(write_font(tmp_path, "Square Chinese", CHINESE))
        named = ink(png_bytes(confusion_matrix_figure(scores)))
    # four squares of 0.8 of 9 points at 150 dpi, 15 pixels a side, on each of two axes
    assert named - numbered > 4 * 2 * 15 * 15 * 0.5
    assert caplog.records == []


def test_names_without_a_font_are_numbered_with_their_place_and_the_page_says_what_they_are(installed):
    installed()
    assert fonts.chart_names(NAMES) == {
        "Paracetamol": "Paracetamol", CHINESE: "class 2", THAI: "class 3", RUSSIAN: RUSSIAN, ARABIC: ARABIC,
    }  # fmt: skip
    assert fonts.font_notes(NAMES) == [
        "no font here has the letters of 2 class names: apt-get install fonts-noto-cjk fonts-noto-core (or another "
        "font that has them). PNG charts show the classes' numbers, report.html the names"
    ]
    assert "1 class name: apt-get install fonts-noto-cjk (or" in fonts.font_notes(("a", CHINESE))[0]
    facts = make_facts(NAMES, per_class=4, mistakes=1)
    page = html.unescape(page_html(facts))
    assert f"<dt>class 2</dt><dd>{CHINESE}</dd>" in page
    assert f"<dt>class 3</dt><dd>{THAI}</dd>" in page
    assert "<dt>class 4</dt>" not in page
    assert "Numbers of classes in the PNG charts" not in page_html(make_facts(("a", "b"), per_class=4))


def test_a_wide_letter_takes_two_columns_of_a_short_name():
    assert fonts.format_names("abcdefghij", 7) == "abcd…ij"
    assert fonts.format_names("阿司匹林", 8) == "阿司匹林"
    assert fonts.format_names("阿司匹林肠溶片", 9) == "阿司匹…片"
