"""report.html in a headless browser: complete, silent, as wide as the screen, legible, harmless, and it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.chromium import Browser, Page
from support.report_examples import HOSTILE, LONG, alone, make_decision, make_facts

from pharmclf.reporting.html_report import page_html

Show = Callable[..., Page]
SCRIPTS = ("阿莫西林胶囊", "アムロジピン錠", "دواء", "Żółć")


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
def test_a_browser_shows_the_page_as_it_should(case: str, show: Show):
    """No complaint and no request; every picture there; no scrolling aside on a phone; names are inert; it prints."""
    page = show(page_html(CASES[case]()))
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
def test_every_text_stands_out_from_its_ground(dark: bool, show: Show):
    """A contrast of 4.5 or more (WCAG 2.2, AA), in light and dark, folded parts opened."""
    page = show(page_html(make_facts([f"class {number}" for number in range(9)], mistakes=7)), 1280, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 25, 31)" if dark else "rgb(255, 255, 255)"
    )
    assert page.evaluate(CONTRAST) == []


ROWS = """[...document.querySelectorAll("table.answers tbody tr")].filter(row => row.checkVisibility())
  .map(row => [...row.cells].map(cell => cell.textContent))"""


@pytest.fixture
def report(show: Show) -> Page:
    """The page of a run on a phone: 60 test images, 9 of them wrong."""
    return show(page_html(make_facts(mistakes=3, extra=())))


def test_the_table_of_test_images_is_filtered_by_what_is_typed_and_chosen(report: Page):
    """Words, result, decision and class narrow the rows together; the number of rows is announced; all come back."""
    fill = """(values => {
      const form = document.querySelector("form.filters");
      for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
      form.dispatchEvent(new Event("input", { bubbles: true }));
    })"""
    count = "document.querySelector('form.filters output').value"
    assert report.evaluate("document.querySelector('form.filters').checkVisibility()")
    assert report.evaluate(count) == "60 of 60 rows"
    report.evaluate(f"{fill}({{result: 'wrong'}})")
    rows = report.evaluate(ROWS)
    assert len(rows) == 9
    assert {row[0] for row in rows} == {"✗ wrong"}
    report.evaluate(f"{fill}({{result: 'wrong', label: 'amber'}})")
    rows = report.evaluate(ROWS)
    assert {(row[1], row[2]) for row in rows} == {("amber", "birch"), ("cedar", "amber")}
    assert report.evaluate(count) == "6 of 60 rows"
    report.evaluate(f"{fill}({{words: '0000 AMBER', decision: 'left'}})")
    rows = report.evaluate(ROWS)
    assert rows
    assert all("0000" in row[5] and "amber" in row[1:3] and row[4] == "left" for row in rows)
    report.evaluate("document.querySelector('form.filters button').click()")
    assert report.evaluate(f"new Promise(done => setTimeout(() => done({ROWS}.length), 50))") == 60
    assert report.problems == []


def test_the_table_of_test_images_is_sorted_by_each_heading_both_ways(report: Page):
    headings = report.evaluate("[...document.querySelectorAll('table.answers thead th')].map(cell => cell.textContent)")
    before = sorted(map(tuple, report.evaluate(ROWS)))
    for column, heading in enumerate(headings):
        press = f"document.querySelectorAll('table.answers thead button')[{column}].click()"
        numeric = heading == "confidence"
        for direction in ("ascending", "descending"):
            report.evaluate(press)
            rows = report.evaluate(ROWS)
            shown = [float(row[column].split("\u202f")[0]) if numeric else row[column].strip("✓✗ ") for row in rows]
            expected = sorted(shown, reverse=direction == "descending")
            if column:
                assert shown == expected, heading
            else:  # by its mark
                assert len([place for place in range(1, 60) if shown[place] != shown[place - 1]]) == 1
            assert report.evaluate(f"document.querySelectorAll('table.answers th')[{column}].ariaSort") == direction
            assert sorted(map(tuple, rows)) == before
    assert report.evaluate("document.querySelectorAll('table.answers [aria-sort]').length") == 1


def test_an_image_enlarges_by_key_and_tap_and_closes_again(report: Page):
    """Enter opens it over the page, arrows show the others, Escape and a second tap close; the focus stays on it."""
    key = """(name => document.activeElement.dispatchEvent(
      new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true })))"""
    shown = """(() => {
      const open = document.querySelector("details.zoom[open]");
      if (!open) return null;
      const box = open.getBoundingClientRect(), image = open.querySelector("img").getBoundingClientRect();
      return { place: [...document.querySelectorAll("details.zoom")].indexOf(open), width: box.width,
        height: box.height, image: image.width, text: open.innerText, focused: open.contains(document.activeElement) };
    })()"""
    small = report.evaluate("document.querySelector('details.zoom img').getBoundingClientRect().width")
    report.evaluate("document.querySelector('details.zoom summary').focus()")
    report.call(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
    )
    first = report.evaluate(shown)
    assert (first["place"], first["width"], first["height"]) == (0, 390, 900)
    assert first["image"] > 2 * small
    assert "/images/" in first["text"]
    report.evaluate(f"{key}('ArrowRight')")
    second = report.evaluate(shown)
    assert (second["place"], second["focused"]) == (1, True)
    report.evaluate(f"{key}('ArrowLeft')")
    assert report.evaluate(shown)["place"] == 0
    report.evaluate(f"{key}('Escape')")
    assert report.evaluate(shown) is None
    assert report.evaluate("document.activeElement === document.querySelector('details.zoom summary')")
    tap = "document.querySelectorAll('details.zoom summary')[2].click()"
    report.evaluate(tap)
    assert report.evaluate(shown)["place"] == 2
    report.evaluate(tap)
    assert report.evaluate(shown) is None


def test_without_a_script_all_is_there_and_images_enlarge(show: Show):
    """With scripts switched off every row is visible, the filters are not, and a tap enlarges."""
    page = show(page_html(make_facts(mistakes=3, extra=())), script=False)
    assert len(page.evaluate(ROWS)) == 60
    assert not page.evaluate("document.querySelector('form.filters').checkVisibility()")
    page.evaluate("document.querySelector('details.zoom').scrollIntoView({block: 'center'})")
    x, y = page.evaluate(
        "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        "(document.querySelector('details.zoom summary').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.evaluate("document.querySelector('details.zoom[open]').getBoundingClientRect().width") == 390


def test_the_matrix_of_ten_classes_fits_on_a_phone(show: Show):
    """No scrolling aside, counts at 12 pixels or more, and names that do not overlap."""
    names = [
        "Ambrelto", "Bravite", "Corvanel", "Dolmaquin", "Eskibor", "Fennorun", "Gralvit", "Hoxtavin", "Iblomer", "Jur",
    ]  # fmt: skip
    page = show(page_html(make_facts(names, extra=())))
    box = "document.querySelector('table.matrix').parentElement"
    assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('table.matrix td.hit')).fontSize)") >= 12


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
