"""Stateless random numbers: the same for ever, and random enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.data import stateless_rng
from pharmclf.data.stateless_rng import shuffled, uniforms

WORD = (1 << 64) - 1
SEEDS = st.integers(0, 2**31 - 1)
STREAMS = st.integers(0, 100_000)


def _mix(x: int) -> int:
    """Splitmix64 in whole numbers, from the paper."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def test_the_hash_is_splitmix64():
    """Seed 0 gives 0xE220A8397B1DCDAF first, as published, and arrays agree with whole numbers."""
    assert _mix(0) == 0xE220A8397B1DCDAF
    values = [0, 1, 2**31, 2**63, WORD]
    assert stateless_rng._mix(np.array(values, np.uint64)).tolist() == [_mix(value) for value in values]


def test_known_values_are_pinned():
    """A change here gives every user another order, other augmentations and other splits of the demo."""
    assert uniforms(0, 0, np.array([0, 1]), 2).tolist() == [
        [0.5290625569856239, 0.3085416569274939],
        [0.4121417395599747, 0.25179587437914275],
    ]
    assert uniforms(7, 3, np.array([5]), 3).tolist() == [[0.07564945986350124, 0.6067037871118917, 0.6880882677456721]]
    assert shuffled(0, 0, np.arange(10)).tolist() == [3, 0, 9, 7, 2, 1, 6, 5, 8, 4]
    assert shuffled(7, 3, np.arange(10)).tolist() == [8, 2, 9, 4, 3, 1, 0, 6, 7, 5]


@settings(deadline=None, max_examples=50)
@given(SEEDS, STREAMS, st.lists(st.integers(-1, 2**40), min_size=1, max_size=50), st.integers(1, 9))
def test_numbers_lie_in_0_to_1_and_depend_on_their_row_alone(seed: int, stream: int, rows: list[int], draws: int):
    """Never 1, never below 0; any batch, any order and any number of further draws give a row the same numbers."""
    found = uniforms(seed, stream, np.array(rows), draws)
    assert found.shape == (len(rows), draws)
    assert found.dtype == np.float64
    assert (found >= 0).all()
    assert (found < 1).all()
    np.testing.assert_array_equal(uniforms(seed, stream, np.array(rows[::-1]), draws + 2)[::-1, :draws], found)
    np.testing.assert_array_equal(uniforms(seed, stream, np.array(rows[-1:]), draws), found[-1:])


@settings(deadline=None, max_examples=50)
@given(SEEDS, STREAMS, st.sets(st.integers(0, 10_000), min_size=1, max_size=100))
def test_a_shuffle_is_a_permutation_that_ignores_the_order_given(seed: int, stream: int, rows: set[int]):
    """Every row once; and the same rows given in another order come out alike."""
    ascending = np.array(sorted(rows))
    order = shuffled(seed, stream, ascending)
    np.testing.assert_array_equal(np.sort(order), ascending)
    np.testing.assert_array_equal(shuffled(seed, stream, ascending[::-1]), order)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_numbers_look_uniform_and_independent(seed: int):
    """Over 20,000 rows: mean 1/2, variance 1/12, flat tenths; draws, streams, seeds and neighbours uncorrelated."""
    rows = np.arange(20_000)
    sample = uniforms(seed, 0, rows, 4)
    tolerance = 5 / np.sqrt(len(rows))  # five standard errors of a correlation
    np.testing.assert_allclose(sample.mean(axis=0), 0.5, atol=tolerance * np.sqrt(1 / 12))
    np.testing.assert_allclose(sample.var(axis=0), 1 / 12, rtol=0.03)
    tenths = np.histogram(sample, bins=10, range=(0, 1))[0] / sample.size
    np.testing.assert_allclose(tenths, 0.1, atol=0.005)
    others = [uniforms(seed, 1, rows, 1), uniforms((seed + 1) % 2**31, 0, rows, 1), np.roll(sample[:, :1], 1)]
    columns = np.concatenate([sample, *others], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < tolerance


def test_orders_do_not_remember_where_rows_stood():
    """Place after the shuffle is uncorrelated with the row number and with the place in another epoch."""
    places = [np.argsort(shuffled(3, epoch, np.arange(20_000))) for epoch in range(3)]
    correlation = np.corrcoef([np.arange(20_000), *places]) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
