"""The intervals against what they promise: published values, scipy, and how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pharmclf.evaluation import metrics


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_interval_contains_the_proportion(total, share):
    """The interval lies in 0..1 around the proportion, and is never a point."""
    estimate = metrics.wilson_interval(share * total, total)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_wilson_interval_equals_published_values():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    estimate = metrics.wilson_interval(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert round(metrics.wilson_interval(0, 20).high, 4) == 0.1611


def test_wilson_interval_of_nothing_is_everything():
    """Without images the interval is 0..1; impossible counts are refused."""
    assert metrics.wilson_interval(0, 0) == metrics.Estimate(0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="expected 0 <= successes <= total"):
        metrics.wilson_interval(3, 2)


def test_wilson_interval_covers_the_truth_in_95_of_100_samples():
    """Over 4,000 samples of 100 images with a true accuracy of 0.9 the interval holds it in 93 to 97 %."""
    hits = np.random.default_rng(0).binomial(100, 0.9, 4000)
    covered = [metrics.wilson_interval(count, 100) for count in hits]
    assert 0.93 < np.mean([estimate.low <= 0.9 <= estimate.high for estimate in covered]) < 0.97


def test_near_duplicates_do_not_count_twice():
    """Every image five times in one group: same proportion, same interval as once."""
    hits = np.random.default_rng(0).random(100) < 0.9
    once = metrics.proportion(hits, np.arange(100))
    often = metrics.proportion(np.repeat(hits, 5), np.repeat(np.arange(100), 5))
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)
    naive = metrics.wilson_interval(float(hits.sum() * 5), 500)
    assert naive.high - naive.low < often.high - often.low


def test_the_interval_holds_the_truth_though_some_pictures_come_in_copies():
    """One to eight copies of each of 120 pictures: it holds the truth in 93 to 98 %; taken for images of their own, the
    copies would make it hold it in fewer than 85 %."""
    generator = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(800):
        groups = np.repeat(np.arange(120), generator.choice([1, 2, 8], 120))
        hits = (generator.random(120) < 0.9)[groups]
        for kept, codes in ((covered, groups), (naive, np.arange(len(groups)))):
            estimate = metrics.proportion(hits, codes)
            kept.append(estimate.low <= 0.9 <= estimate.high)
    assert 0.93 < np.mean(covered) < 0.98
    assert np.mean(naive) < 0.85


def test_bootstrap_of_near_duplicates_equals_that_of_the_pictures():
    """Five copies of every row in one group leave the interval of macro F1 as it is."""
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, 120)
    predicted = np.where(generator.random(120) < 0.8, truth, generator.integers(0, 4, 120))
    once = metrics.macro_f1(truth, predicted, 4, groups=np.arange(120), resamples=200)
    groups = np.repeat(np.arange(120), 5)
    often = metrics.macro_f1(np.repeat(truth, 5), np.repeat(predicted, 5), 4, groups=groups, resamples=200)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_bootstrap_is_decided_by_its_seed():
    """One seed gives one interval, another seed another."""
    values = np.random.default_rng(0).random(50)

    def interval(seed):
        return metrics.bootstrap_interval(
            lambda weights: float(weights @ values / weights.sum()), np.arange(50), resamples=100, seed=seed
        )

    assert interval(0) == interval(0) != interval(1)
    low, high = interval(0)
    assert low < values.mean() < high


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [((48, 80), (56, 70), (0.0524, 0.3339)), ((3, 10), (9, 10), (0.1705, 0.8090)), ((2, 7), (6, 7), (0.0582, 0.8062))],
)
def test_difference_of_proportions_equals_published_values(first, second, interval):
    """Newcombe 1998, table II, method 10."""
    found = metrics.proportion_difference(metrics.wilson_interval(*first), metrics.wilson_interval(*second))
    assert found.value == pytest.approx(second[0] / second[1] - first[0] / first[1])
    assert (round(found.low, 4), round(found.high, 4)) == interval


def test_an_estimate_reads_well_below_zero_too():
    """A minus sign between two bounds would be taken for theirs."""
    assert str(metrics.Estimate(0.9, 0.85, 0.94)) == "0.900 (0.850-0.940)"
    assert str(metrics.Estimate(-0.25, -0.31, -0.19)) == "-0.250 (-0.310 to -0.190)"


def test_difference_covers_the_truth_in_95_of_100_samples():
    """Accuracies of 0.98 on 300 images and 0.85 on 120: over 3,000 pairs it holds -0.13 in 93 to 97 %."""
    generator = np.random.default_rng(0)
    covered = []
    for here, there in zip(generator.binomial(300, 0.98, 3000), generator.binomial(120, 0.85, 3000), strict=True):
        found = metrics.proportion_difference(metrics.wilson_interval(here, 300), metrics.wilson_interval(there, 120))
        covered.append(found.low <= -0.13 <= found.high)
    assert 0.93 < np.mean(covered) < 0.97


def paired(gained, lost, same):
    """Hits of two models on the same images: so many that only the second, only the first, and both have right."""
    first = np.repeat([False, True, True], [gained, lost, same])
    return first, np.repeat([True, False, True], [gained, lost, same]), np.arange(gained + lost + same)


def test_difference_on_the_same_images_counts_only_those_on_which_the_models_differ():
    """1 of 21 gained and 7 lost (Bentur 2009, the example of the method): (2 - 8) / 23 within 1.96 standard errors."""
    found = metrics.paired_difference(*paired(1, 7, 13))
    assert found.value == pytest.approx(-6 / 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.508, -0.013)
    alike = metrics.paired_difference(*paired(0, 0, 50))
    assert alike.value == 0.0
    assert alike.low == -alike.high < 0.0


@pytest.mark.parametrize(("gained", "is_clear"), [(0, False), (3, False), (5, False), (6, True), (12, True)])
def test_a_few_gained_images_prove_no_difference(gained, is_clear):
    """Of 50 images, 5 gained and none lost may be chance, 6 are not (McNemar: p = 0.06 and 0.03)."""
    assert (metrics.paired_difference(*paired(gained, 0, 50 - gained)).low > 0) == is_clear


def test_difference_on_the_same_images_covers_the_truth_in_95_of_100_samples():
    """2 % gained and 5 % lost, on 150 images: over 3,000 samples it holds -0.03 in 94 to 98 %."""
    generator, covered = np.random.default_rng(0), []
    for gained, lost, same in generator.multinomial(150, [0.02, 0.05, 0.93], 3000):
        found = metrics.paired_difference(*paired(gained, lost, same))
        covered.append(found.low <= -0.03 <= found.high)
    assert 0.94 < np.mean(covered) < 0.98


def test_copies_of_images_do_not_narrow_the_difference():
    """Each image twice gives the interval of each image once."""
    first, second, groups = paired(8, 2, 40)
    once = metrics.paired_difference(first, second, groups)
    twice = metrics.paired_difference(*(np.repeat(part, 2) for part in (first, second, groups)))
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


@pytest.mark.parametrize("lengths", [(0, 0, 0), (3, 2, 3)])
def test_difference_on_the_same_images_needs_the_same_images(lengths):
    with pytest.raises(ValueError, match="expected the same number above 0"):
        metrics.paired_difference(*(np.ones(length, bool) for length in lengths))


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 400), st.floats(0.001, 0.999))
def test_tail_probability_is_the_binomial_distribution(successes, more, share):
    """It equals scipy's distribution function wherever counts are whole."""
    total = successes + more
    expected = stats.binom.cdf(successes, total, share)
    assert metrics.tail_probability(successes, total, share) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.5, 0.999))
def test_upper_bound_is_the_share_that_leaves_so_few_successes_that_improbable(successes, more, level):
    """At the bound the tail is 1 - level, and it equals scipy's exact interval."""
    total = successes + more
    bound = metrics.upper_bound(successes, total, level=level)
    assert metrics.tail_probability(successes, total, bound) == pytest.approx(1 - level, rel=1e-6)
    two_sided = stats.binomtest(successes, total).proportion_ci(1 - 2 * (1 - level), "exact")
    assert bound == pytest.approx(two_sided.high)


def test_upper_bound_of_nothing_and_of_all_is_one():
    """Nothing seen, or nothing but successes: the share may be anything up to 1."""
    assert metrics.upper_bound(0, 0) == metrics.upper_bound(5, 5) == 1.0
    assert metrics.tail_probability(5, 5, 0.01) == metrics.tail_probability(0, 0, 0.01) == 1.0


def test_upper_bound_is_not_below_the_truth_in_95_of_100_samples():
    """For shares of 0.5, 2 and 10 % of 150 images the bound is below the truth in at most 5 % of samples."""
    for share in (0.005, 0.02, 0.1):
        bounds = np.array([metrics.upper_bound(count, 150) for count in range(151)])
        below = stats.binom.pmf(np.arange(151), 150, share)[bounds < share].sum()
        assert below <= 0.05
    assert bounds[10] > 0.1  # 10 of 150 do not exclude a tenth


@pytest.mark.parametrize(("max_share", "count"), [(0.01, 299), (0.05, 59), (0.1, 29), (0.5, 5), (0.99, 1)])
def test_so_many_images_without_an_error_are_needed(max_share, count):
    """The bound of 0 in `count` reaches the share, that of one image fewer does not."""
    assert metrics.min_samples_for_guarantee(max_share) == count
    assert metrics.upper_bound(0, count) <= max_share < metrics.upper_bound(0, count - 1)


@settings(deadline=None)
@given(st.floats(0.5, 1e5), st.floats(0, 1))
def test_the_size_of_a_sample_can_be_read_from_its_wilson_interval(total, share):
    """Also of fractional sizes, and where the proportion is 0 or 1; of nothing it is 0."""
    assert metrics.independent_size(metrics.wilson_interval(share * total, total)) == pytest.approx(total, rel=1e-4)
    assert metrics.independent_size(metrics.wilson_interval(0, 0)) == 0


def test_mean_of_proportions_covers_the_truth_in_95_of_100_samples():
    """Balanced accuracies of four classes with 5 to 60 images, and of a model that always gives the same answer."""
    generator = np.random.default_rng(0)
    sizes, shares = np.array([5, 12, 30, 60]), np.array([0.95, 0.5, 0.8, 0.1])
    hits = generator.binomial(sizes, shares, (3000, 4))
    found = [
        metrics.mean_proportion([metrics.wilson_interval(*pair) for pair in zip(row, sizes, strict=True)])
        for row in hits
    ]
    covered = np.mean([estimate.low <= shares.mean() <= estimate.high for estimate in found])
    assert 0.93 < covered < 0.98
    constant = metrics.mean_proportion([metrics.wilson_interval(30, 30), metrics.wilson_interval(0, 30)])
    assert constant.low < constant.value == 0.5 < constant.high


def test_mean_of_one_proportion_is_that_proportion():
    assert metrics.mean_proportion([metrics.wilson_interval(8, 10)]) == metrics.wilson_interval(8, 10)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_interval_is_that_of_clopper_and_pearson(successes, more):
    """It equals scipy's, and begins at 0.025 for one of one."""
    if successes + more:
        found = metrics.exact_interval(successes, successes + more)
        expected = stats.binomtest(successes, successes + more).proportion_ci(0.95, "exact")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert metrics.exact_interval(1, 1).low == pytest.approx(0.025)
