"""From which value on a measurement is a warning or an alarm; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class AlertLevel(StrEnum):
    """How bad a value is, in rising order."""

    NONE = ""
    WARNING = "warning"
    """It costs speed or money."""
    ALARM = "alarm"
    """The run, the result or the machine is in danger."""


_LEVELS = tuple(AlertLevel)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Limits of a measurement."""

    warning: float | None = None
    """None: no such level."""
    alarm: float | None = None
    margin: float = 0.0
    """Hysteresis: how far a value must fall back below a limit before the level has passed."""
    unit: str = " %"
    below: bool = False
    """Whether too little is bad, and not too much."""
    repeats: bool = True

    def limit(self, level: AlertLevel) -> float | None:
        """The limit of a level."""
        return {AlertLevel.ALARM: self.alarm, AlertLevel.WARNING: self.warning}.get(level)

    def level(self, value: float, before: AlertLevel) -> AlertLevel:
        """Level of a value; a level that was reached before is left with the margin only."""
        for level in reversed(_LEVELS[1:]):
            limit = self.limit(level)
            if limit is None:
                continue
            margin = self.margin if _LEVELS.index(before) >= _LEVELS.index(level) else 0.0
            if value < limit + margin if self.below else value >= limit - margin:
                return level
        return AlertLevel.NONE


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
"""By rule. The temperatures are those of the reference run; each card has its own point at which it slows down."""
