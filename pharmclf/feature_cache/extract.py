"""Runs feature extraction: streams images through a pool of Ray actors that hold the frozen part of the backbone.

A run that trains in the calling process computes its features there as well.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import ray
import ray.data

from pharmclf import storage
from pharmclf.config import BackboneName, RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.usual_times import LOAD_MODEL_S
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prefetch import prefetch
from pharmclf.data.quarantine import OnLost
from pharmclf.data.ray_loader import Block, configure_dataset, raise_block_error
from pharmclf.feature_cache.cache_policy import ThroughputEstimate
from pharmclf.feature_cache.extractor import ExtractionPlan, FeatureExtractor, RangeReport, decode_range
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.feature_cache.row_ranges import CacheTarget
from pharmclf.feature_cache.shards import FeatureCacheUnavailableError, ShardId, existing_shards, missing_shards
from pharmclf.models.backbone_split import SplitCost, split_costs
from pharmclf.models.devices import configure_devices, configure_devices_for

_CHECK_INTERVAL_S = 0.1


def extract_features(
    config: RunConfig,
    manifest: Manifest,
    targets: Sequence[CacheTarget],
    precision: str,
    progress: Callable[[int, int], None],
    on_lost: OnLost,
) -> list[dict[ShardId, str]]:
    """Compute the missing shards of some targets in one pass over the images, and write them.

    Args:
        manifest: with splits.
        precision: float32, mixed_float16 or mixed_bfloat16.
        progress: called with (views done, views) several times a second; an exception of it ends the pass, and written
            shards remain.
        on_lost: called with rows of the manifest whose files differ from it, and the reasons.

    Returns:
        For each target the file names of the shards that such rows leave incomplete.

    Raises:
        ConfigError: weights that cannot be loaded, or more blocks than the backbone has.
        FeatureCacheUnavailableError: the storage is full or read-only, or a value exceeds the number format.
        PermissionError, StorageUnavailableError: the images cannot be read.
    """
    missing = []
    for target in targets:
        existing = {(split, shard): name for split, shard, name in existing_shards(target.location, target.layout)}
        missing.append(set(missing_shards(target.layout, existing)))
    rows = {section.name: manifest.cached_rows(section.name) for section in targets[0].layout.sections}
    plan = ExtractionPlan(config, targets, missing, rows, precision)
    files = {split: ImageSet.of(manifest).select(rows[split]) for split in rows}
    done, total = 0, sum(map(plan.num_views, plan.ranges))
    incomplete: list[dict[ShardId, str]] = [{} for _ in targets]

    def check() -> None:
        progress(done, total)

    check()
    with suppress_native_stderr():
        for block in _compute_ranges(plan, files, check) if plan.ranges else ():
            report = RangeReport.from_block(raise_block_error(block, FeatureCacheUnavailableError, ConfigError))
            if report.lost:
                on_lost(dict(report.lost))
            for number, split, shard, name in report.incomplete:
                incomplete[number][split, shard] = name
            done += report.num_views
            check()
    return incomplete


def _compute_ranges(plan: ExtractionPlan, files: Mapping[str, ImageSet], check: Callable[[], None]) -> Iterator[Block]:
    """Yield the result of `FeatureExtractor` for each range; `check` is called several times a second."""
    ranges = plan.ranges
    if plan.config.worker_range == (0, 0):  # this process trains: no other needs TensorFlow
        extractor = FeatureExtractor(plan)
        extractor.check = check
        numbers = iter(range(len(ranges)))
        with contextlib.closing(prefetch(numbers, lambda number: decode_range(plan, number, files), depth=1)) as blocks:
            yield from map(extractor, blocks)
        return
    shared = ray.put(dict(files))
    size = max(span.count for span in ranges)

    def decode(block: Block) -> Block:
        return decode_range(plan, int(block["id"][0]), ray.get(shared), size)

    actors, gpus = _plan_pool(use_gpus=plan.config.accelerator != "cpu")
    source = configure_dataset(ray.data.range(len(ranges), override_num_blocks=len(ranges)), None)
    computed = source.map_batches(decode, batch_size=None, num_cpus=0.5).map_batches(
        FeatureExtractor,
        fn_constructor_args=(plan,),
        batch_size=size,  # that of every block: Ray needs a number where there are GPUs
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(ranges))),
        num_cpus=0,  # two passes at once would otherwise hold all CPUs, and wait forever for one to decode with
        num_gpus=gpus,
    )
    results = prefetch(computed.iter_batches(batch_size=None, batch_format="numpy"), lambda block: block, depth=1)
    with contextlib.closing(results):
        results.start()
        while True:
            while not results.ready:  # a range takes minutes where processors are slow
                check()
                time.sleep(_CHECK_INTERVAL_S)
            if (block := next(results, None)) is None:
                return
            yield block


def _plan_pool(*, use_gpus: bool) -> tuple[int, int]:
    """Number of actors, and GPUs of each: one actor for every GPU, or for every node of a cluster without GPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if use_gpus else 0
    return (gpus, 1) if gpus else (len(nodes), 0)


def measure_costs(config: RunConfig) -> list[SplitCost]:
    """The cost of every cut of a run's backbone; unless this process trains, found in another that holds no GPU.

    Raises:
        ConfigError: an image size that the backbone does not support.
    """
    is_local = config.worker_range == (0, 0)
    if is_local:
        configure_devices_for(config)
    return _measure_costs(config.backbone, config.image_size, is_local=is_local)


@functools.lru_cache
def _measure_costs(backbone: BackboneName, image_size: int, *, is_local: bool) -> list[SplitCost]:
    if is_local:
        return _build_and_measure(backbone, image_size)

    def measure_without_gpu() -> list[SplitCost]:
        with suppress_native_stderr():
            configure_devices(deterministic=False, gpus=False)
        return _build_and_measure(backbone, image_size)

    has_gpus = bool(ray.cluster_resources().get("GPU"))
    # without GPUs the process is reused for the actor, which needs TensorFlow as well
    task = ray.remote(num_cpus=0.5, max_calls=1 if has_gpus else 0)(measure_without_gpu)
    try:
        with show_activity(f"measuring {backbone}, for the feature cache", LOAD_MODEL_S):
            costs: list[SplitCost] = ray.get(task.remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    return costs


def _build_and_measure(backbone: BackboneName, image_size: int) -> list[SplitCost]:
    with suppress_native_stderr():
        from pharmclf.models.backbones import build_backbone

        return split_costs(build_backbone(backbone, image_size, "none"))


def estimate_throughput(location: str) -> ThroughputEstimate:
    """Rough figures of the cluster, and the space for caches: of the disk, or of a node's cache of remote shards."""
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    remote = storage.is_remote(location)
    free = LocalCache().limit_bytes if remote else shutil.disk_usage(storage.nearest_existing(location)).free
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    return ThroughputEstimate(
        # a core: measured with both backbones; a GPU: published for ResNet50 on a small one
        work_per_s=gpus * 5e12 if gpus else cpus * 30e9,
        decoded_per_s=cpus * 300,
        bytes_per_s=nodes * (100e6 if remote else 500e6),
        free_bytes=free,
    )
