"""Gives a run its activations: chooses what is kept, finds it, computes what is missing, once for all who want it."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.hashing import sha256_file
from pharmclf.core.signals import StopRequested
from pharmclf.core.units import format_size
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache import extract
from pharmclf.feature_cache.cache_key import SPLITS, cache_location, cache_root, key_parts
from pharmclf.feature_cache.cache_policy import PhaseDemand, decide_caching
from pharmclf.feature_cache.row_ranges import CacheTarget
from pharmclf.feature_cache.shards import (
    USED_FILE,
    CachedFeatures,
    FeatureCacheUnavailableError,
    ShardLayout,
    existing_shards,
    missing_shards,
    open_features,
    sha256_in_name,
    shard_files,
    write_index,
)
from pharmclf.models.backbone_split import SplitCost, check_depth
from pharmclf.models.precision import run_precision
from pharmclf.progress import progress_reporter
from pharmclf.storage.lease import Lease, LeaseHeldError, LeaseLostError

_WAIT_S = 2.0
_WAIT_NOTE_S = 30.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@dataclass(frozen=True)
class FeatureRequest:
    """Whose activations are wanted, and what the run does meanwhile."""

    config: RunConfig
    manifest: Manifest
    weights: str
    """"imagenet", "none", or the sha256 of a file of weights."""
    phases: Sequence[PhaseDemand]
    say: Callable[[str], None]
    stopped: Callable[[], bool]
    """Whether the run was asked to stop."""
    lost: Callable[[Mapping[int, str]], None]
    """Is given rows of the manifest whose images are not what it says, with the reasons; their rows become NaN."""


def get_or_compute(wish: FeatureRequest, *, earlier: Sequence[str] | None = None) -> dict[str, CachedFeatures]:
    """The activations that the phases of a run train on, computed where they are not kept yet.

    Args:
        wish: of the run.
        earlier: the phases that the run trained on activations before it was interrupted; None: it begins.

    Returns:
        Activations by name of the phase; a phase that is not among them streams the images.

    Raises:
        ConfigError: weights that cannot be had, or more blocks than there are.
        StopRequested: the run was asked to stop.
        PermissionError, StorageUnavailableError: the storage gives nothing at all.
    """
    if wish.config.activations == "never":
        return {}
    try:
        return _get_or_compute(wish, earlier)
    except FeatureCacheUnavailableError as error:
        wish.say(fallback_message(error))
        return {}


def fallback_message(error: FeatureCacheUnavailableError) -> str:
    """What a run says when it goes on without activations."""
    return f"warning: activations cannot be kept, the images are streamed instead: {error}"


def _get_or_compute(wish: FeatureRequest, earlier: Sequence[str] | None) -> dict[str, CachedFeatures]:
    config = wish.config
    if config.views == 0:
        wish.say("activations: not kept, since augment.views is 0: every epoch sees new pictures")
        return {}
    precision = run_precision(config)
    cuts = {}
    for depth in {phase.depth for phase in wish.phases}:
        parts = key_parts(config, wish.manifest, depth, wish.weights, precision)
        cuts[depth] = _CacheLocation(depth, cache_location(config.storage, parts), parts)
    standing = {depth: kept for depth, cut in cuts.items() if (kept := open_features(cut.location, wish.manifest))}
    costs: list[SplitCost] = []
    names: Sequence[str] = [phase.name for phase in wish.phases]
    if earlier is not None and config.activations == "auto":  # a resumed run goes on as it began, bit for bit
        names = earlier
    elif len(standing) < len(cuts):
        costs = extract.measure_costs(config)
        names = _choose_phases(wish, costs, standing)
    chosen = [phase for phase in wish.phases if phase.name in names]
    wanted = [cuts[depth] for depth in sorted({phase.depth for phase in chosen})]
    if chosen and all(cut.depth in standing for cut in wanted):
        wish.say(f"activations: those of {' and '.join(names)} are there already")
    found = _get_or_compute_splits(wish, wanted, standing, costs, precision)
    return {phase.name: found[phase.depth] for phase in chosen}


def _choose_phases(wish: FeatureRequest, costs: Sequence[SplitCost], standing: Collection[int]) -> Sequence[str]:
    """Names of the phases that shall train on activations."""
    config = wish.config
    for phase in wish.phases:
        check_depth(config.backbone, len(costs) - 1, phase.depth)
    if config.activations == "always":
        return [phase.name for phase in wish.phases if costs[phase.depth].work > 0]
    rows = (len(wish.manifest.rows("train")), len(wish.manifest.rows("validation")))
    machines = extract.estimate_throughput(cache_root(config.storage))
    choice = decide_caching(wish.phases, costs, rows, config.views, config.activations_dtype, machines, standing)
    wish.say(f"activations: {choice.reason}")
    return choice.phases


def _get_or_compute_splits(
    wish: FeatureRequest,
    cuts: Sequence[_CacheLocation],
    standing: Mapping[int, CachedFeatures],
    costs: Sequence[SplitCost],
    precision: str,
) -> dict[int, CachedFeatures]:
    """The activations at some cuts, by depth: computed here, or waited for where another process computes them.

    Args:
        standing: those that are there already, by depth.
        costs: of all cuts; empty where they have not been asked for yet.
    """
    whole, told = dict(standing), -math.inf
    while missing := [cut for cut in cuts if cut.depth not in whole]:
        with _LeaseGroup(missing) as leases:
            if not leases.taken:
                whole |= _compute_missing(wish, leases, costs or extract.measure_costs(wish.config), precision)
        if leases.taken:
            if wish.stopped():
                raise StopRequested
            if time.monotonic() - told > _WAIT_NOTE_S:
                told = time.monotonic()
                wish.say(f"activations: waiting, {leases.taken}")
            time.sleep(_WAIT_S)
        for cut in missing:
            if kept := open_features(cut.location, wish.manifest):
                whole[cut.depth] = kept
    for cut in cuts:
        with contextlib.suppress(OSError):  # it is for the listing only
            used = {"used_s": time.time(), "run": wish.config.run_name}
            storage.write_json(storage.join(cut.location, USED_FILE), used)
    return whole


def _compute_missing(
    wish: FeatureRequest, leases: _LeaseGroup, costs: Sequence[SplitCost], precision: str
) -> dict[int, CachedFeatures]:
    """Compute what is missing of the cuts whose leases are held, and write their indexes.

    Returns:
        Activations by depth that lack rows, since the images of these are not what the manifest says. They are this
        run's alone: they have no index, and another run, or this one when it is resumed, computes what is incomplete
        again.
    """
    config, manifest, began, computed = wish.config, wish.manifest, time.monotonic(), 0
    tell = progress_reporter(wish.say, "activations")

    def progress(done: int, total: int) -> None:
        nonlocal computed
        computed = done
        if wish.stopped():
            raise StopRequested
        leases.check()
        tell(done, total)

    targets = [
        CacheTarget(cut.location, cut.depth, ShardLayout.of(config, manifest, costs[cut.depth].shape))
        for cut in leases.cuts
    ]
    try:
        incomplete = extract.extract_features(config, manifest, targets, precision, progress, wish.lost)
        lacking = {}
        for cut, target, names in zip(leases.cuts, targets, incomplete, strict=True):
            if kept := _finalize(cut, target.layout, time.monotonic() - began, names, manifest):
                lacking[cut.depth] = kept
    except LeaseLostError:  # the other process continues with it
        return {}
    except (FeatureCacheUnavailableError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _DISK_FULL:
            raise
        leases.release()  # first: a renewal would leave its files behind
        for cut in leases.cuts:
            with contextlib.suppress(OSError):  # another process may be writing there by now
                storage.delete_folder(cut.location)
        raise FeatureCacheUnavailableError(str(error)) from error
    size = format_size(sum(target.layout.num_bytes for target in targets))
    wish.say(f"activations: {computed:,} pictures in {time.monotonic() - began:.0f} s, {size} kept")
    if lacking:
        count = sum(map(len, incomplete))
        wish.say(f"activations: {count:,} shards lack quarantined images; this run alone uses them")
    return lacking


def _finalize(
    cut: _CacheLocation,
    layout: ShardLayout,
    seconds: float,
    incomplete: Mapping[tuple[str, int], str],
    manifest: Manifest,
) -> CachedFeatures | None:
    """Write the index of a cut whose shards are all complete; a shard that stands twice is deleted once.

    Args:
        cut: whose shards they are.
        layout: of them.
        seconds: that their computation took.
        incomplete: names of those that this run has computed without all of their images.
        manifest: of the images.

    Returns:
        The activations of a cut that has incomplete shards; None for a complete one.
    """
    standing = existing_shards(cut.location, layout)
    found = {(section, shard): name for section, shard, name in standing}
    if missing_shards(layout, found):
        if missing_shards(layout, {**incomplete, **found}):
            return None  # somebody has cleared it: it is computed again
        rows = {split: manifest.rows(split) for split in SPLITS}
        return CachedFeatures(cut.location, layout, rows, shard_files(layout, {**incomplete, **found}))
    write_index(cut.location, layout, cut.parts, found, seconds)
    replaced = [name for section, shard, name in standing if found[section, shard] != name]
    replaced += [name for _, _, name in existing_shards(cut.location, layout, complete=False)]
    for name in replaced:
        storage.delete_file(storage.join(cut.location, name))
    return None


def delete_corrupted(activations: Iterable[CachedFeatures]) -> int:
    """Delete the shards whose content is not what their names say, so that `get_or_compute` computes them anew -> how
    many."""
    dropped = 0
    for kept in activations:
        for _, _, name in existing_shards(kept.location, kept.layout):
            location = storage.join(kept.location, name)
            with storage.local_file(location) as path:
                damaged = sha256_file(path) != sha256_in_name(name)
            if damaged:
                storage.delete_file(location)
                dropped += 1
    return dropped


@dataclass(frozen=True)
class _CacheLocation:
    depth: int
    location: str
    parts: Mapping[str, Any]


class _LeaseGroup:
    """The leases of some cuts, all or none: of two processes that want the same ones, one computes them all."""

    def __init__(self, cuts: Sequence[_CacheLocation]) -> None:
        self.cuts = sorted(cuts, key=lambda cut: cut.location)  # in one order everywhere, so that one of two is first
        self.taken = ""
        """Who holds one of them, "" where all are ours."""
        self._leases: list[Lease] = []

    def __enter__(self) -> _LeaseGroup:
        try:
            for cut in self.cuts:
                self._leases.append(Lease.acquire(cut.location))
        except LeaseHeldError as error:
            self.taken = str(error)
            self.release()
        except OSError as error:
            self.release()
            if isinstance(error, PermissionError) or error.errno in _DISK_FULL:
                raise FeatureCacheUnavailableError(str(error)) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give all of them back."""
        while self._leases:
            self._leases.pop().release()

    def check(self) -> None:
        """Raise LeaseLostError if another process holds one of them by now."""
        for lease in self._leases:
            lease.check()
