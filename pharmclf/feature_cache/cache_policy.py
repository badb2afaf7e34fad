"""Whether keeping activations pays: bytes, free space and time saved, estimated before anything is computed. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pharmclf.core.units import format_duration, format_size
from pharmclf.models.backbone_split import SplitCost

_SUFFIX_COST = 3.0  # a training step of the suffix, in forward passes
_MIN_SAVING = 0.05  # share of the time that must be saved
_MAX_PHASES_FOR_ALL_SUBSETS = 8  # phases of which every subset is looked at
_MAX_SPACE_SHARE = 0.5  # share of the free space that may be filled


@dataclass(frozen=True)
class PhaseDemand:
    """What a phase would do."""

    name: str
    depth: int
    """Blocks of the backbone that it trains."""
    epochs: int
    """Epochs at most."""


@dataclass(frozen=True)
class ThroughputEstimate:
    """What the nodes of a run can do together; rough figures, which decide nothing but this choice."""

    work_per_s: float
    """Of the unit that `SplitCost.work` is in."""
    decoded_per_s: float
    """Images read and decoded."""
    bytes_per_s: float
    """Activations written to and read from storage."""
    free_bytes: float
    """Space that activations may use."""

    @staticmethod
    def estimate(cpus: float, gpus: float, nodes: int, free_bytes: float, *, remote: bool) -> ThroughputEstimate:
        """Figures of a cluster from what it is made of."""
        return ThroughputEstimate(
            # a core: measured with both backbones; a GPU: what is published of ResNet50 on a small one
            work_per_s=gpus * 5e12 if gpus else cpus * 30e9,
            decoded_per_s=cpus * 300,
            bytes_per_s=nodes * (100e6 if remote else 500e6),
            free_bytes=free_bytes,
        )


@dataclass(frozen=True)
class CacheDecision:
    """What is kept."""

    phases: tuple[str, ...]
    """Names of the phases that train on kept activations."""
    reason: str
    """In one line."""


def bytes_per_image(cost: SplitCost, dtype: str) -> int:
    """Bytes of the activations at a cut for one picture."""
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
    """Choose the phases that shall train on kept activations: those that save most time within the free space.

    Args:
        phases: of the run.
        costs: of every cut of the backbone.
        rows: images of the training and of the validation split.
        views: different pictures of a training image, 1 or more; 0 where every epoch sees new ones.
        dtype: float16 or float32.
        machines: what computes, reads and writes.
        kept: depths whose activations are there already.
    """
    frozen = [phase for phase in phases if costs[phase.depth].work > 0]
    if not frozen:
        return CacheDecision((), "not kept: the whole backbone is trained")
    if views == 0:
        return CacheDecision((), "not kept: augment.views is 0, so every epoch sees new pictures")
    pictures = rows[0] * views + rows[1]

    def seconds(chosen: Sequence[PhaseDemand]) -> float:
        missing = [phase.depth for phase in chosen if phase.depth not in kept]
        total = 0.0
        if missing:
            compute = max(costs[depth].work for depth in missing) * pictures / machines.work_per_s
            written = (
                sum(bytes_per_image(costs[depth], dtype) for depth in set(missing)) * pictures / machines.bytes_per_s
            )
            total += max(compute, sum(rows) / machines.decoded_per_s, written)
        return total + sum(_epoch_s(phase, costs, rows, dtype, machines, phase in chosen) for phase in phases)

    def size(chosen: Sequence[PhaseDemand]) -> int:
        return sum(bytes_per_image(costs[depth], dtype) for depth in {phase.depth for phase in chosen}) * pictures

    def new_bytes(chosen: Sequence[PhaseDemand]) -> int:
        return size([phase for phase in chosen if phase.depth not in kept])

    subsets = _candidate_phase_sets(frozen)
    streamed = seconds(())
    best = min(subsets, key=seconds)
    if seconds(best) > (1 - _MIN_SAVING) * streamed:
        return CacheDecision(
            (), f"not kept: {format_size(size(best))} would not save time (some {format_duration(streamed)} either way)"
        )
    room = [part for part in subsets if new_bytes(part) <= _MAX_SPACE_SHARE * machines.free_bytes]
    fitting = min(room, key=seconds, default=best)
    if not room or seconds(fitting) > (1 - _MIN_SAVING) * streamed:
        free = format_size(machines.free_bytes)
        return CacheDecision(
            (), f"not kept: {format_size(new_bytes(best))} would be more than half of the {free} that are free"
        )
    names = tuple(phase.name for phase in fitting)
    return CacheDecision(
        names,
        f"kept for {' and '.join(names)}, {format_size(size(fitting))}: some {format_duration(seconds(fitting))} "
        f"instead of {format_duration(streamed)}",
    )


def _candidate_phase_sets(phases: Sequence[PhaseDemand]) -> list[tuple[PhaseDemand, ...]]:
    """What may be kept together: anything, or of many phases, as a sweep has them, those with the highest cuts."""
    if len(phases) <= _MAX_PHASES_FOR_ALL_SUBSETS:
        return [part for count in range(1, len(phases) + 1) for part in itertools.combinations(phases, count)]
    ordered = sorted(phases, key=lambda phase: phase.depth)
    return [tuple(ordered[:count]) for count in range(1, len(ordered) + 1)]


def _epoch_s(
    phase: PhaseDemand,
    costs: Sequence[SplitCost],
    rows: tuple[int, int],
    dtype: str,
    machines: ThroughputEstimate,
    cached: bool,
) -> float:
    """Seconds of all epochs of a phase: input and computation go on side by side."""
    whole, prefix = costs[0].work, costs[phase.depth].work
    suffix = (_SUFFIX_COST * rows[0] + rows[1]) * (whole - prefix)
    compute = (suffix + (0.0 if cached else sum(rows) * prefix)) / machines.work_per_s
    source = sum(rows) * (
        bytes_per_image(costs[phase.depth], dtype) / machines.bytes_per_s if cached else 1 / machines.decoded_per_s
    )
    return phase.epochs * max(compute, source)
