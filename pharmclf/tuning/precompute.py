"""Computes the frozen features of a sweep before its trials, in one pass, at every depth that a trial may have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.data.manifest import Manifest
from pharmclf.data.quarantine import OnLost
from pharmclf.feature_cache import extract
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.training.feasible import BLOCKS
from pharmclf.tuning.space import STRENGTH, Space
from pharmclf.tuning.trial_store import feature_cache_settings


def feature_variants(base: RunConfig, space: Space) -> list[RunConfig]:
    """The configurations with separate feature caches: every backbone with every augmentation strength. Pure."""
    names = [p.name for p in space.parameters if p.name in ("backbone", STRENGTH)]
    values = [space.possible_values(base, name) for name in names]
    return [space.config(base, dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*values)]


def max_blocks(base: RunConfig, space: Space) -> dict[str, int]:
    """The most blocks of each backbone that a trial can have, without building it. Pure."""
    return {str(config.backbone): BLOCKS[config.backbone] for config in feature_variants(base, space)}


def estimate_demand(base: RunConfig, space: Space, trials: int, num_variants: int) -> list[PhaseDemand]:
    """What all trials together train at each cut, as far as it can be known before they are chosen. Pure.

    The trials are shared by `num_variants` configurations with separate caches.
    """
    depths = [int(depth) for depth in space.possible_values(base, "unfreeze_blocks")]
    each = max(1, trials // num_variants)
    found: dict[int, int] = {}
    if base.phase1.epochs and not base.phase1.image_size:
        found[0] = base.phase1.epochs * each
    if base.phase2.epochs and not base.phase2.image_size:
        for depth in depths:
            found[depth] = found.get(depth, 0) + base.phase2.epochs * max(1, round(each / len(depths)))
    return [
        PhaseDemand(f"{depth} blocks" if depth else "the head", depth, epochs)
        for depth, epochs in sorted(found.items())
    ]


def precompute_features(
    base: RunConfig,
    space: Space,
    trials: int,
    manifest: Manifest,
    weights: Mapping[str, Any],
    say: Say,
    stopped: Callable[[], bool],
    lost: OnLost,
) -> dict[str, list[int]]:
    """Compute what the trials share -> by `feature_cache_settings` a configuration, the depths that are kept.

    Args:
        manifest: with splits.
        weights: fingerprints of the plain run, of which `weights` counts.
        lost: takes the images that are not what the manifest says.

    Raises:
        ConfigError: weights that cannot be had.
        StopRequested: the sweep was asked to stop; what is computed stays.
    """
    kept = {}
    every = feature_variants(base, space)
    wanted = estimate_demand(base, space, trials, len(every))
    for config in every:
        pool = dataclasses.replace(config, num_workers="1")  # by actors, so that this process needs no TensorFlow
        blocks = len(extract.measure_costs(pool)) - 1
        mine = [work for work in wanted if work.depth <= blocks]
        found = get_or_compute(FeatureRequest(pool, manifest, weights["weights"], mine, say, stopped, lost))
        kept[feature_cache_settings(config)] = sorted(work.depth for work in mine if work.name in found)
    return kept
