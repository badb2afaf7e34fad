"""What a sweep can be asked for, and how a cluster is divided among its trials."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pharmclf.config import ConfigError
from pharmclf.tuning.options import SweepOptions, TrialResources, plan_trial_resources

GB = 1e9


def room(
    cpus: float = 16, gpus: float = 0, memory_gb: float = 64, *, heads_only: bool = False, **options: Any
) -> TrialResources:
    return plan_trial_resources(SweepOptions(**options), cpus, gpus, memory_gb * GB, heads_only=heads_only)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials: received 0, expected a number, 1 or more"),
        ({"grace": -1}, "--grace: received -1, expected a number, 0 or more"),
        ({"workers_per_trial": 0}, "--workers-per-trial: received 0, expected a number, 1 or more"),
        ({"max_concurrent": -2}, "--max-concurrent: received -2, expected a number, 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_under_its_flag(options: dict[str, Any], message: str):
    """As it is written on the command line."""
    with pytest.raises(ConfigError) as caught:
        SweepOptions(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("cpus", "concurrent", "reserved"), [(1, 1, 0.5), (2, 1, 1.0), (3, 1, 1.0), (4, 2, 1.0), (5, 2, 1.0), (16, 8, 1.0)]
)
def test_without_gpus_two_cores_make_a_trial(cpus: float, concurrent: int, reserved: float):
    """One computes and one reads; half of the cores stay free for the images, also of the only one."""
    found = room(cpus)
    assert found == TrialResources(concurrent, f"{cpus} CPUs; a trial uses 2", reserved, 0.0, 0.0)


def test_a_gpu_makes_a_trial():
    """Whatever the number of cores, which are shared."""
    assert room(8, 4) == TrialResources(4, "4 GPUs; a trial uses 1", 1.0, 1.0, 0.25)
    assert room(2, 4) == TrialResources(4, "4 GPUs; a trial uses 1", 0.25, 1.0, 0.25)


def test_heads_share_a_gpu():
    """Four of them where a sweep trains no more than heads; in another one they still take a quarter each."""
    assert room(16, 2, heads_only=True) == TrialResources(8, "2 GPUs; a trial uses 0.25", 1.0, 1.0, 0.25)
    assert room(16, 2, heads_only=False).head_gpus == 0.25
    assert room(16, 0, heads_only=True).head_gpus == 0.0


def test_trials_of_several_workers_reserve_next_to_nothing_themselves():
    """Ray Train reserves for its workers, for which the trial's own process only waits; Ray Tune takes no 0."""
    assert room(16, 8, workers_per_trial=2) == TrialResources(4, "8 GPUs; a trial uses 2", 0.0, 0.0, 0.0)
    assert room(16, 8, workers_per_trial=2, heads_only=True).concurrent == 4
    assert room(16, 0, workers_per_trial=4) == TrialResources(2, "16 CPUs; a trial uses 8", 0.0, 0.0, 0.0)


def test_memory_may_be_the_narrowest():
    """2 GB for each worker of a trial; one trial there is in any case."""
    assert room(16, 0, memory_gb=5).concurrent == 2
    assert room(16, 0, memory_gb=5).reason == "4.7 GiB of memory; a trial takes 1.9 GiB"
    assert room(16, 8, memory_gb=5, workers_per_trial=2).reason == "4.7 GiB of memory; a trial takes 3.7 GiB"
    assert room(16, 0, memory_gb=1).concurrent == 1
    assert room(16, 8, memory_gb=16).reason == "8 GPUs; a trial uses 1"


def test_what_is_asked_for_wins():
    """More at a time than there is room for reserve less each; fewer leave the rest to each other."""
    assert room(4, 0, max_concurrent=4) == TrialResources(4, "as requested", 0.5, 0.0, 0.0)
    assert room(16, 0, max_concurrent=1) == TrialResources(1, "as requested", 1.0, 0.0, 0.0)


def test_too_little_for_one_trial_is_refused():
    """More workers than GPUs, and more trials than Ray can divide a core among."""
    with pytest.raises(
        ConfigError, match=r"--workers-per-trial: received 4, but the cluster has 2 GPUs.*Give 2 or fewer"
    ):
        room(16, 2, workers_per_trial=4)
    with pytest.raises(ConfigError, match=r"--max-concurrent: received 1000, but the cluster has 2 CPUs\. Give fewer"):
        room(2, 0, max_concurrent=1000)


@example(cpus=1, gpus=13, memory_gb=102.0, workers=1, asked=0, heads_only=True)  # more trials than hundredths of a CPU
@given(
    st.integers(1, 256),
    st.integers(0, 16),
    st.floats(0, 1000),
    st.integers(1, 16),
    st.integers(0, 64),
    st.booleans(),
)
def test_a_room_is_no_larger_than_its_cluster(
    cpus: int, gpus: int, memory_gb: float, workers: int, asked: int, heads_only: bool
):
    """At least one trial; half of the CPUs stay free for Ray Data; the GPUs suffice where nobody asked for more."""
    options = {"workers_per_trial": workers, "max_concurrent": asked}
    try:
        found = room(cpus, gpus, memory_gb, heads_only=heads_only, **options)
    except ConfigError:
        assert 0 < gpus < workers or asked > cpus * 50
        return
    assert found.concurrent >= 1
    assert found.cpus == 0.0 if workers > 1 else found.cpus * found.concurrent <= cpus / 2 + 1e-9
    assert 0 <= found.cpus <= 1
    assert found.cpus > 0 or workers > 1
    assert "\n" not in found.reason
    assert found.head_gpus == found.gpus / 4
    assert found.gpus == (1.0 if gpus and workers == 1 else 0.0)
    each = found.head_gpus if heads_only and workers == 1 else float(workers)
    assert not gpus or found.concurrent * each <= gpus
    if asked and asked * each <= (gpus or math.inf):
        assert found.concurrent == asked
    else:
        assert found.concurrent == 1 or found.concurrent * 2 * workers <= memory_gb
