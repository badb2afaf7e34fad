"""The docstring of a command as the head of its help: text that is wrapped, and examples in two columns."""

from __future__ import annotations

import re
import shutil
import textwrap

_MAX_WIDTH = 120
_INDENT = "  "  # also keeps tyro from joining the lines
_EXAMPLE = re.compile(r"((?:pharmclf|ray) .*?)(?:  +(\S.*))?")


def format_description(docstring: str | None) -> str:
    """Format the docstring of a command for the width of the terminal.

    Args:
        docstring: paragraphs apart by a blank line; a paragraph whose lines begin with a command holds examples, each
            with its meaning behind two spaces or more.
    """
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - len(_INDENT)
    paragraphs = (docstring or "").strip().split("\n\n")
    blocks = [
        _format_examples(text, width) or textwrap.wrap(text, width, break_on_hyphens=False) for text in paragraphs
    ]
    return "\n\n".join("\n".join(f"{_INDENT}{line}" for line in lines) for lines in blocks)


def _format_examples(paragraph: str, width: int) -> list[str]:
    """Examples, the meaning next to the command or, where the terminal is too narrow, below; [] for other text."""
    found = [_EXAMPLE.fullmatch(line) for line in paragraph.splitlines()]
    pairs = [(match[1], match[2] or "") for match in found if match]
    if len(pairs) < len(found):
        return []
    column = max((len(command) for command, meaning in pairs if meaning), default=0) + 2
    rows = [f"{command:<{column}}{meaning}".rstrip() for command, meaning in pairs]
    if max(map(len, rows)) <= width:
        return rows
    lines = []
    for command, meaning in pairs:
        lines += [command, *textwrap.wrap(meaning, width, initial_indent=_INDENT, subsequent_indent=_INDENT)]
    return lines
