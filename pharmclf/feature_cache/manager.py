"""Returns the feature caches of a run: decides which phases use one, reuses existing shards, computes missing ones.

A lease makes one process compute a cache while the others that need it wait.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.signals import StopRequested
from pharmclf.core.units import format_size
from pharmclf.data.manifest import Manifest
from pharmclf.data.quarantine import OnLost
from pharmclf.feature_cache import extract
from pharmclf.feature_cache.cache_key import KeyParts, cache_location, cache_root, key_parts
from pharmclf.feature_cache.cache_policy import PhaseDemand, decide_caching
from pharmclf.feature_cache.row_ranges import CacheTarget
from pharmclf.feature_cache.shards import (
    USED_FILE,
    CachedFeatures,
    FeatureCacheUnavailableError,
    ShardId,
    ShardLayout,
    existing_shards,
    files_by_split,
    missing_shards,
    open_features,
    write_index,
)
from pharmclf.models.backbone_split import SplitCost, check_depth
from pharmclf.models.precision import run_precision
from pharmclf.progress import image_progress
from pharmclf.storage.lease import Lease, LeaseHeldError, LeaseLostError

_WAIT_S = 2.0
_WAIT_NOTE_S = 30.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@dataclass(frozen=True)
class FeatureRequest:
    """The features that a run needs, and its callbacks."""

    config: RunConfig
    manifest: Manifest
    weights: str
    """"imagenet", "none", or the sha256 of a file of weights."""
    phases: Sequence[PhaseDemand]
    say: Say
    should_stop: Callable[[], bool]
    """Whether a stop of the run was requested."""
    on_lost: OnLost
    """The features of such rows are NaN."""


def get_or_compute(request: FeatureRequest, *, earlier: Sequence[str] | None = None) -> dict[str, CachedFeatures]:
    """Return the cached features that the phases of a run train on, and compute those that are missing.

    Args:
        earlier: the phases that used the cache before the run was interrupted; None: a new run.

    Returns:
        Features by name of the phase; the other phases stream the images.

    Raises:
        ConfigError: weights that cannot be loaded, or more blocks than the backbone has.
        StopRequested: a stop of the run was requested.
        PermissionError, StorageUnavailableError: the images cannot be read.
    """
    config = request.config
    if config.feature_cache == "never":
        return {}
    if config.views == 0:
        request.say("feature cache: not used, since augment.views is 0: every epoch sees new views")
        return {}
    try:
        return _get_or_compute(request, earlier)
    except FeatureCacheUnavailableError as error:
        request.say(fallback_message(error))
        return {}


def fallback_message(error: FeatureCacheUnavailableError) -> str:
    """The warning of a run that continues without its feature cache."""
    return f"warning: features cannot be cached, the images are streamed instead: {error}"


def _get_or_compute(request: FeatureRequest, earlier: Sequence[str] | None) -> dict[str, CachedFeatures]:
    config = request.config
    if not request.phases:
        return {}
    precision = run_precision(config)
    keys = {
        depth: key_parts(config, request.manifest, depth, request.weights, precision)
        for depth in {phase.depth for phase in request.phases}
    }
    existing = _open_all(request, keys.values())
    costs: list[SplitCost] = []
    names: Sequence[str] = [phase.name for phase in request.phases]
    if earlier is not None and config.feature_cache == "auto":  # a resumed run keeps its choice: equal to the last bit
        names = earlier
    elif len(existing) < len(keys):
        costs = extract.measure_costs(config)
        names = _choose_phases(request, costs, existing)
    chosen = [phase for phase in request.phases if phase.name in names]
    needed = [keys[depth] for depth in sorted({phase.depth for phase in chosen})]
    if chosen and all(key["cut"] in existing for key in needed):
        request.say(f"feature cache: the features of {' and '.join(names)} exist")
    features = _wait_or_compute(request, needed, existing, costs, precision)
    return {phase.name: features[phase.depth] for phase in chosen}


def _open_all(request: FeatureRequest, keys: Iterable[KeyParts]) -> dict[int, CachedFeatures]:
    """The complete caches among those with these keys, by depth."""
    locations = {key["cut"]: cache_location(request.config.storage, key) for key in keys}
    opened = ((depth, open_features(location, request.manifest)) for depth, location in locations.items())
    return {depth: features for depth, features in opened if features}


def _choose_phases(request: FeatureRequest, costs: Sequence[SplitCost], existing: Collection[int]) -> Sequence[str]:
    """Names of the phases that train on cached features."""
    config = request.config
    for phase in request.phases:
        check_depth(config.backbone, len(costs) - 1, phase.depth)
    if config.feature_cache == "always":
        return [phase.name for phase in request.phases if costs[phase.depth].work > 0]
    rows = (len(request.manifest.rows("train")), len(request.manifest.rows("validation")))
    machines = extract.estimate_throughput(cache_root(config.storage))
    decision = decide_caching(request.phases, costs, rows, config.views, config.feature_cache_dtype, machines, existing)
    request.say(f"feature cache: {decision.reason}")
    return decision.phases


def _wait_or_compute(
    request: FeatureRequest,
    keys: Sequence[KeyParts],
    existing: Mapping[int, CachedFeatures],
    costs: Sequence[SplitCost],
    precision: str,
) -> dict[int, CachedFeatures]:
    """Compute the missing caches, or wait for the process that computes them -> features by depth.

    `costs` are empty where they are not measured yet.
    """
    features, reported_at = dict(existing), -math.inf
    while missing := [key for key in keys if key["cut"] not in features]:
        with _LeaseGroup(cache_location(request.config.storage, key) for key in missing) as leases:
            if not leases.held_by:
                costs = costs or extract.measure_costs(request.config)
                targets = [_target(request, key, costs) for key in missing]
                features |= _compute_missing(request, targets, leases, precision)
        if leases.held_by:
            if request.should_stop():
                raise StopRequested
            if time.monotonic() - reported_at > _WAIT_NOTE_S:
                reported_at = time.monotonic()
                request.say(f"feature cache: waiting, {leases.held_by}")
            time.sleep(_WAIT_S)
        features |= _open_all(request, missing)
    for key in keys:
        with contextlib.suppress(OSError):  # for the inventory only
            used = {"used_s": time.time(), "run": request.config.run_name}
            storage.write_json(storage.join(cache_location(request.config.storage, key), USED_FILE), used)
    return features


def _target(request: FeatureRequest, key: KeyParts, costs: Sequence[SplitCost]) -> CacheTarget:
    layout = ShardLayout.of(request.config, request.manifest, costs[key["cut"]].shape)
    return CacheTarget(cache_location(request.config.storage, key), key, layout)


def _compute_missing(
    request: FeatureRequest, targets: Sequence[CacheTarget], leases: _LeaseGroup, precision: str
) -> dict[int, CachedFeatures]:
    """Compute the missing shards of caches whose leases are held, and write the indexes.

    Returns:
        By depth the features that lack rows, since the files of these differ from the manifest. Only this run uses
        them: they have no index, so that the next run, or this one when resumed, computes incomplete shards again.
    """
    started, num_views = time.monotonic(), 0
    report = image_progress("computing the feature cache")

    def progress(done: int, total: int) -> None:
        nonlocal num_views
        num_views = done
        if request.should_stop():
            raise StopRequested
        leases.check()
        report(done, total)

    try:
        incomplete = extract.extract_features(
            request.config, request.manifest, targets, precision, progress, request.on_lost
        )
        lacking = {}
        for target, names in zip(targets, incomplete, strict=True):
            if files := _finalize(target, time.monotonic() - started, names):
                features = CachedFeatures.of(target.location, target.layout, request.manifest, files)
                lacking[target.depth] = features
    except LeaseLostError:  # the other process continues
        return {}
    except (FeatureCacheUnavailableError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _DISK_FULL:
            raise
        leases.close()  # first: a renewal would leave its files behind
        for target in targets:
            with contextlib.suppress(OSError):  # another process may write there now
                storage.delete_folder(target.location)
        raise FeatureCacheUnavailableError(str(error)) from error
    size = format_size(sum(target.layout.num_bytes for target in targets))
    request.say(f"feature cache: {num_views:,} views computed in {time.monotonic() - started:.0f} s, {size} written")
    if lacking:
        count = sum(map(len, incomplete))
        request.say(f"feature cache: {count:,} shards lack quarantined images; only this run uses them")
    return lacking


def _finalize(target: CacheTarget, seconds: float, incomplete: Mapping[ShardId, str]) -> dict[str, list[str]]:
    """Write the index of a complete cache, and delete duplicate and incomplete files -> {}.

    A cache with incomplete shards of this run has no index -> its files by split.
    """
    layout = target.layout
    existing = existing_shards(target.location, layout)
    names = {(split, shard): name for split, shard, name in existing}
    if missing_shards(layout, names):
        usable = {**incomplete, **names}
        # where another process has deleted shards, the cache is computed again
        return {} if missing_shards(layout, usable) else files_by_split(layout, usable)
    write_index(target.location, layout, target.key, names, seconds)
    replaced = [name for split, shard, name in existing if names[split, shard] != name]
    replaced += [name for _, _, name in existing_shards(target.location, layout, complete=False)]
    for name in replaced:
        storage.delete_file(storage.join(target.location, name))
    return {}


class _LeaseGroup(contextlib.ExitStack):
    """The leases of some caches, all or none, so that one of two processes with the same request computes them all."""

    def __init__(self, locations: Iterable[str]) -> None:
        super().__init__()
        self._locations = sorted(locations)  # in the same order in every process
        self.held_by = ""
        """Which process holds one of the leases; "" where this process holds all."""
        self._leases: list[Lease] = []

    def __enter__(self) -> _LeaseGroup:
        try:
            for location in self._locations:
                self._leases.append(self.enter_context(Lease.acquire(location)))
        except LeaseHeldError as error:
            self.held_by = str(error)
            self.close()
        except OSError as error:
            self.close()
            if isinstance(error, PermissionError) or error.errno in _DISK_FULL:
                raise FeatureCacheUnavailableError(str(error)) from error
            raise
        return self

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken over one of the leases."""
        for lease in self._leases:
            lease.check()
