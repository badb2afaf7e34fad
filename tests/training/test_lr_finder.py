"""What the learning-rate range test makes of curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pharmclf.training.lr_finder import BETA, HIGHEST, LOWEST, STEPS, candidate_lrs, measure_curve, smooth, suggest_lr


def curve(
    fall_at: float,
    rise_at: float = math.inf,
    *,
    noise: float = 0.0,
    seed: int = 0,
    start: float = 2.3,
    end: float = 0.6,
) -> tuple[np.ndarray, np.ndarray]:
    """Rates and losses: a smooth step down around one rate, and a steep way up behind another."""
    rates = candidate_lrs()
    where = np.log10(rates)
    losses = end + (start - end) / (1 + np.exp(6 * (where - math.log10(fall_at))))
    if math.isfinite(rise_at):
        losses = losses + 3.0 * np.maximum(0.0, where - math.log10(rise_at)) ** 2
    return rates, losses + np.random.default_rng(seed).normal(0.0, noise, len(rates))


def test_rates_grow_by_one_factor_between_the_bounds() -> None:
    """Both ends are tried, and so is everything between."""
    rates = candidate_lrs()
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(LOWEST), pytest.approx(HIGHEST), STEPS)
    assert np.allclose(rates[1:] / rates[:-1], rates[1] / rates[0])


def test_the_smoothed_loss_of_a_constant_is_that_constant_from_the_first_step() -> None:
    """Corrected for its start: the first mean is the first loss, not a tenth of it."""
    assert np.allclose(smooth([2.0] * 5), 2.0)
    assert smooth([1.0, 3.0])[1] == pytest.approx((BETA * 1.0 + 3.0) / (BETA + 1.0))
    assert smooth([3.0, 1.0, 9.0]).min() == pytest.approx(smooth([3.0, 1.0])[1])


def test_a_test_ends_when_the_loss_has_broken_down() -> None:
    """Not finite, or a smoothed loss above four times its lowest; a loss that is merely bad goes on."""
    for broken in (math.nan, math.inf):
        found = measure_curve("phase1", [(1e-3, 1.0), (1e-2, broken), (1e-1, 1.0)])
        assert (found.rates, found.losses) == ([1e-3], [1.0])
        assert found.ended == "the loss is not finite at a rate of 0.01"
    limit = 4.0 + 3.0 * BETA  # the second loss, at which the mean of both is four times the first
    high = measure_curve("phase1", [(1e-3, 1.0), (1e-2, limit + 0.1), (1e-1, 1.0)])
    assert (high.rates, "4 times" in high.ended) == ([1e-3, 1e-2], True)
    bad = measure_curve("phase1", [(1e-3, 1.0), (1e-2, limit - 0.1), (1e-1, 1.0)])
    assert (bad.rates, bad.ended) == ([1e-3, 1e-2, 1e-1], "")


@pytest.mark.parametrize("fall_at", [1e-5, 1e-3, 1e-2])
def test_the_proposal_lies_where_the_loss_falls_most_steeply(fall_at: float) -> None:
    """Within half a decade of it; the running mean lags, so that it lies behind rather than before."""
    proposal = suggest_lr(*curve(fall_at))
    assert proposal.rate is not None
    assert 0.0 <= math.log10(proposal.rate / fall_at) <= 0.5
    assert "most steeply" in proposal.reason


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_the_proposal_by_less_than_a_decade(seed: int) -> None:
    """Losses of small batches scatter by a tenth or two."""
    proposal = suggest_lr(*curve(1e-3, 0.3, noise=0.15, seed=seed))
    assert proposal.rate is not None
    assert abs(math.log10(proposal.rate / 1e-3)) < 1.0


def test_the_proposal_keeps_a_decade_below_where_the_loss_rises_again() -> None:
    """A steep descent that turns at once: the bound holds the proposal back, and says so."""
    rates, losses = curve(1e-2, 2e-2)
    free, bound = suggest_lr(*curve(1e-2)), suggest_lr(rates, losses)
    mean = smooth(losses)
    bottom = int(np.argmin(mean))
    half = mean[bottom] + (losses[:30].mean() - mean[bottom]) / 2
    up = next(rate for rate, loss in zip(rates[bottom:], mean[bottom:], strict=True) if loss > half)
    assert free.rate is not None
    assert bound.rate == pytest.approx(up / 10, rel=0.06)
    assert bound.rate < free.rate
    assert "rises again" in bound.reason


def test_a_test_that_broke_down_at_once_bounds_the_proposal_by_its_last_rate() -> None:
    """The loss falls and the next one is not finite: no rise is seen, and the end counts as one."""
    rates, losses = curve(1e-3)
    cut = int(np.searchsorted(rates, 2e-3))
    proposal = suggest_lr(rates[:cut], losses[:cut], diverged=True)
    assert proposal.rate == pytest.approx(rates[cut - 1] / 10, rel=0.06)


@pytest.mark.parametrize("seed", range(30))
def test_a_curve_without_a_descent_proposes_nothing(seed: int) -> None:
    """Noise alone, and noise that rises, whatever the seed; the reason says what was seen."""
    draws = np.random.default_rng(seed)
    rates = candidate_lrs()
    for rise in (0.0, 0.5):
        losses = 2.3 + draws.normal(0.0, 0.25, len(rates)) + rise * np.linspace(0.0, 1.0, len(rates))
        proposal = suggest_lr(rates, losses)
        assert proposal.rate is None
        assert proposal.reason.startswith("the loss does not fall: from 2.")


def test_a_slight_descent_is_none() -> None:
    """Less than a twentieth of the loss is no reason for a rate."""
    assert suggest_lr(*curve(1e-3, start=2.3, end=2.2)).rate is None
    assert suggest_lr(*curve(1e-3, start=2.3, end=2.0)).rate is not None


def test_too_few_steps_propose_nothing() -> None:
    """A loss that breaks down within the first steps has no slope."""
    rates = candidate_lrs()[:5]
    assert "only 5 steps" in suggest_lr(rates, [2.3] * 5, diverged=True).reason
    assert suggest_lr([], [], diverged=True).rate is None
    with pytest.raises(ValueError, match="2 rates and 1 losses"):
        suggest_lr([1e-3, 1e-2], [1.0])
