"""What is computed before the trials: which configurations need activations of their own, and how often they serve."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import PhaseConfig, RunConfig
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.tuning.precompute import estimate_demand, feature_variants, max_blocks
from pharmclf.tuning.space import STRENGTH, Space
from pharmclf.tuning.space_file import build_space
from pharmclf.tuning.trial_store import feature_cache_settings

BASE = RunConfig(phase1=PhaseConfig(epochs=4), phase2=PhaseConfig(epochs=6))
DROPOUT = {"head.dropout": {"low": 0, "high": 0.5}}
DEPTHS = {"unfreeze_blocks": {"low": 0, "high": 3}}
BOTH = {"backbone": {"values": ["resnet50", "vgg16"]}, STRENGTH: {"values": [0.5, 1.0]}}


def space(**mapping: Any) -> Space:
    return build_space(mapping, BASE, "test")


def test_trials_that_share_all_pictures_need_one_pass():
    """Rates, dropout and depth do not change what the frozen part sees."""
    assert feature_variants(BASE, space(**DROPOUT, **DEPTHS)) == [BASE]


def test_every_backbone_with_every_strength_needs_its_own():
    """The plain run's among them, once, though it stands among the values too."""
    found = feature_variants(BASE, space(**BOTH, **DROPOUT))
    about = [(config.backbone, config.augment.rotation_deg) for config in found]
    assert sorted(about) == [
        (name, degrees) for name in ("efficientnet_lite0", "resnet50", "vgg16") for degrees in (10.0, 20.0)
    ]
    assert BASE in found
    assert len({feature_cache_settings(config) for config in found}) == 6


def test_the_blocks_of_the_backbones_that_trials_can_have_are_known_ahead():
    """Of no others: a depth that only another backbone lacks is no reason to refuse a sweep."""
    assert max_blocks(BASE, space(**DEPTHS)) == {"efficientnet_lite0": 16}
    assert max_blocks(BASE, space(**BOTH)) == {"efficientnet_lite0": 16, "resnet50": 17, "vgg16": 5}


@settings(deadline=None)
@given(st.sampled_from(["efficientnet_lite0", "resnet50", "vgg16"]), st.sampled_from([0.5, 1.0]), st.floats(0, 0.5))
def test_every_trial_finds_its_variant(backbone: str, strength: float, dropout: float):
    """Whatever else it has: its activations are those of one of the variants."""
    searched = space(**BOTH, **DROPOUT)
    trial = searched.config(BASE, {"backbone": backbone, STRENGTH: strength, "head.dropout": dropout})
    assert feature_cache_settings(trial) in {
        feature_cache_settings(config) for config in feature_variants(BASE, searched)
    }


def test_the_epochs_of_all_trials_are_counted_at_each_cut():
    """16 trials: phase 1 at the head in each, phase 2 at one of four depths, a quarter of the trials at each."""
    found = estimate_demand(BASE, space(**DEPTHS), 16, 1)
    assert found == [
        PhaseDemand("the head", 0, 4 * 16 + 6 * 4),
        PhaseDemand("1 blocks", 1, 6 * 4),
        PhaseDemand("2 blocks", 2, 6 * 4),
        PhaseDemand("3 blocks", 3, 6 * 4),
    ]


def test_variants_divide_the_trials():
    """Two of them have half of the epochs each, and one trial at least, however many there are."""
    assert estimate_demand(BASE, space(**DEPTHS), 16, 2)[0].epochs == 4 * 8 + 6 * 2
    assert {work.epochs for work in estimate_demand(BASE, space(**DEPTHS), 2, 6)} == {4 + 6, 6}


def test_a_phase_that_is_left_out_needs_nothing():
    """Without phase 2 the head alone, without phase 1 the depths alone; a depth that is not searched is the plain
    run's."""
    head_alone = dataclasses.replace(BASE, phase2=PhaseConfig(epochs=0))
    assert estimate_demand(head_alone, space(**DEPTHS), 8, 1) == [PhaseDemand("the head", 0, 32)]
    depths_alone = dataclasses.replace(BASE, phase1=PhaseConfig(epochs=0))
    assert estimate_demand(depths_alone, space(**DROPOUT), 8, 1) == [PhaseDemand("2 blocks", 2, 48)]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 50), st.integers(1, 6))
def test_works_are_of_one_name_and_one_depth_each(first: int, second: int, trials: int, num_variants: int):
    """By depth, each with an epoch at least, so that one pass can serve them all."""
    if not first + second:
        return
    base = dataclasses.replace(BASE, phase1=PhaseConfig(epochs=first), phase2=PhaseConfig(epochs=second))
    found = estimate_demand(base, space(**DEPTHS), trials, num_variants)
    assert [work.depth for work in found] == sorted({work.depth for work in found})
    assert len({work.name for work in found}) == len(found)
    assert all(work.epochs >= 1 for work in found)
