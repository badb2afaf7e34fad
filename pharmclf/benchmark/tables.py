"""Figures as text, and what every benchmark says of the machine; pure."""

from __future__ import annotations

import platform
from pathlib import Path

from pharmclf.monitoring.cores import usable_cores

NOTHING = "—"
"""What stands where there is no figure."""


def format_number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where it is not known; large ones with commas."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def format_ratio(value: float | None) -> str:
    """A ratio: 3.4x."""
    return NOTHING if value is None else f"{value:.2f}x"


def processor_name() -> str:
    """What the processor calls itself."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """The machine that is measured on."""
    return {"processor": processor_name(), "cores": usable_cores(), "system": platform.platform()}
