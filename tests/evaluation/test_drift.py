"""How images of another source look compared with those of the training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pharmclf.evaluation.abstention_policy import fit_policy, read_policy, write_policy
from pharmclf.evaluation.drift import Appearance, describe_drift


def photos(generator: np.random.Generator, light: float, count: int = 30) -> list[np.ndarray]:
    """Noise of some light, a little different from image to image."""
    levels = generator.normal(light, 0.02, (count, 1, 1, 1)) * 255
    return list((levels + generator.normal(0, 20, (count, 40, 60, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def usual() -> Appearance:
    found = Appearance.of_images(photos(np.random.default_rng(0), 0.6))
    assert found is not None
    return found


def test_images_like_those_of_the_training_have_no_drift(usual: Appearance):
    here = Appearance.of_images(photos(np.random.default_rng(1), 0.6))
    assert here is not None
    assert describe_drift(usual, here) == []
    assert usual.brightness[1] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(("light", "word"), [(0.3, "darker"), (0.8, "brighter")])
def test_other_light_is_said_with_its_numbers(usual: Appearance, light: float, word: str):
    here = Appearance.of_images(photos(np.random.default_rng(2), light))
    assert here is not None
    [line] = describe_drift(usual, here)
    assert line.startswith(f"{word}: median brightness {light:.1f}")
    assert "of training images 0.60" in line


def test_blur_is_said(usual: Appearance):
    """Each image as the mean of squares of 4 x 4 pixels."""
    generator = np.random.default_rng(3)
    soft = [image.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3)) for image in photos(generator, 0.6)]
    here = Appearance.of_images([np.kron(image, np.ones((4, 4, 1))).astype(np.uint8) for image in soft])
    assert here is not None
    assert [line.split(":")[0] for line in describe_drift(usual, here)] == ["less sharp"]


def test_few_images_say_nothing_and_unusable_ones_do_not_count():
    generator = np.random.default_rng(4)
    assert Appearance.of_images([None] * 30 + photos(generator, 0.6, 19)) is None
    assert Appearance.of_images([]) is None


def test_a_decision_keeps_how_its_images_look(usual: Appearance, tmp_path):
    shares = np.random.default_rng(5).dirichlet(np.ones(3), size=40)
    policy = fit_policy(shares, np.arange(40) % 3, np.arange(40), 0.1)
    policy = dataclasses.replace(policy, appearance=usual)
    write_policy(policy, str(tmp_path / "decision.json"))
    assert read_policy(str(tmp_path / "decision.json")) == policy
