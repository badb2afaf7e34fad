"""A page of HTML as tests read it: its elements, attributes, headings and texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

ELEMENTS = {
    "html", "head", "meta", "title", "link", "style", "body", "nav", "main", "header", "section", "p", "ol", "ul", "li",
    "a", "h1", "h2", "h3", "h4", "bdi", "b", "small", "span", "div", "dl", "dt", "dd", "details", "summary", "pre",
    "table", "thead", "tbody", "tfoot", "tr", "th", "td", "figure", "figcaption", "img", "svg", "line", "rect",
    "circle", "code", "g", "path", "text", "defs", "clippath", "use", "form", "label", "input", "select", "option",
    "button", "output", "script",
}  # fmt: skip
VOID = {"meta", "link", "img", "input"}


@dataclass(eq=False)
class Element:
    """An element of a page with its content."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    content: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for part in self.content:
            yield from [part] if isinstance(part, str) else part._texts()

    def find(self, tag: str, name: str | None = None) -> list[Element]:
        """The elements in it of a tag, and of a class or id where given, in their order."""
        found = []
        for part in self.content:
            if isinstance(part, Element):
                names = [*part.attributes.get("class", "").split(), part.attributes.get("id")]
                found += [part] if part.tag == tag and (name is None or name in names) else []
                found += part.find(tag, name)
        return found

    def is_inside(self, tag: str, name: str | None = None) -> bool:
        """Whether an element around it has a tag, and a class where given."""
        above = self.parent
        return above is not None and (
            (above.tag == tag and (name is None or name in above.attributes.get("class", "").split()))
            or above.is_inside(tag, name)
        )


class Read(HTMLParser):
    """The elements, attributes and texts of a page; refuses what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.headings: list[int] = []
        self.root = self._open = Element("", {})
        self.feed(html)
        self.close()
        assert self._open is self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = self._add(tag, attrs)
        if tag not in VOID:
            self._open = element
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> Element:
        element = Element(tag, {name: value or "" for name, value in attrs}, self._open)
        self._open.content.append(element)
        self.elements.append((tag, element.attributes))
        return element

    def handle_endtag(self, tag: str) -> None:
        assert self._open.tag == tag
        assert self._open.parent
        self._open = self._open.parent

    def handle_data(self, data: str) -> None:
        self._open.content.append(data)
        if self._open.tag not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def attributes(page: Read, name: str) -> list[str]:
    return [found[name] for _, found in page.elements if name in found]
