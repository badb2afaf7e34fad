"""From where on something is worth a warning, and what a warning is made of; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AlertLevel = Literal["", "warning", "alarm"]
BOUND = "{limit}"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """From where on something is too much."""

    warning: float | None = None
    """Where it costs speed or money; None: no such level."""
    alarm: float | None = None
    """Where the run, the result or the machine is in danger."""
    margin: float = 0.0
    """How far it must fall back below a limit before that has passed, so that it is not said again and again there."""
    unit: str = " %"
    below: bool = False
    """Whether too little is bad, and not too much."""
    repeats: bool = True
    """Whether it is said again while it lasts."""

    def level(self, value: float, before: AlertLevel) -> AlertLevel:
        """How bad a value is.

        Args:
            value: measured.
            before: how bad it was; what has been reached is left again only with the margin.
        """
        rank = _LEVELS.index(before)
        for level in ("alarm", "warning"):
            limit = self.of(level)
            if limit is None:
                continue
            margin = self.margin if rank >= _LEVELS.index(level) else 0.0
            if value < limit + margin if self.below else value >= limit - margin:
                return level
        return ""

    def of(self, level: AlertLevel) -> float | None:
        """The limit of a level."""
        return {"alarm": self.alarm, "warning": self.warning}.get(level)


_LEVELS: tuple[AlertLevel, ...] = ("", "warning", "alarm")

THRESHOLDS: Mapping[str, Threshold] = {
    "temperature": Threshold(warning=80.0, alarm=85.0, margin=3.0, unit=" °C"),
    "throttling": Threshold(alarm=6.0, margin=5.0, unit=" s"),
    "gpu memory": Threshold(alarm=95.0, margin=3.0),
    "gpu errors": Threshold(alarm=1.0, unit="", repeats=False),
    "gpu lost": Threshold(alarm=1.0, unit="", repeats=False),
    "gpu unused": Threshold(warning=2.0, margin=3.0, below=True),
    "waiting": Threshold(warning=10.0, margin=3.0),
    "memory": Threshold(warning=92.0, alarm=95.0, margin=3.0),  # at 95 % Ray ends tasks
    "disk": Threshold(warning=90.0, alarm=95.0, margin=2.0),  # at 95 % Ray writes no objects to it any more
    "shared memory": Threshold(warning=1.0, unit=" GiB", below=True, repeats=False),
}
"""By rule. The temperatures are those of the reference run; from where on it slows down, each card knows itself."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How much of something there is."""

    rule: str
    """A key of `THRESHOLDS`."""
    device: str = ""
    """That it was measured on, the same as long as it lasts; "": the node."""
    value: float
    """In the unit of the limit."""
    subject: str
    """Who, as a warning names it; "": the node."""
    what: str
    """What it does, in words; `BOUND` stands where the limit is put in."""
    remedy: str
    """What a person can do."""
