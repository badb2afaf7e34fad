"""Whether a run goes on after its workers have failed; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pharmclf.training.loop_progress import LoopPosition

FailureKind = Literal["crash", "node", "hang"]


@dataclass(frozen=True)
class Failure:
    """What ended the workers of an attempt."""

    kind: FailureKind
    """crash: a worker ended on a node that lives; node: a node was lost; hang: no step for too long."""
    reason: str
    place: LoopPosition | None
    """Where the loop was last seen; None: before its first batch."""


def format_position(place: LoopPosition | None) -> str:
    """A place in words, counted from 1."""
    if place is None:
        return "before the first step"
    phase, epoch, step = place
    return f"in {phase}, epoch {epoch + 1}, step {step + 1}"


@dataclass
class FailurePolicy:
    """Counts the failures of a run."""

    allowed: int
    """Failures after which the run goes on."""
    failures: list[Failure] = field(default_factory=list)

    def decide(self, failure: Failure) -> str:
        """Add a failure -> why the run ends; "" where it goes on.

        A crash where the one before it was is no accident: another try would end there too. The loss of a node says
        nothing of the step it came in.
        """
        before = self.failures[-1] if self.failures else None
        self.failures.append(failure)
        count = len(self.failures)
        if failure.kind != "node" and before and (before.kind, before.place) == (failure.kind, failure.place):
            what = "crashed" if failure.kind == "crash" else "hung"
            return f"the workers {what} a second time {format_position(failure.place)}: {failure.reason}"
        if count > self.allowed:
            return f"{failure.reason} ({format_position(failure.place)}; failure {count}, --failures {self.allowed})"
        return ""
