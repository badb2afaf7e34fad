"""Watches a run in tests."""

from __future__ import annotations

from typing import Any


class Recorder:
    """Keeps the events, and asks to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.polls, self.stop_after = 0, stop_after

    def event(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values))

    def should_stop(self) -> bool:
        self.polls += 1
        return self.stop_after is not None and self.polls > self.stop_after

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for name, values in self.events if name == kind]
