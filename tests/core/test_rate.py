"""An ETA is given where it is known to within a factor of two, and not before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.core.rate import RateEstimator


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(20, 400),
    step_s=st.floats(0.01, 2.0),
    slow_steps=st.integers(0, 3),
    slowdown=st.floats(1.0, 200.0),
    noise=st.floats(0.0, 0.3),
    every_s=st.sampled_from([0.0, 1.0]),
)
def test_an_eta_is_right_to_within_a_factor_of_two_once_it_is_given(
    seed: int, steps: int, step_s: float, slow_steps: int, slowdown: float, noise: float, every_s: float
):
    """Steps of a noisy length behind up to three slow ones, reported at each or once a second."""
    durations = step_s * np.random.default_rng(seed).lognormal(0.0, noise, steps)
    durations[:slow_steps] *= slowdown
    ends = list(itertools.accumulate(durations.tolist()))
    rate, reported = RateEstimator(), -np.inf
    for done, now in enumerate(ends, start=1):
        if now - reported < every_s:
            continue
        reported = now
        rate.update(done, now)
        eta, left = rate.eta_s(steps - done), ends[-1] - now
        if eta is not None and left > 5 * step_s:  # the length of a few steps is a matter of chance
            assert left / 2 <= eta <= left * 2, (done, eta, left)


@pytest.mark.parametrize("step_s", [0.02, 0.5, 20.0])
def test_steady_work_gets_an_eta_after_a_tenth(step_s: float):
    """Or after two seconds, or eight steps."""
    rate = RateEstimator()
    rate.update(1, 100.0)
    first = 0
    for done in range(2, 1001):
        rate.update(done, 100.0 + (done - 1) * step_s)
        if rate.eta_s(1000 - done) is not None:
            first = done
            break
    assert 0 < first <= max(101, 9)
    assert rate.per_second == pytest.approx(1 / step_s)


def test_what_starts_before_the_first_update_does_not_count():
    """133 s to start, then a second of work."""
    rate = RateEstimator()
    assert rate.eta_s(10) is None
    rate.update(0, 0.0)
    rate.update(1, 133.0)
    assert rate.per_second is None
    for done in range(2, 60):
        rate.update(done, 133.0 + 0.05 * (done - 1))
    assert rate.eta_s(20) == pytest.approx(1.0)


def test_thousands_of_updates_are_thinned_out_and_the_speed_stays():
    """The memory does not grow with the work."""
    rate = RateEstimator()
    for done in range(1, 20_001):
        rate.update(done, done / 100)
    assert len(rate._times) <= 257
    assert rate.eta_s(1000) == pytest.approx(10.0)
