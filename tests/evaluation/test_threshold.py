"""The threshold: what it promises holds in at least 95 of 100 draws, and where it can promise nothing it says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.evaluation import metrics

MAX_ERROR = 0.05


def descending(count):
    """Confidences of `count` images, the surest first."""
    return np.linspace(1.0, 0.5, count)


def broken(draw, risk, draws, max_error=MAX_ERROR):
    """Share of draws in which a threshold is assured whose true error is above `max_error`, and share assured."""
    found = [metrics.choose_threshold(*draw(), max_error) for _ in range(draws)]
    assured = [threshold.value for threshold in found if threshold.assured]
    return sum(risk(value) > max_error for value in assured) / draws, len(assured) / draws


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_an_error_that_is_everywhere_too_high_is_assured_in_at_most_one_of_twenty_draws(count):
    """The hardest case: at every threshold 5.02 % of the answers are wrong, and 5 % are asked for. Taking the lowest
    threshold at which the bound holds, without a sequence, would break the promise far more often."""
    generator = np.random.default_rng(0)
    draws, naive = 600, 0
    false = 0
    for _ in range(draws):
        confidence, correct = np.sort(generator.random(count))[::-1], generator.random(count) >= 0.0502
        false += metrics.choose_threshold(confidence, correct, np.arange(count), MAX_ERROR).assured
        wrong, answered = np.cumsum(~correct), np.arange(1, count + 1)
        naive += (metrics.tail_probability(wrong, answered, MAX_ERROR) <= 0.05).any()
    assert false / draws < 0.07  # 5 %, and two standard deviations of 600 draws
    assert naive / draws > 0.07


@pytest.mark.parametrize("copies", [[1], [2], [1, 1, 1, 2, 10]], ids=["no copies", "pairs", "up to ten copies"])
def test_the_promise_holds_where_the_error_rises_as_the_threshold_falls(copies):
    """A picture of confidence c is wrong in 40 % · (1 - c)² of cases; its copies have nearly its confidence, and are
    right or wrong with it. The truth is what a hundred thousand pictures say."""
    generator = np.random.default_rng(1)

    def draw(pictures=500):
        picture = np.repeat(np.arange(pictures), generator.choice(copies, pictures))
        confidence = generator.random(pictures)
        correct = generator.random(pictures) >= 0.4 * (1 - confidence) ** 2
        blurred = confidence[picture] + 0.01 * generator.standard_normal(len(picture))
        return blurred, correct[picture], picture

    truth = metrics.risk_coverage(*draw(100_000)[:2])
    false, assured = broken(draw, lambda value: truth.error[np.searchsorted(-truth.thresholds, -value)], 500)
    assert false < 0.07
    assert assured > 0.05


def test_the_promise_holds_where_the_error_jumps():
    """Without errors down to 0.5 and with one in two below: the sequence ends a little behind the jump."""
    generator = np.random.default_rng(2)

    def draw():
        confidence = generator.random(600)
        return confidence, (confidence >= 0.5) | (generator.random(600) < 0.5), np.arange(600)

    false, assured = broken(draw, lambda threshold: 0.5 * max(0.0, 0.5 - threshold) / (1 - threshold), 500)
    assert false < 0.07
    assert assured == 1.0


def test_299_images_without_an_error_assure_one_in_a_hundred():
    """And 298 do not; all are answered either way, since no error was seen."""
    for count, assured in ((299, True), (298, False)):
        threshold = metrics.choose_threshold(descending(count), np.ones(count, bool), np.arange(count), 0.01)
        assert (threshold.assured, threshold.num_needed) == (assured, 299)
        assert threshold.value == 0.5
        assert (threshold.upper_bound <= 0.01) is assured
        assert threshold.upper_bound == pytest.approx(metrics.upper_bound(0, count))


def test_copies_of_a_picture_assure_nothing():
    """150 pictures twice are 150 pictures, 299 twice are 299."""
    for pictures, assured in ((150, False), (299, True)):
        groups = np.repeat(np.arange(pictures), 2)
        confidence = descending(pictures)[groups]
        threshold = metrics.choose_threshold(confidence, np.ones(2 * pictures, bool), groups, 0.01)
        assert threshold.assured is assured
        assert threshold.upper_bound == pytest.approx(metrics.upper_bound(0, pictures))


@pytest.mark.parametrize("count", [1600, 5000])
def test_one_error_among_the_surest_does_not_end_the_search(count):
    """The very surest image is wrong, as mislabelled ones are, and the last tenth: most are answered all the same."""
    correct = np.arange(count) < 0.9 * count
    correct[0] = False
    threshold = metrics.choose_threshold(descending(count), correct, np.arange(count), 0.01)
    assert threshold.assured
    assert np.mean(descending(count) >= threshold.value) > 0.85
    assert threshold.upper_bound <= 0.01


@pytest.mark.parametrize(("errors", "assured"), [(range(1194, 1200), True), (range(6), False)])
def test_a_sequence_hands_its_share_of_the_risk_on_at_its_end_only(errors, assured):
    """Six errors among the first 1,200 of 2,400 images have a tail of 4.6 % at an error of 1 %: enough for a sequence
    with both shares of 2.5 %, and too much where the first sequence has spent its own on errors at the top."""
    correct = np.ones(2400, bool)
    correct[list(errors)] = False
    assert 0.025 < metrics.tail_probability(6, 1200, 0.01) < 0.05
    assert metrics.choose_threshold(descending(2400), correct, np.arange(2400), 0.01).assured is assured


def test_where_nothing_can_be_assured_the_observed_error_decides():
    """250 images, the 60th and the 111th wrong. Down to the 110th at most one in a hundred is wrong, at every threshold
    that answers a hundred or more; of all 250 it would be again, but it was not all the way."""
    correct = np.ones(250, bool)
    correct[[59, 110]] = False
    threshold = metrics.choose_threshold(descending(250), correct, np.arange(250), 0.01)
    assert not threshold.assured
    assert threshold.value == descending(250)[109]
    assert threshold.upper_bound == pytest.approx(metrics.upper_bound(1, 110))


def test_images_of_one_confidence_are_answered_together():
    """Thirty images are equally sure and the last of them is wrong: only the twenty before them are answered."""
    confidence = np.concatenate([descending(20), np.full(30, 0.4)])
    correct = np.arange(50) < 49
    threshold = metrics.choose_threshold(confidence, correct, np.arange(50), 0.01)
    assert (threshold.value, threshold.assured) == (0.5, False)


@pytest.mark.parametrize(("count", "first_error"), [(40, 5), (9, 9), (1, 0), (400, 0)])
def test_where_even_that_is_too_much_nothing_is_answered(count, first_error):
    """An error among the ten surest and on from there, or fewer than ten images: no confidence reaches it."""
    correct = np.arange(count) < first_error
    threshold = metrics.choose_threshold(descending(count), correct, np.arange(count), 0.01)
    assert (threshold.value, threshold.assured, threshold.upper_bound) == (metrics.REJECT_ALL, False, 1.0)
    assert threshold.value > 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 500), st.sampled_from([0.01, 0.05, 0.3]), st.sampled_from([1, 2, 9]))
def test_what_is_said_of_a_threshold_is_true_of_the_images(seed, count, max_error, digits):
    """The threshold is a confidence that occurs, the observed error is at most what was asked for, and so is the bound
    where it is assured; the order of the rows does not matter."""
    generator = np.random.default_rng(seed)
    confidence = generator.random(count).round(digits)
    correct = generator.random(count) >= 0.5 * (1 - confidence) ** 3
    groups = generator.integers(0, count, count)
    threshold = metrics.choose_threshold(confidence, correct, groups, max_error)
    order = generator.permutation(count)
    again = metrics.choose_threshold(confidence[order], correct[order], groups[order], max_error)
    assert again.value == threshold.value
    point = metrics.operating_point(confidence, correct, groups, threshold.value)
    if point.error is None:
        assert threshold.value == metrics.REJECT_ALL
        return
    assert threshold.value in confidence
    assert point.error.value <= max_error
    answered = groups[confidence >= threshold.value]
    size = metrics.effective_size(answered)
    assert threshold.upper_bound == pytest.approx(metrics.upper_bound(point.error.value * size, size))
    assert threshold.upper_bound <= max_error or not threshold.assured


def test_no_share_and_no_rows_are_refused():
    """0, 1 and what is no number are no share to ask for; without images there is nothing to choose from."""
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"max_error: received .* expected a share above 0 and below 1"):
            metrics.choose_threshold(np.ones(3), np.ones(3, bool), np.arange(3), share)
    with pytest.raises(ValueError, match="no rows"):
        metrics.choose_threshold(np.ones(0), np.ones(0, bool), np.arange(0), 0.01)
