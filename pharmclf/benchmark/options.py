"""Options of the benchmarks that are no settings of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How much is measured."""

    sides: tuple[Literal["plain", "cached"], ...] = ("plain", "cached")
    """Plain Keras as it reads images each epoch, and with decoded images kept in memory by `cache()`."""
    seconds: float = 8.0
    """Seconds of each short measurement: an input alone, a training step."""
