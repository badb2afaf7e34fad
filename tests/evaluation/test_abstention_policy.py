"""The decision: what is fitted, what it promises of other images, and its file."""

import dataclasses
import json

import numpy as np
import pytest

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.evaluation import metrics
from pharmclf.evaluation.abstention_policy import UnknownLimit, fit_policy, read_policy, write_policy


def say(count, generator, *, classes=6, temperature=2.0, skill=9.0):
    """Probabilities of a model that is too sure by `temperature`, and the true classes."""
    truth = generator.integers(0, classes, count)
    honest = generator.standard_normal((count, classes)) * 1.5
    honest[np.arange(count), truth] += skill * generator.random(count)  # some images are hard
    said = np.exp(temperature * honest)
    return (said / said.sum(axis=1, keepdims=True)).astype(np.float32), truth


@pytest.fixture(scope="module")
def decision():
    return fit_policy(*say(2000, np.random.default_rng(0)), np.arange(2000), 0.05)


def test_decision_says_what_it_does_on_its_images(decision):
    """Temperature above 1 for a model that is too sure; coverage and error are those of the answered images."""
    probabilities, truth = say(2000, np.random.default_rng(0))
    calibrated = decision.calibrated(probabilities)
    answered = decision.accepts(calibrated.max(axis=1))
    wrong = calibrated.argmax(axis=1)[answered] != truth[answered]
    assert decision.temperature > 1.2
    assert (decision.num_validation_images, decision.num_answered) == (2000, answered.sum())
    assert decision.coverage == metrics.wilson_interval(answered.sum(), 2000)
    assert decision.error == metrics.wilson_interval(wrong.sum(), answered.sum())
    assert decision.assured
    assert decision.error.value < decision.upper_bound <= decision.max_error == 0.05
    assert decision.num_needed == 59
    assert 0.1 < decision.coverage.value < 0.9


def test_fewer_errors_asked_for_are_fewer_answers():
    """The lower the share of errors, the higher the threshold and the more is left to a human."""
    probabilities, truth = say(2000, np.random.default_rng(0))
    found = [fit_policy(probabilities, truth, np.arange(2000), share) for share in (0.2, 0.1, 0.05)]
    assert found[0].threshold < found[1].threshold < found[2].threshold
    assert found[0].num_answered > found[1].num_answered > found[2].num_answered


def test_the_promise_holds_on_other_images_though_the_temperature_is_fitted_on_the_same():
    """Of 200 models, each with 400 validation images, at most 8 % are assured of less error than 40,000 others show."""
    generator = np.random.default_rng(1)
    probabilities, truth = say(40_000, generator)
    broken, assured = 0, 0
    for _ in range(200):
        found = fit_policy(*say(400, generator), np.arange(400), 0.1)
        if found.assured:
            calibrated = found.calibrated(probabilities)
            answered = found.accepts(calibrated.max(axis=1))
            assured += 1
            broken += (calibrated.argmax(axis=1) != truth)[answered].mean() > 0.1
    assert broken / 200 <= 0.08  # 5 %, and two standard deviations of 200 draws
    assert assured / 200 > 0.5


def test_copies_count_once():
    """Every image three times in one group: the same temperature, threshold and bound as once."""
    probabilities, truth = say(300, np.random.default_rng(2))
    rows = np.repeat(np.arange(300), 3)
    once = fit_policy(probabilities, truth, np.arange(300), 0.1)
    often = fit_policy(probabilities[rows], truth[rows], [f"picture {row}" for row in rows], 0.1)
    for name in ("temperature", "threshold", "upper_bound"):
        assert getattr(often, name) == pytest.approx(getattr(once, name))
    assert (often.assured, often.num_answered) == (once.assured, 3 * once.num_answered)


def test_a_model_that_knows_nothing_answers_nothing():
    """Right in one of six cases, five of a hundred errors asked for: all images are left to a human."""
    probabilities, truth = say(500, np.random.default_rng(3), skill=0.0)
    found = fit_policy(probabilities, truth, np.arange(500), 0.05)
    assert (found.assured, found.num_answered, found.error, found.upper_bound) == (False, 0, None, 1.0)
    assert not found.accepts(np.array([1.0])).any()


@pytest.mark.parametrize("answers_nothing", [False, True])
def test_a_decision_comes_back_as_it_was_written(decision, tmp_path, answers_nothing):
    """Equal to the last bit, from plain JSON with its schema version."""
    if answers_nothing:
        decision = dataclasses.replace(decision, threshold=metrics.REJECT_ALL, error=None, assured=False)
    else:
        unknown = UnknownLimit(limit=1 / 3, share=metrics.wilson_interval(3, 70), sha256="ab")
        decision = dataclasses.replace(decision, unknown=unknown)
    location = str(tmp_path / "model" / "decision.json")
    write_policy(decision, location)
    assert read_policy(location) == decision
    assert json.loads(storage.read_bytes(location))["schema_version"] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"schema_version": 1}'])
def test_a_damaged_decision_is_refused(tmp_path, content):
    """The file is named, and the remedy."""
    location = tmp_path / "decision.json"
    location.write_bytes(content)
    with pytest.raises(ConfigError, match=r"decision\.json: expected a model's decision.* Take the file"):
        read_policy(str(location))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0), ("temperature", float("nan")), ("threshold", None), ("threshold", float("inf")),
        ("max_error", 1.5), ("assured", "yes"), ("coverage", 0.5), ("error", {"value": 0.1}), ("upper_bound", []),
    ],
)  # fmt: skip
def test_a_decision_with_an_impossible_value_is_refused(decision, tmp_path, name, value):
    """A temperature of 0, a threshold that is no number: nothing is answered by mistake."""
    location = tmp_path / "decision.json"
    write_policy(decision, str(location))
    location.write_text(json.dumps(json.loads(location.read_text()) | {name: value}))
    with pytest.raises(ConfigError, match="expected a model's decision"):
        read_policy(str(location))


def test_a_decision_that_is_not_there_or_of_another_version_is_refused(decision, tmp_path):
    """No file, and a file of a version to come: both are said."""
    location = tmp_path / "decision.json"
    with pytest.raises(ConfigError, match="expected a model's decision: FileNotFoundError"):
        read_policy(str(location))
    write_policy(decision, str(location))
    location.write_text(location.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(ConfigError, match="received schema_version 9, expected 1"):
        read_policy(str(location))


def test_arrays_that_do_not_fit_are_refused():
    """No images, or not one class and one group for each."""
    probabilities, truth = say(20, np.random.default_rng(0))
    for count, groups in ((0, 0), (19, 20), (20, 19)):
        with pytest.raises(ValueError, match="expected one of each for every image"):
            fit_policy(probabilities[:count], truth[:count], np.arange(groups), 0.1)
