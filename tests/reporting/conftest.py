"""A browser that shows pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.chromium import Browser, Page, browser, missing_browser


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    """One browser for the tests of a file."""
    if reason := missing_browser():
        pytest.skip(reason)
    with browser() as started:
        yield started


@pytest.fixture
def show(running: Browser, tmp_path: Path) -> Callable[..., Page]:
    """Opens HTML as a page, 390 pixels wide as on a phone; it reaches for nothing outside itself."""

    def opened(html: str, width: int = 390, *, dark: bool = False, script: bool = True) -> Page:
        place = tmp_path / "page.html"
        place.write_text(html, encoding="utf-8")
        page = running.new_page(width, dark=dark)
        if not script:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.open(place)
        assert page.requests == [place.as_uri()]
        return page

    return opened
