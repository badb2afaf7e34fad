"""A page of HTML as tests read it: its elements, attributes, headings and texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ELEMENTS = {
    "html", "head", "meta", "title", "link", "style", "body", "nav", "main", "header", "section", "p", "ol", "ul", "li",
    "a", "h1", "h2", "h3", "h4", "bdi", "b", "small", "span", "div", "dl", "dt", "dd", "details", "summary", "pre",
    "table", "thead", "tbody", "tfoot", "tr", "th", "td", "figure", "figcaption", "img", "svg", "line", "rect",
    "circle", "code", "g", "path", "text", "defs", "clippath", "use",
}  # fmt: skip
VOID = {"meta", "link", "img"}


class Read(HTMLParser):
    """The elements, attributes and texts of a page; refuses what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def attributes(page: Read, name: str) -> list[str]:
    return [found[name] for _, found in page.elements if name in found]
