"""Settings that cannot be met are refused before an image is read; those that come to little are named."""

from __future__ import annotations

from typing import Any

import pytest

from pharmclf.config import ConfigError, PhaseConfig, RunConfig
from pharmclf.training.feasible import batch_warning, check_feasible

COSINE = PhaseConfig(epochs=1, schedule="cosine", warmup=1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"unfreeze_blocks": 100},
            "unfreeze_blocks: received 100, but efficientnet_lite0 has 16 blocks. Give",
        ),
        ({"backbone": "vgg16", "unfreeze_blocks": 6}, "received 6, but vgg16 has 5 blocks"),
        ({"backbone": "inception_v3", "image_size": 74}, "image_size: received 74, but inception_v3 takes 75 pixels"),
        ({"num_workers": "8", "batch_size": 4}, "num_workers: received 8, but a batch has 4 images"),
        ({"num_workers": "8-16", "batch_size": 4}, "num_workers: received 8-16"),
    ],
)
def test_what_no_run_can_do_is_refused(settings: dict[str, Any], words: str) -> None:
    """With what was received, what there is, and the remedy."""
    with pytest.raises(ConfigError, match=words):
        check_feasible(RunConfig(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"unfreeze_blocks": 16}, {"unfreeze_blocks": 100, "phase2": PhaseConfig(epochs=0)},
        {"backbone": "inception_v3", "image_size": 75}, {"num_workers": "1-16", "batch_size": 4}, {"num_workers": "0"},
    ],
)  # fmt: skip
def test_what_a_run_can_do_draws_no_word(settings: dict[str, Any]) -> None:
    """Also the blocks of a phase that is left out."""
    assert check_feasible(RunConfig(**settings)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unfreeze_blocks": 0}, "phase 2 trains the head alone"),
        ({"phase1": COSINE}, "phase1.warmup is 1: the learning rate only rises"),
        (
            {"phase2": PhaseConfig(epochs=1, learning_rate=0.0)},
            "phase2.learning_rate is 0: the phase changes no",
        ),
    ],
)
def test_what_comes_to_little_is_named(settings: dict[str, Any], words: str) -> None:
    (warning,) = check_feasible(RunConfig(**settings))
    assert words in warning


def test_a_batch_of_more_than_all_images_is_named() -> None:
    """An epoch is one step then."""
    assert batch_warning(RunConfig(batch_size=166), 166) == ""
    assert "batch_size 65,536: there are 166 training images, so an epoch is one step" in batch_warning(
        RunConfig(batch_size=65_536), 166
    )
