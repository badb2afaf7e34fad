"""The pages of a sweep and of a storage in a headless browser: silent, legible on a phone, sorted by their script."""

from __future__ import annotations

import pytest
from test_html_report_in_browser import CONTRAST, Show
from test_sweep_report import compare, make_report

from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting.index_page import IndexEntry, index_page
from pharmclf.reporting.sweep_page import sweep_page

HOSTILE = "</td><script>alert(1)</script>"
COLUMN = "[...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[%d].dataset.sort)"


def entry(name: str, **about: object) -> IndexEntry:
    values = {"kind": "run", "state": "complete", "size_bytes": 43_000_000, "has_report": True, "changed_s": 1.8e9}
    return IndexEntry(name=name, **values | about)  # type: ignore[arg-type]


def index() -> str:
    entries = [
        entry("tablets", test_accuracy=Estimate(0.96, 0.94, 0.98), test_images=400, verdict="good"),
        entry("search", kind="sweep", trials=(16, 16), test_accuracy=Estimate(0.11, 0.07, 0.2), verdict="not usable"),
        entry("boxes", test_accuracy=Estimate(0.7, 0.6, 0.8), verdict="usable with review", size_bytes=1_200),
        entry(HOSTILE, state="failed", reason=HOSTILE, has_report=False),
        entry("a-name-that-goes-on-" * 5, state="no sign of life", val_accuracy=0.8, has_report=False),
        entry("now", state="running", has_report=False),
    ]
    return index_page("s3://pharmacy/runs", entries, "2026-11-30T09:30:00+00:00")


CASES = {"index": index, "sweep": lambda: sweep_page(make_report(compare(5, 1), price_per_hour=2.0, settings=HOSTILE))}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("case", CASES)
def test_the_page_is_legible_on_a_phone_and_a_screen(case: str, dark: bool, show: Show) -> None:
    """No scrolling aside, a contrast of 4.5 or more, no complaint, and names are inert."""
    page = show(CASES[case](), dark=dark)
    for width in (390, 1280):
        page.resize(width, dark=dark)
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
    assert HOSTILE in page.evaluate("document.body.textContent")
    assert page.problems == []
    assert page.dialogs == []


def test_a_click_on_a_heading_sorts_and_another_one_turns_the_order(show: Show) -> None:
    """By number, the highest accuracy first; rows without one stay last in either order."""
    page = show(index())
    click = "document.querySelectorAll('.sortable thead button')[2].click()"
    page.evaluate(click)
    assert page.evaluate(COLUMN % 2) == ["0.96", "0.7", "0.11", "", "", ""]
    page.evaluate(click)
    assert page.evaluate(COLUMN % 2) == ["0.11", "0.7", "0.96", "", "", ""]
    assert page.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.parametrize("case", CASES)
def test_the_page_says_the_same_without_its_script(case: str, show: Show) -> None:
    page, without = show(CASES[case]()), show(CASES[case](), 1280, script=False)
    rows = "document.querySelectorAll('.sortable tr').length"
    heading = "document.querySelector('.sortable thead').innerText.split(/\\s+/).join(' ').trim()"
    assert page.evaluate("document.querySelectorAll('thead button').length") > 0
    assert without.evaluate("document.querySelectorAll('thead button').length") == 0
    assert without.evaluate(rows) == page.evaluate(rows)
    assert set(without.evaluate(heading).split()) == set(page.evaluate(heading).split())
