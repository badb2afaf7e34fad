"""report.html in a headless browser: complete, silent, as wide as the screen, legible, harmless, and it prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chromium import Browser, browser, missing_browser
from support.report_examples import HOSTILE, LONG, alone, make_decision, make_facts

from pharmclf.reporting.html_report import page_html

SCRIPTS = ("阿莫西林胶囊", "アムロジピン錠", "دواء", "Żółć")


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    """One browser for the tests that look at the page."""
    if reason := missing_browser():
        pytest.skip(reason)
    with browser() as started:
        yield started


CASES = {
    "run": lambda: make_facts(),
    "hostile": lambda: make_facts(HOSTILE, extra=HOSTILE[:1]),
    "fifty": lambda: make_facts(LONG, extra=("shifted", "x" * 60), per_class=4, mistakes=1),
    "scripts": lambda: make_facts(SCRIPTS, decision=make_decision(2.0)),
    "alone": lambda: alone(["one", "two"], mistakes=0),
}
CONTRAST = """(() => {
  const part = text => text.match(/[\\d.]+/g).map(Number);
  const rgb = text => text.startsWith("color(") ? part(text.slice(10)).map((x, i) => i < 3 ? 255 * x : x) : part(text);
  const light = text => rgb(text).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!(colour.startsWith("rgba") && rgb(colour)[3] === 0)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), ink = element.closest("svg") ? style.fill : style.color;
    const [low, high] = [light(ink), light(ground(element))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (!(contrast >= 4.5)) found.push(`${walk.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return found;
})()"""


@pytest.mark.parametrize("case", CASES)
def test_a_browser_shows_the_page_as_it_should(case: str, running: Browser, tmp_path: Path):
    """No complaint and no request; every picture there; no scrolling aside on a phone; names are inert; it prints."""
    place = tmp_path / "report.html"
    place.write_text(page_html(CASES[case]()), encoding="utf-8")
    page = running.new_page(390)
    page.open(place)
    assert page.requests == [place.as_uri()]
    assert page.evaluate("document.images.length") > 8
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    for width in (390, 1280):
        page.resize(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if case == "hostile":
        shown = page.evaluate("document.body.textContent")
        assert all(name in shown for name in HOSTILE)
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 20_000
    assert page.problems == []
    assert page.dialogs == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(dark: bool, running: Browser, tmp_path: Path):
    """A contrast of 4.5 or more (WCAG 2.2, AA), in light and dark, folded parts opened."""
    place = tmp_path / "report.html"
    place.write_text(page_html(make_facts([f"class {number}" for number in range(9)], mistakes=7)), encoding="utf-8")
    page = running.new_page(1280, dark=dark)
    page.open(place)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 25, 31)" if dark else "rgb(255, 255, 255)"
    )
    assert page.evaluate(CONTRAST) == []


def test_a_browser_would_notice_what_is_wrong(running: Browser, tmp_path: Path):
    """The checks above can fail: a script, a lost picture, a dialog and a wide table are all seen."""
    place = tmp_path / "wrong.html"
    place.write_text(
        "<img src=lost.png><div style='width:900px;background:#fff'>wide</div><p style='color:#ccc'>pale</p>"
        "<script>console.warn('hm'); alert('hello')</script>"
    )
    page = running.new_page(390)
    page.open(place)
    assert page.dialogs == ["hello"]
    assert any("hm" in problem for problem in page.problems)
    assert (tmp_path / "lost.png").as_uri() in page.requests
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 1
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    assert any(found.startswith("pale") for found in page.evaluate(CONTRAST))
