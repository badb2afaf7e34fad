"""What an examination has found: a line for each check, and the remedy where something is not well; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FindingLevel = Literal["OK", "warn", "FAIL"]
_INDENT = 2
_CHECK_WIDTH = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has to say."""

    check: str
    """Name of the check, one word."""
    level: FindingLevel
    """OK; warn: training works, and worse than it could; FAIL: training would fail."""
    text: str
    """What was found, in one line."""
    remedy: str = ""
    """What to do about it; "" where all is well."""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check=check, level="OK", text=text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """Training works, and worse than it could."""
    return Finding(check=check, level="warn", text=text, remedy=remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    """Training would fail."""
    return Finding(check=check, level="FAIL", text=text, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Section:
    """What was found in one place."""

    title: str
    """A node by its address, this machine, or what concerns all nodes."""
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was collected, as plain values, for programs."""


def format_section(section: Section) -> str:
    """A section as aligned lines under its title."""
    return "\n".join([section.title, *(line for finding in section.findings for line in format_finding(finding))])


def format_finding(finding: Finding) -> list[str]:
    """A finding as a line, and its remedy as another below it."""
    lines = [f"{'':{_INDENT}}{finding.level:<4}  {finding.check:<{_CHECK_WIDTH}}  {finding.text}"]
    if finding.remedy:
        lines.append(f"{'':{_INDENT + 4 + 2 + _CHECK_WIDTH + 2}}remedy: {finding.remedy}")
    return lines


def findings_of_level(sections: Iterable[Section], level: FindingLevel) -> list[tuple[Section, Finding]]:
    """The findings of a level, each with its section."""
    return [(section, finding) for section in sections for finding in section.findings if finding.level == level]


def exit_code(sections: Iterable[Section]) -> int:
    """1 where training would fail, 0 otherwise."""
    return int(bool(findings_of_level(sections, "FAIL")))


def verdict(sections: Sequence[Section]) -> str:
    """All of it in one line."""
    num = {level: len(findings_of_level(sections, level)) for level in ("OK", "warn", "FAIL")}
    counts = f"{num['OK']} checks OK, {num['warn']} warnings, {num['FAIL']} failed"
    if num["FAIL"]:
        where = dict.fromkeys(
            f"{finding.check} ({section.title})" for section, finding in findings_of_level(sections, "FAIL")
        )
        return f"{counts}: training would fail. See {', '.join(where)}"
    return f"{counts}: training can start"


def to_dict(sections: Sequence[Section]) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    return {"sections": [dataclasses.asdict(section) for section in sections], "exit_code": exit_code(sections)}
