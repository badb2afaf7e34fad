"""Whether a run goes on after a failure."""

from __future__ import annotations

from pharmclf.distributed.failure_policy import Failure, FailureKind, FailurePolicy, format_position
from pharmclf.training.loop_progress import LoopPosition


def failure(kind: FailureKind = "crash", place: LoopPosition | None = ("phase1", 2, 7)) -> Failure:
    return Failure(kind, "ActorDiedError: gone", place)


def test_a_run_goes_on_after_as_many_failures_as_are_allowed() -> None:
    """Three allowed at different steps; the fourth ends the run and is said with its place."""
    recovery = FailurePolicy(max_failures=3)
    for step in range(3):
        assert recovery.decide(failure(place=("phase1", 0, step))) == ""
    assert recovery.decide(failure(place=("phase2", 0, 4))) == (
        "ActorDiedError: gone (in phase2, epoch 1, step 5; failure 4, --max-failures 3)"
    )


def test_a_crash_that_repeats_at_the_same_step_ends_the_run() -> None:
    """However many failures are allowed; a hang counts likewise."""
    for kind, verb in (("crash", "crashed"), ("hang", "hung")):
        recovery = FailurePolicy(max_failures=100)
        assert recovery.decide(failure(kind)) == ""  # type: ignore[arg-type]
        assert recovery.decide(failure(kind)).startswith(  # type: ignore[arg-type]
            f"the workers {verb} a second time in phase1, epoch 3, step 8"
        )


def test_a_crash_that_repeats_before_the_first_step_ends_the_run() -> None:
    """What fails at the start fails at every start."""
    recovery = FailurePolicy(max_failures=100)
    assert recovery.decide(failure(place=None)) == ""
    assert "a second time before the first step" in recovery.decide(failure(place=None))


def test_the_loss_of_nodes_says_nothing_of_the_step() -> None:
    """Two nodes lost in one step, or a node lost where a worker has crashed: the run goes on."""
    recovery = FailurePolicy(max_failures=100)
    assert recovery.decide(failure("node")) == ""
    assert recovery.decide(failure("node")) == ""
    assert recovery.decide(failure("crash")) == ""
    assert recovery.decide(failure("hang")) == ""


def test_no_failure_is_survived_where_none_is_allowed() -> None:
    """--max-failures 0."""
    assert "--max-failures 0" in FailurePolicy(max_failures=0).decide(failure("node"))


def test_places_are_told_as_people_count() -> None:
    """From 1."""
    assert format_position(("phase2", 0, 0)) == "in phase2, epoch 1, step 1"
    assert format_position(None) == "before the first step"
