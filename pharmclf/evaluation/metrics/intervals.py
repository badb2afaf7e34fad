"""95 % confidence intervals of proportions and other statistics, for samples with groups of near duplicates.

Near duplicates of one image carry the information of one image, so intervals use the effective size of the sample.
All functions accept fractional counts, because effective sizes are fractional.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_BLOCK = 2**20  # numbers of a block of rows


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, with its 95 % interval; low <= value <= high."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        between = " to " if self.low < 0 else "-"
        return f"{self.value:.3f} ({self.low:.3f}{between}{self.high:.3f})"


def wilson_interval(successes: float, total: float) -> Estimate:
    """A proportion with its Wilson 95 % interval, which is valid near 0 and 1 and for few images.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001.

    Raises:
        ValueError: fewer successes than 0 or more than the total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"received {successes} successes of {total}, expected 0 <= successes <= total")
    if total == 0:
        return Estimate(0.0, 0.0, 1.0)  # nothing is known
    share = successes / total
    scale = 1.0 + _Z95**2 / total
    centre = (share + _Z95**2 / (2 * total)) / scale
    half = _Z95 / scale * math.sqrt(share * (1 - share) / total + _Z95**2 / (4 * total**2))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def effective_size(groups: np.ndarray) -> float:
    """How many independent images a sample is worth: n² / Σ m², m the sizes of its groups (Kish 1965).

    Images of one group count as repetitions of one image; where they are less alike, intervals are wider than
    necessary, never narrower.
    """
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if len(sizes) else 0.0


def proportion(hits: np.ndarray, groups: np.ndarray) -> Estimate:
    """Share of the hits with its Wilson interval at the sample's effective size.

    Args:
        hits: (n,) booleans.
        groups: (n,) numbers or texts; rows of one value are near duplicates.
    """
    return share_interval(float(hits.mean()), groups) if len(hits) else wilson_interval(0, 0)


def share_interval(share: float, groups: np.ndarray) -> Estimate:
    """A share of the images, 0..1, with the Wilson interval at the effective size of their groups."""
    size = effective_size(groups)
    bounds = wilson_interval(share * size, size)
    return Estimate(share, min(share, bounds.low), max(share, bounds.high))


def independent_size(estimate: Estimate) -> float:
    """On how many independent images a Wilson interval is based, the inverse of `wilson_interval`.

    Args:
        estimate: of `wilson_interval`, `proportion` or `share_interval`.
    """
    bound = estimate.low if estimate.value > 0.5 else estimate.high
    return _Z95**2 * bound * (1 - bound) / (estimate.value - bound) ** 2


def mean_proportion(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of proportions of independent samples with its 95 % interval, such as the balanced accuracy.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures" (MOVER): the distances of the
    bounds are added as variances are. It has a width also where all proportions are 0 or 1.

    Args:
        estimates: proportions with their intervals, Wilson's or exact ones, at least one.
    """
    value = sum(each.value for each in estimates) / len(estimates)
    down = math.hypot(*(each.value - each.low for each in estimates)) / len(estimates)
    up = math.hypot(*(each.high - each.value for each in estimates)) / len(estimates)
    return Estimate(value, max(0.0, value - down), min(1.0, value + up))


def proportion_difference(first: Estimate, second: Estimate) -> Estimate:
    """Second minus first with its 95 % interval, for proportions of two independent samples.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10: the
    hybrid of the two Wilson intervals. It stays within -1..1, and has a width also where both proportions are 0 or 1.

    Args:
        first: a proportion with its Wilson interval.
        second: likewise, of images that the first sample has none of, nor near duplicates of them.
    """
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, max(-1.0, value - down), min(1.0, value + up))


def paired_difference(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> Estimate:
    """Share of the hits of the second model minus that of the first, on the same images, with its 95 % interval.

    Only images that one of the models has right and the other wrong carry information on the difference.
    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", at the effective size of the sample. It has a width also where the models never differ.

    Args:
        first: (n,) booleans; n is 1 or more.
        second: (n,) booleans of the same images, in their order.
        groups: (n,) numbers or texts; rows of one value are near duplicates.

    Raises:
        ValueError: no rows, or arrays of different lengths.
    """
    if not len(groups) or not len(first) == len(second) == len(groups):
        raise ValueError(
            f"received {len(first)}, {len(second)} and {len(groups)} rows, expected the same number above 0"
        )
    size = effective_size(groups)
    gained, lost = float((second & ~first).mean()), float((first & ~second).mean())
    up, down = (share * size + 1.0 for share in (gained, lost))  # one more of each kind, of two more images
    centre = (up - down) / (size + 2.0)
    half = _Z95 * math.sqrt(((up + down) / (size + 2.0) - centre**2) / (size + 2.0))
    value = gained - lost
    return Estimate(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def tail_probability(successes: float | np.ndarray, total: float | np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Probability of at most so many successes if each of `total` images is one with the probability `share`.

    The binomial distribution function, as a beta distribution's, which fractional counts need.

    Args:
        successes: 0 to the total; one or an array.
        total: 0 or more; one or an array.
        share: above 0, below 1; one or an array.
    """
    from scipy.special import betainc  # seconds to import where the disk is slow, and few callers need it

    failures = np.asarray(total, np.float64) - successes
    return np.where(failures > 0, betainc(np.where(failures > 0, failures, 1.0), successes + 1.0, 1.0 - share), 1.0)


def upper_bound(successes: float, total: float, *, level: float = 0.95) -> float:
    """Exact one-sided upper confidence bound of a proportion.

    Source: Clopper and Pearson 1934. It is the share at which `tail_probability` is 1 - level.

    Args:
        successes: 0 to the total.
        total: 0 or more.
        level: the bound is not below the true proportion in at least this share of samples, 0..1.

    Returns:
        The bound, 0..1; 1 where all are successes, or there is nothing.
    """
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1.0, total - successes, level)) if successes < total else 1.0


def exact_interval(successes: float, total: float) -> Estimate:
    """A proportion with its exact 95 % interval (Clopper and Pearson 1934): wider than Wilson's, and never too narrow.

    Args:
        successes: 0 to the total.
        total: above 0.
    """
    low, high = 1 - upper_bound(total - successes, total, level=0.975), upper_bound(successes, total, level=0.975)
    return Estimate(successes / total, low, high)


def min_samples_for_guarantee(max_share: float, *, level: float = 0.95) -> int:
    """How many independent images without a single success bring the upper bound down to `max_share` (0..1).

    299 for 0.01: three hundred in round numbers, known as the rule of three.
    """
    return math.ceil(math.log(1 - level) / math.log1p(-max_share))


def row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Row ranges of a large array, a few MB each, so that intermediate results of a computation stay small."""
    step = max(1, _BLOCK // max(1, num_columns))
    return (slice(start, start + step) for start in range(0, num_rows, step))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval, drawing whole groups with replacement (Efron and Tibshirani 1993).

    Args:
        statistic: gets (n,) float64 row weights, how often each row was drawn, and returns a finite number.
        groups: (n,) group of each row.
        resamples: number of draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no rows.
    """
    if not len(groups):
        raise ValueError("received no rows, expected at least one")
    codes = np.unique(groups, return_inverse=True)[1]
    num_groups = int(codes.max()) + 1
    generator = np.random.default_rng(seed)
    values = np.empty(resamples)
    for index in range(resamples):
        drawn = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        values[index] = statistic(drawn[codes].astype(np.float64))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
