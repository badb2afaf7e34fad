"""Watches a run in tests."""

from __future__ import annotations

from typing import TypeVar

from pharmclf.core.events import Event, Note

E = TypeVar("E", bound=Event)


class Recorder:
    """Keeps the events, and asks to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[Event] = []
        self.polls, self.stop_after = 0, stop_after

    def on_event(self, event: Event, /) -> None:
        self.events.append(event)

    def should_stop(self) -> bool:
        self.polls += 1
        return self.stop_after is not None and self.polls > self.stop_after

    def of(self, kind: type[E]) -> list[E]:
        """The events of a type."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self.of(Note)]
