"""Findings of the checks, their text and their JSON; pure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pharmclf.core.units import format_count

FindingLevel = Literal["OK", "warn", "FAIL"]
_INDENT = " " * 20  # of what does not fit behind the name of a check


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check, one word."""
    level: FindingLevel
    """warn: training works, but worse than it could; FAIL: training would fail."""
    text: str
    """The facts, in one line."""
    remedy: str = ""
    """What to do; "" only where the level is OK."""


def ok(check: str, text: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(check=check, level="OK", text=text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """A check that found what makes training worse."""
    return Finding(check=check, level="warn", text=text, remedy=remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    """A check that found what makes training fail."""
    return Finding(check=check, level="FAIL", text=text, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Section:
    """The findings of one place."""

    title: str
    """Address of a node, "this machine", or "cluster" for what concerns all nodes."""
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was collected, as plain values for the JSON."""


def format_section(section: Section) -> str:
    """Aligned lines of 80 columns under the title; a remedy begins a line below its finding."""
    lines = [section.title]
    for finding in section.findings:
        lines += _wrap(f"  {finding.level:<4}  {finding.check:<10}  {finding.text}")
        if finding.remedy:
            lines += _wrap(f"{_INDENT}remedy: {finding.remedy}")
    return "\n".join(lines)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, 80, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)


def findings_of_level(sections: Iterable[Section], level: FindingLevel) -> list[tuple[Section, Finding]]:
    """The findings of a level, each with its section."""
    return [(section, finding) for section in sections for finding in section.findings if finding.level == level]


def exit_code(sections: Iterable[Section]) -> int:
    """1 where training would fail, else 0."""
    return int(bool(findings_of_level(sections, "FAIL")))


def verdict(sections: Sequence[Section]) -> str:
    """One line: how many checks of each level, and which failed where."""
    passed, warned, failed = (findings_of_level(sections, level) for level in ("OK", "warn", "FAIL"))
    counts = f"{format_count(len(passed), 'check')} OK, {format_count(len(warned), 'warning')}, {len(failed)} failed"
    if not failed:
        return f"{counts}: training can start"
    names = dict.fromkeys(f"{finding.check} ({section.title})" for section, finding in failed)
    return f"{counts}: training would fail. See {', '.join(names)}"


def to_dict(sections: Sequence[Section]) -> dict[str, Any]:
    """Plain values for the JSON."""
    return {"sections": [dataclasses.asdict(section) for section in sections], "exit_code": exit_code(sections)}
