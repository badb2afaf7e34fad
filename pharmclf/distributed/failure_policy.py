"""Decides whether a run restarts after its workers have failed; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pharmclf.training.loop_progress import LoopPosition

FailureKind = Literal["crash", "node", "hang"]


@dataclass(frozen=True)
class Failure:
    """Why the workers of an attempt ended."""

    kind: FailureKind
    """crash: a worker died on a live node; node: a node was lost; hang: no step within the timeout."""
    reason: str
    position: LoopPosition | None
    """Last known position of the loop; None: before its first batch."""


def format_position(position: LoopPosition | None) -> str:
    """Format a position, counted from 1."""
    if position is None:
        return "before the first step"
    phase, epoch, step = position
    return f"in {phase}, epoch {epoch + 1}, step {step + 1}"


@dataclass
class FailurePolicy:
    """Counts the failures of a run, and decides."""

    max_failures: int
    """Number of failures after which the run still restarts."""
    failures: list[Failure] = field(default_factory=list)

    def decide(self, failure: Failure) -> str:
        """Add a failure -> the reason to end the run; "": it restarts.

        A second crash or hang at the same position is deterministic, so that a restart would not help. The loss of a
        node does not depend on the position.
        """
        previous = self.failures[-1] if self.failures else None
        self.failures.append(failure)
        count, where = len(self.failures), format_position(failure.position)
        if (
            failure.kind != "node"
            and previous
            and (previous.kind, previous.position) == (failure.kind, failure.position)
        ):
            verb = "crashed" if failure.kind == "crash" else "hung"
            return f"the workers {verb} a second time {where}: {failure.reason}"
        if count > self.max_failures:
            return f"{failure.reason} ({where}; failure {count}, --max-failures {self.max_failures})"
        return ""
