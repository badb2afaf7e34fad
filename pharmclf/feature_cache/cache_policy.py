"""Decides whether caching features pays: bytes, free space and time saved, estimated before any computation. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pharmclf.core.units import format_duration, format_size
from pharmclf.models.backbone_split import SplitCost

_SUFFIX_COST = 3.0  # a training step of the suffix, in forward passes
_MIN_SAVING = 0.05  # share of the time that must be saved
_MAX_PHASES_FOR_ALL_SUBSETS = 8  # phases of which every subset is tried
_MAX_SPACE_SHARE = 0.5  # share of the free space that may be filled


@dataclass(frozen=True)
class PhaseDemand:
    """The work of a training phase."""

    name: str
    depth: int
    """Blocks of the backbone that it trains."""
    epochs: int
    """Epochs at most."""


@dataclass(frozen=True)
class ThroughputEstimate:
    """Rough figures of the nodes of a run together, used for this decision alone."""

    work_per_s: float
    """In the unit of `SplitCost.work`."""
    decoded_per_s: float
    """Images read and decoded."""
    bytes_per_s: float
    """Features written to and read from storage."""
    free_bytes: float
    """Space for feature caches."""


@dataclass(frozen=True)
class CacheDecision:
    """Which phases use the feature cache."""

    phases: tuple[str, ...]
    """Names of the phases that train on cached features."""
    reason: str
    """One line."""


def bytes_per_image(cost: SplitCost, dtype: str) -> int:
    """Bytes of the features at a cut for one view of an image."""
    return math.prod(cost.shape) * (2 if dtype == "float16" else 4)


def decide_caching(
    phases: Sequence[PhaseDemand],
    costs: Sequence[SplitCost],
    rows: tuple[int, int],
    views: int,
    dtype: str,
    machines: ThroughputEstimate,
    kept: Collection[int] = (),
) -> CacheDecision:
    """Choose the phases that train on cached features: those that save most time within the free space.

    Args:
        costs: of every cut of the backbone.
        rows: images of the training and of the validation split.
        views: augmented views of a training image, 1 or more; 0 where every epoch sees a new one.
        dtype: float16 or float32.
        kept: depths of existing caches.
    """
    frozen = [phase for phase in phases if costs[phase.depth].work > 0]
    if not frozen:
        return CacheDecision((), "not used: the whole backbone is trained")
    if views == 0:
        return CacheDecision((), "not used: augment.views is 0, so every epoch sees new views")
    num_views = rows[0] * views + rows[1]

    def seconds(chosen: Sequence[PhaseDemand]) -> float:
        total = sum(_phase_s(phase, costs, rows, dtype, machines, phase in chosen) for phase in phases)
        if missing := {phase.depth for phase in chosen} - {*kept}:
            compute = max(costs[depth].work for depth in missing) * num_views / machines.work_per_s
            total += max(compute, sum(rows) / machines.decoded_per_s, size(chosen, kept) / machines.bytes_per_s)
        return total

    def size(chosen: Sequence[PhaseDemand], without: Collection[int] = ()) -> int:
        depths = {phase.depth for phase in chosen} - {*without}
        return sum(bytes_per_image(costs[depth], dtype) for depth in depths) * num_views

    subsets = _candidate_phase_sets(frozen)
    streamed = seconds(())
    best = min(subsets, key=seconds)
    if seconds(best) > (1 - _MIN_SAVING) * streamed:
        return CacheDecision(
            (), f"not used: {format_size(size(best))} would not save time ({format_duration(streamed)} either way)"
        )
    room = [part for part in subsets if size(part, kept) <= _MAX_SPACE_SHARE * machines.free_bytes]
    fitting = min(room, key=seconds, default=best)
    if not room or seconds(fitting) > (1 - _MIN_SAVING) * streamed:
        return CacheDecision(
            (),
            f"not used: {format_size(size(best, kept))} would fill more than half of the free "
            f"{format_size(machines.free_bytes)}",
        )
    names = tuple(phase.name for phase in fitting)
    return CacheDecision(
        names,
        f"used for {' and '.join(names)}, {format_size(size(fitting))}: about {format_duration(seconds(fitting))} "
        f"instead of {format_duration(streamed)}",
    )


def _candidate_phase_sets(phases: Sequence[PhaseDemand]) -> list[tuple[PhaseDemand, ...]]:
    """Sets of phases to choose from: all of few phases; of many, as a sweep has, those with the highest cuts."""
    if len(phases) <= _MAX_PHASES_FOR_ALL_SUBSETS:
        return [part for count in range(1, len(phases) + 1) for part in itertools.combinations(phases, count)]
    ordered = sorted(phases, key=lambda phase: phase.depth)
    return [tuple(ordered[:count]) for count in range(1, len(ordered) + 1)]


def _phase_s(
    phase: PhaseDemand,
    costs: Sequence[SplitCost],
    rows: tuple[int, int],
    dtype: str,
    machines: ThroughputEstimate,
    cached: bool,
) -> float:
    """Seconds of all epochs of a phase; input and computation overlap."""
    backbone, prefix = costs[0].work, costs[phase.depth].work
    suffix = (_SUFFIX_COST * rows[0] + rows[1]) * (backbone - prefix)
    compute = (suffix + (0.0 if cached else sum(rows) * prefix)) / machines.work_per_s
    source = sum(rows) * (
        bytes_per_image(costs[phase.depth], dtype) / machines.bytes_per_s if cached else 1 / machines.decoded_per_s
    )
    return phase.epochs * max(compute, source)
