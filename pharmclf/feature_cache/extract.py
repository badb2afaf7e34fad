"""Computes activations, shard by shard: the stream of images through a pool of actors that hold the frozen prefix.

A run that trains in the calling process computes them there as well.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import BackboneName, RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.augment import apply_transforms, projective_transforms
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.ray_loader import configure_dataset, encode_error, load_block, prefetch, raise_block_error
from pharmclf.feature_cache.cache_policy import ThroughputEstimate
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.feature_cache.row_ranges import CacheTarget, RowRange, row_ranges
from pharmclf.feature_cache.shards import FeatureCacheUnavailableError, existing_shards, missing_shards, write_shard
from pharmclf.models.backbone_split import SplitCost, split_costs, split_tensors
from pharmclf.models.devices import configure_devices, configure_devices_for, gpu_compute_capability

_IMAGES_PER_BATCH = 64  # of one forward pass
_CHECK_INTERVAL_S = 0.1


def extract_features(
    config: RunConfig,
    manifest: Manifest,
    targets: Sequence[CacheTarget],
    precision: str,
    progress: Callable[[int, int], None],
    lost: Callable[[Mapping[int, str]], None],
) -> list[dict[tuple[str, int], str]]:
    """Compute the missing shards of some targets in one pass over the images, and write them.

    Args:
        config: the run.
        manifest: with splits.
        targets: whose shards are missing.
        precision: float32, mixed_float16 or mixed_bfloat16.
        progress: called with (pictures done, pictures), several times a second; what it raises ends the pass, and what
            is written stays.
        lost: is given rows of the manifest whose images are not what it says, with the reasons.

    Returns:
        For each target the names of the shards that such rows leave incomplete, by section and number.

    Raises:
        ConfigError: weights that cannot be had, or more blocks than there are.
        FeatureCacheUnavailableError: the storage is full, or takes no more; or a value is beyond the number format.
        PermissionError, StorageUnavailableError: the storage gives nothing at all.
    """
    layouts = [target.layout for target in targets]
    missing = []
    for target in targets:
        standing = {(section, shard): name for section, shard, name in existing_shards(target.location, target.layout)}
        missing.append(missing_shards(target.layout, standing))
    todo = row_ranges(layouts, missing)
    views = {section.name: section.views for section in layouts[0].sections}
    total = sum((span.last - span.first) * views[span.section] for span in todo)
    rows = {name: manifest.rows(name) for name in views}
    files = {name: ImageSet.of(manifest).select(rows[name]) for name in views}
    done = 0
    incomplete: list[dict[tuple[str, int], str]] = [{} for _ in targets]

    def check() -> None:
        progress(done, total)

    check()
    if not todo:
        return incomplete
    with suppress_native_stderr():
        for result in _results(config, todo, files, rows, targets, missing, precision, check):
            raise_block_error(result, FeatureCacheUnavailableError, ConfigError)
            bad, written = json.loads(str(result["lost"][0]))
            if bad:
                lost(dict(bad))
            for number, section, shard, name in written:
                incomplete[number][section, shard] = name
            done += int(result["pictures"].sum())
            progress(done, total)
    return incomplete


def _results(
    config: RunConfig,
    todo: Sequence[RowRange],
    files: Mapping[str, ImageSet],
    rows: Mapping[str, NDArray[np.int64]],
    targets: Sequence[CacheTarget],
    missing: Sequence[Sequence[tuple[str, int]]],
    precision: str,
    check: Callable[[], None],
) -> Iterator[dict[str, np.ndarray]]:
    """The report on each computed span: images done, rows lost, shards that lack them, or an error.

    `check` is called again and again.
    """
    arguments = (config, targets, [set(shards) for shards in missing], rows, precision)
    if config.worker_range == (0, 0):  # this process is the one that trains: no other needs TensorFlow
        prefix = _FeatureExtractor(*arguments)
        prefix.check = check
        yield from map(
            prefix, prefetch(iter(todo), lambda span: _decode_range(span, files, config.image_size), depth=1)
        )
        return
    shared = ray.put(dict(files))
    size = max(span.last - span.first for span in todo)

    def decode(block: dict[str, np.ndarray]) -> dict[str, Any]:
        return _pad_block(_decode_range(_range_of(block), ray.get(shared), config.image_size), size)

    items = [vars(span) for span in todo]
    actors, gpus = _plan_pool(use_gpus=config.accelerator != "cpu")
    source = configure_dataset(ray.data.from_items(items, override_num_blocks=len(items)), None)
    computed = source.map_batches(decode, batch_size=None, num_cpus=0.5).map_batches(
        _FeatureExtractor,
        fn_constructor_args=arguments,
        batch_size=size,  # that of every block: Ray wants a number where there are GPUs
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
        num_cpus=0,  # two passes at once would otherwise hold all CPUs, and wait for ever for one to decode with
        num_gpus=gpus,
    )
    found = prefetch(computed.iter_batches(batch_size=None, batch_format="numpy"), lambda block: block, depth=1)
    with contextlib.closing(found):
        found.start()
        while True:
            while not found.ready:  # a span takes minutes where processors are slow
                check()
                time.sleep(_CHECK_INTERVAL_S)
            if (block := next(found, None)) is None:
                return
            yield block


def _decode_range(span: RowRange, files: Mapping[str, ImageSet], image_size: int) -> dict[str, np.ndarray]:
    """The images of a span, as a block that carries the span with it."""
    images = load_block(files[span.section].slice(span.first, span.last - span.first), image_size)
    return images | {name: np.full(span.last - span.first, value) for name, value in vars(span).items()}


def _pad_block(block: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """A block with its last row again and again, up to so many rows; a span knows which are its own."""
    return {name: np.concatenate([column, np.repeat(column[-1:], size - len(column), axis=0)])
            for name, column in block.items()}  # fmt: skip


def _range_of(block: Mapping[str, np.ndarray]) -> RowRange:
    return RowRange(str(block["section"][0]), int(block["first"][0]), int(block["last"][0]))


class _FeatureExtractor:
    """The frozen part of the backbone, loaded once, with one output for each target."""

    check: Callable[[], None] = staticmethod(lambda: None)
    """Called before each forward pass; what it raises ends the work."""

    def __init__(
        self,
        config: RunConfig,
        targets: Sequence[CacheTarget],
        missing: Sequence[Collection[tuple[str, int]]],
        rows: Mapping[str, NDArray[np.int64]],
        precision: str,
    ) -> None:
        with suppress_native_stderr():
            import keras
            import tensorflow as tf

            from pharmclf.models.backbones import build_backbone

            configure_devices_for(config)
        self._refusal = ""
        keras.config.set_dtype_policy(precision)
        try:
            backbone = build_backbone(config.backbone, config.image_size, config.weights)
        except ConfigError as error:  # of an actor that dies here Ray would tell only that it died
            self._refusal = encode_error(error)
            return
        tensors = split_tensors(backbone)
        prefix = keras.Model(backbone.input, [tensors[target.depth] for target in targets])
        # a CPU's own float16 is slow in TensorFlow; from a GPU half as much is to be fetched
        on_device = "float32" if gpu_compute_capability() is None else config.activations_dtype
        self._config, self._targets, self._missing, self._rows = config, targets, missing, rows

        def forward(images: Any, transforms: Any) -> list[Any]:
            images = tf.cast(images, tf.float32)
            if transforms is not None:
                images = apply_transforms(images, transforms, config.augment.fill)
            outputs = tf.nest.flatten(prefix(images, training=False))  # Keras unpacks a list of one
            return [tf.cast(output, on_device) for output in outputs]

        self._forward = tf.function(forward, autograph=False)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        span = _range_of(block)
        error, pictures = self._refusal or str(block["error"][0]), 0
        bad = block["bad"][: span.last - span.first]
        written: list[tuple[int, str, int, str]] = []
        if not error:
            try:
                pictures = self._write(span, block["image"][: span.last - span.first], bad != "", written)
            except (storage.StorageUnavailableError, FeatureCacheUnavailableError) as failure:
                error = encode_error(failure)
            except OSError as failure:  # a full disk, no right to write
                error = encode_error(FeatureCacheUnavailableError(failure))
        lost = [] if error else [(int(self._rows[span.section][span.first + at]), str(bad[at]))
                                 for at in np.flatnonzero(bad != "")]  # fmt: skip
        return {
            "pictures": np.array([pictures]),
            "error": np.array([error]),
            "lost": np.array([json.dumps([lost, written])]),
        }

    def _write(
        self, span: RowRange, images: np.ndarray, bad: NDArray[np.bool_], incomplete: list[tuple[int, str, int, str]]
    ) -> int:
        """Compute a span and write each shard as soon as it is full -> pictures computed.

        Args:
            span: the rows.
            images: (n, S, S, 3) uint8 of them.
            bad: (n,) those that are not to be used, and leave their shards incomplete.
            incomplete: takes number of the target, section, number and name of such a shard.
        """
        if len(images) != span.last - span.first:
            raise RuntimeError(f"received {len(images)} images of {span}: Ray has divided a block")
        views = self._targets[0].layout.section(span.section).views
        outputs = self._compute_images(span, images, views)
        waiting: list[list[np.ndarray]] = [[] for _ in self._targets]
        at = [span.first] * len(self._targets)
        for parts in outputs:
            for number, (target, part) in enumerate(zip(self._targets, parts, strict=True)):
                waiting[number].append(part)
                section = target.layout.section(span.section)
                while at[number] < span.last:
                    shard = at[number] // section.rows_per_shard
                    end = section.row_range(shard)[1]
                    wanted = (end - at[number]) * views
                    if sum(map(len, waiting[number])) < wanted:
                        break
                    joined = np.concatenate(waiting[number])
                    waiting[number] = [joined[wanted:]]
                    if (span.section, shard) in self._missing[number]:  # another target's may be
                        values = joined[:wanted].reshape(-1, views, *target.layout.shape)
                        gone = bad[at[number] - span.first : end - span.first]
                        name = self._store(target, span.section, shard, values, gone)
                        if gone.any():
                            incomplete.append((number, span.section, shard, name))
                    at[number] = end
        return len(images) * views

    def _compute_images(self, span: RowRange, images: np.ndarray, views: int) -> Iterator[list[np.ndarray]]:
        """The outputs for every picture of a span, row by row and view by view, some pictures at a time."""
        config, rows = self._config, self._rows[span.section][span.first : span.last]
        transforms = np.stack(
            [
                projective_transforms(config.augment, config.image_size, config.seed, view, rows)
                for view in range(views)
            ],
            axis=1,
        ).reshape(-1, 8)
        for first in range(0, len(images) * views, _IMAGES_PER_BATCH):
            self.check()
            last = min(first + _IMAGES_PER_BATCH, len(images) * views)
            places = np.minimum(np.arange(first, first + _IMAGES_PER_BATCH), last - 1)  # one shape, one graph
            moved = transforms[places] if span.section == "train" else None
            outputs = self._forward(images[places // views], moved)
            with np.errstate(over="ignore"):  # what becomes infinite is named when it is written
                yield [output.numpy()[: last - first].astype(config.activations_dtype) for output in outputs]

    def _store(self, target: CacheTarget, section: str, shard: int, values: np.ndarray, gone: NDArray[np.bool_]) -> str:
        values[gone] = np.nan
        if not np.isfinite(values[~gone]).all():
            raise FeatureCacheUnavailableError(
                f"the activations at {target.depth} blocks from the top are beyond the range of {target.layout.dtype}; "
                "--activations-dtype float32 may hold them"
            )
        return write_shard(target.location, section, shard, values)


def _plan_pool(*, use_gpus: bool) -> tuple[int, int]:
    """Actors, and GPUs of each: one for every GPU, without any one for every node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if use_gpus else 0
    return (gpus, 1) if gpus else (len(nodes), 0)


def measure_costs(config: RunConfig) -> list[SplitCost]:
    """The cost of every cut of a run's backbone; where others train, found in a process that holds no GPU.

    Raises:
        ConfigError: an image size that the backbone cannot take.
    """
    here = config.worker_range == (0, 0)
    if here:
        configure_devices_for(config)  # this process will train, too
    return _measure_costs(config.backbone, config.image_size, here=here)


@functools.lru_cache
def _measure_costs(backbone: BackboneName, image_size: int, *, here: bool) -> list[SplitCost]:
    if here:
        return _build_and_measure(backbone, image_size)
    gpus = bool(ray.cluster_resources().get("GPU"))
    # without GPUs the process stays for the actor, which needs TensorFlow as well
    task = ray.remote(num_cpus=0.5, max_calls=1 if gpus else 0)(_measure_costs_without_gpu)
    try:
        return ray.get(task.remote(backbone, image_size))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _measure_costs_without_gpu(backbone: BackboneName, image_size: int) -> list[SplitCost]:
    with suppress_native_stderr():
        configure_devices(deterministic=False, gpus=False)
    return _build_and_measure(backbone, image_size)


def _build_and_measure(backbone: BackboneName, image_size: int) -> list[SplitCost]:
    with suppress_native_stderr():
        from pharmclf.models.backbones import build_backbone

        return split_costs(build_backbone(backbone, image_size, "none"))


def estimate_throughput(location: str) -> ThroughputEstimate:
    """Rough figures of the cluster, and the space for activations: of the disk, or of a node's cache of remote ones."""
    resources = ray.cluster_resources()
    remote = storage.is_remote(location)
    free = LocalCache().limit_bytes if remote else shutil.disk_usage(_nearest_existing_parent(Path(location))).free
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = resources.get("GPU", 0.0)
    return ThroughputEstimate.estimate(resources.get("CPU", 1.0), gpus, nodes, math.floor(free), remote=remote)


def _nearest_existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
