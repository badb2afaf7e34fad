"""Stateless random numbers: pure functions of (seed, stream, row), the same on every machine and version.

numpy's generators promise no stable stream across versions and need a state that a resume would have to carry; a
counter-based hash has neither problem.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): uint64 -> uint64, a pseudo-random bijection."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _row_keys(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(stream))
    return _mix(key ^ _mix(np.asarray(rows).astype(np.uint64)))


def uniforms(seed: int, stream: int, rows: NDArray[np.int64], num_draws: int) -> NDArray[np.floating]:
    """Numbers in [0, 1) that depend on (seed, stream, row, draw) alone.

    Args:
        stream: an epoch or a view.
        rows: (n,) row numbers.

    Returns:
        (n, num_draws) float64.
    """
    counters = np.arange(num_draws, dtype=np.uint64)
    return (_mix(_row_keys(seed, stream, rows)[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def shuffled(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in an order that depends on (seed, stream, row) alone."""
    keys = _row_keys(seed, stream ^ 0x5A5A5A5A, rows)
    return np.asarray(rows)[np.argsort(keys, kind="stable")]
