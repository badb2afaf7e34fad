"""How unlike the training images an image is: what the distance is, what it finds, and its file."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from pharmclf.data.manifest import COLUMNS, Manifest
from pharmclf.evaluation.abstention_policy import fit_policy
from pharmclf.evaluation.strangeness import ClassDistance, Strangeness, fit_strangeness, sample_training_rows

CLASSES, CHANNELS = 4, 24


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def features(generator: np.random.Generator, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, d) features of unit length around the centres, and the numbers of these."""
    numbers = np.arange(count) % len(centres)
    spread = 0.3 * np.linspace(0.2, 1.0, centres.shape[1])
    return unit(centres[numbers] + spread * generator.standard_normal((count, centres.shape[1]))), numbers


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CLASSES + 1, CHANNELS))
    train, classes = features(generator, centres[:-1], 400)
    return {
        "train": train,
        "classes": classes,
        "validation": features(generator, centres[:-1], 200)[0],
        "test": features(generator, centres[:-1], 200)[0],
        "unknown": features(generator, centres[-1:], 200)[0],
    }


def fitted(world: dict[str, np.ndarray]) -> Strangeness:
    found = fit_strangeness([world["train"]], world["classes"], [world["validation"]])
    assert found is not None
    return found


def test_the_distance_is_the_mahalanobis_distance_to_the_nearest_class(world: dict[str, np.ndarray]):
    """With the covariance of Ledoit and Wolf: of few channels all directions are kept."""
    train = world["train"].astype(np.float64)
    means = np.stack([train[world["classes"] == number].mean(axis=0) for number in range(CLASSES)])
    residuals = train - means[world["classes"]]
    shrunk, shrinkage = ledoit_wolf(residuals, assume_centered=True)
    plain = residuals.T @ residuals / (len(train) - CLASSES)
    covariance = (1 - shrinkage) * plain + shrinkage * np.trace(plain) / CHANNELS * np.eye(CHANNELS)
    assert np.allclose(covariance, shrunk, rtol=0.02, atol=1e-5)  # which divides by the number of images
    away = world["test"].astype(np.float64)[:, None] - means
    expected = np.einsum("ncd,de,nce->nc", away, np.linalg.inv(covariance), away).min(axis=1)
    distance = fitted(world).distances[0]
    np.testing.assert_allclose(distance(world["test"]) * distance.spread + distance.centre, expected, rtol=1e-4)


def test_images_of_a_class_that_was_not_trained_on_are_stranger(world: dict[str, np.ndarray]):
    """And images like the validation images are about 0, with a deviation of about 1."""
    score = fitted(world)
    known, unknown = score([world["test"]]), score([world["unknown"]])
    truth = np.repeat([0, 1], [len(known), len(unknown)])
    assert roc_auc_score(truth, np.concatenate([known, unknown])) > 0.99
    assert abs(known.mean()) < 0.3
    assert 0.7 < known.std() < 1.4


def test_of_many_channels_few_directions_are_kept():
    """The rest has one variance, so that the file stays small; the score is nearly that of all directions."""
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((3, 600))
    train, classes = features(generator, centres, 300)
    known, other = features(generator, centres, 90)[0], features(generator, centres[:1] * 1.2, 90)[0]
    found = fit_strangeness([train], classes, [known])
    assert found is not None
    assert found.distances[0].directions.shape == (600, 256)
    assert len(found.to_bytes()) < 600 * 300 * 4
    assert np.isfinite(found([other])).all()


def test_the_score_of_several_tensors_is_the_sum_of_theirs(world: dict[str, np.ndarray]):
    both = fit_strangeness([world["train"]] * 2, world["classes"], [world["validation"]] * 2)
    assert both is not None
    np.testing.assert_array_equal(both([world["test"]] * 2), 2 * fitted(world)([world["test"]]))


def test_a_score_comes_back_as_it_was_written(world: dict[str, np.ndarray]):
    """To the last bit; and the file runs no code."""
    score = fitted(world)
    content = score.to_bytes()
    np.testing.assert_array_equal(Strangeness.from_bytes(content)([world["test"]]), score([world["test"]]))
    assert content == score.to_bytes()


def test_too_few_images_or_equal_ones_give_no_score(world: dict[str, np.ndarray]):
    """Rather than one that chance decides."""
    train, classes, known = world["train"], world["classes"], world["validation"]
    assert fit_strangeness([], classes, []) is None
    assert fit_strangeness([train[:10]], classes[:10], [known]) is None
    assert fit_strangeness([train], np.arange(len(train)), [known]) is None
    assert fit_strangeness([train], classes, [known[:10]]) is None
    same = np.repeat(train[:1], len(train), axis=0)
    assert fit_strangeness([same], classes, [known]) is None


def test_the_sample_has_images_of_each_class_whatever_the_order_of_the_listing():
    """1,000 training images in all, at least five of a class, none of another split."""
    generator = np.random.default_rng(2)
    count = 3000
    table = pd.DataFrame({name: [""] * count for name in COLUMNS})
    table["label"] = generator.choice(["many"] * 90 + ["few"] * 9 + ["rare"], count)
    table["sha256"] = [f"{number:064x}" for number in generator.permutation(count)]
    table["split"] = generator.choice(["train", "validation", "test"], count)
    table["status"] = "ok"
    classes = ("few", "many", "rare")
    rows = sample_training_rows(Manifest(table, classes, "/images"))
    drawn = table.loc[rows]
    assert set(drawn["split"]) == {"train"}
    assert drawn["label"].value_counts()["many"] == 333
    assert (drawn["label"] == "rare").sum() == ((table["label"] == "rare") & (table["split"] == "train")).sum()
    mixed = table.sample(frac=1.0, random_state=0).reset_index(drop=True)
    again = mixed.loc[sample_training_rows(Manifest(mixed, classes, "/images"))]
    assert set(again["sha256"]) == set(drawn["sha256"])


def sure(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that is right wherever it is sure, and the true classes."""
    generator = np.random.default_rng(3)
    truth = generator.integers(0, CLASSES, count)
    confidence = generator.uniform(0.4, 0.999, count)
    said = np.where(confidence > 0.7, truth, (truth + generator.integers(0, 2, count)) % CLASSES)
    probabilities = np.repeat(((1 - confidence) / (CLASSES - 1))[:, None], CLASSES, axis=1)
    probabilities[np.arange(count), said] = confidence
    return probabilities, truth


def test_the_limit_costs_few_answers_and_no_unknown_image_is_answered():
    """At most 5 % of the images, and a tenth of the answers, are lost for it; the threshold counts the others only."""
    probabilities, truth = sure(1000)
    strangeness = np.random.default_rng(4).standard_normal(1000)
    plain = fit_policy(probabilities, truth, np.arange(1000), 0.05)
    policy = fit_policy(probabilities, truth, np.arange(1000), 0.05, strangeness)
    assert policy.unknown is not None
    assert plain.unknown is None
    confidence = policy.calibrated(probabilities).max(axis=1)
    answered = policy.accepts(confidence, strangeness)
    before = plain.accepts(confidence)
    lost = before & (strangeness > policy.unknown.limit)
    assert 0.04 < lost.mean() <= 0.05
    assert not answered[strangeness > policy.unknown.limit].any()
    assert policy.num_answered == answered.sum()
    assert policy.coverage.value == answered.mean()
    assert policy.unknown.share.value == (strangeness > policy.unknown.limit).mean()
    assert policy.error is not None
    assert policy.error.value == (probabilities.argmax(axis=1) != truth)[answered].mean()


def test_a_model_that_answers_nothing_still_knows_what_is_unknown():
    probabilities, truth = sure(200)
    policy = fit_policy(probabilities, (truth + 1) % CLASSES, np.arange(200), 0.01, np.arange(200.0))
    assert policy.threshold > 1
    assert policy.num_answered == 0
    assert policy.unknown is not None
    assert policy.unknown.share.value == pytest.approx(0.05)


def test_a_distance_refuses_other_tensors(world: dict[str, np.ndarray]):
    """Those of another backbone: a different number is no score."""
    score = fitted(world)
    with pytest.raises(ValueError, match="zip"):
        score([world["test"]] * 2)
    with pytest.raises(ValueError, match="matmul"):
        score([world["test"][:, :5]])
    assert isinstance(score.distances[0], ClassDistance)
