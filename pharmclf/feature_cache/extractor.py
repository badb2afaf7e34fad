"""Computes the features of ranges of rows with the frozen part of the backbone, and writes them as shards."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.augment import augment_images, draw_augmentations
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import Block, encode_error, load_block
from pharmclf.feature_cache.row_ranges import CacheTarget, RowRange, row_ranges
from pharmclf.feature_cache.shards import FeatureCacheUnavailableError, ShardId, write_shard
from pharmclf.models.backbone_split import split_tensors
from pharmclf.models.devices import configure_devices_for, gpu_compute_capability

_VIEWS_PER_BATCH = 64  # of one forward pass


@dataclass(frozen=True)
class ExtractionPlan:
    """The work of one pass over the images."""

    config: RunConfig
    targets: Sequence[CacheTarget]
    """The caches."""
    missing: Sequence[Collection[ShardId]]
    """The missing shards of each target; no other is written."""
    rows: Mapping[str, NDArray[np.int64]]
    """Row numbers of the manifest by split."""
    precision: str
    """Of the computation."""

    @functools.cached_property
    def ranges(self) -> Sequence[RowRange]:
        """The rows that are computed."""
        return row_ranges([target.layout for target in self.targets], self.missing)

    def num_views(self, span: RowRange) -> int:
        """Views of all images of a range."""
        return span.count * self.targets[0].layout.section(span.section).views


@dataclass(frozen=True)
class RangeReport:
    """The result of one range."""

    num_views: int
    """Views that were computed."""
    lost: Sequence[tuple[int, str]]
    """Rows of the manifest whose files differ from it, with the reasons."""
    incomplete: Sequence[tuple[int, str, int, str]]
    """Shards that lack such rows: number of the target, split, number and file name of the shard."""

    @staticmethod
    def from_block(block: Block) -> RangeReport:
        """The report in the column `report` of a block."""
        return RangeReport(*json.loads(str(block["report"][0])))


def decode_range(plan: ExtractionPlan, number: int, files: Mapping[str, ImageSet], size: int = 0) -> Block:
    """Read the images of a range of the plan, whose number is in the column `id`.

    A block of fewer than `size` rows is padded with its last row.
    """
    span = plan.ranges[number]
    block = load_block(files[span.section].slice(span.first, span.count), plan.config.image_size)
    block["id"] = np.full(span.count, number)
    if span.count >= size:
        return block
    rows = np.minimum(np.arange(size), span.count - 1)
    return {name: column[rows] for name, column in block.items()}


class FeatureExtractor:
    """The frozen part of the backbone, loaded once, with one output for each target."""

    check: Callable[[], None] = staticmethod(lambda: None)
    """Called before each forward pass; an exception of it ends the work."""

    def __init__(self, plan: ExtractionPlan) -> None:
        self._plan, config = plan, plan.config
        with suppress_native_stderr():
            import keras
            import tensorflow as tf

            from pharmclf.models.backbones import build_backbone
            from pharmclf.models.fold_norm import FoldedNetwork

            configure_devices_for(config)
        self._error = ""
        keras.config.set_dtype_policy(plan.precision)
        try:
            backbone = build_backbone(config.backbone, config.image_size, config.weights)
        except ConfigError as error:  # Ray would report of a failed actor no more than that it died
            self._error = encode_error(error)
            return
        tensors = split_tensors(backbone)
        cuts = [tensors[target.depth] for target in plan.targets]
        prefix = FoldedNetwork(keras.Model(backbone.input, cuts), frozen=True)
        # a CPU's own float16 is slow in TensorFlow; from a GPU it halves the transfer
        on_device = "float32" if gpu_compute_capability() is None else config.feature_cache_dtype

        def forward(images: Any, transforms: Any) -> list[Any]:
            images = tf.cast(images, tf.float32)
            if transforms is not None:
                images = augment_images(images, transforms, config.augment, config.seed)
            outputs = tf.nest.flatten(prefix(images))  # Keras unpacks a list of one
            return [tf.cast(output, on_device) for output in outputs]

        self._forward = tf.function(forward, autograph=False)

    def __call__(self, block: Block) -> Block:
        """Compute a block of `decode_range`; the columns `report` and `error` of the result have one row."""
        span = self._plan.ranges[int(block["id"][0])]
        bad = block["bad"][: span.count]
        error, incomplete = self._error or str(block["error"][0]), []
        if not error:
            try:
                incomplete = self._write(span, block["image"][: span.count], bad != "")
            except (storage.StorageUnavailableError, FeatureCacheUnavailableError) as failure:
                error = encode_error(failure)
            except OSError as failure:  # a full disk, no right to write
                error = encode_error(FeatureCacheUnavailableError(failure))
        rows = self._plan.rows[span.section][span.first : span.last]
        lost = [(int(rows[place]), str(bad[place])) for place in np.flatnonzero(bad != "")]
        report = json.dumps([self._plan.num_views(span), lost, incomplete])
        return {"report": np.array([report]), "error": np.array([error])}

    def _write(
        self, span: RowRange, images: NDArray[np.uint8], bad: NDArray[np.bool_]
    ) -> list[tuple[int, str, int, str]]:
        """Compute a range, and write each shard as soon as it is full -> `RangeReport.incomplete`.

        `bad` (n,) are unusable images, which leave their shards incomplete.
        """
        if len(images) != span.count:
            raise RuntimeError(f"received {len(images)} images of {span}: Ray has divided a block")
        targets, views = self._plan.targets, self._plan.num_views(span) // span.count
        incomplete = []
        waiting: list[list[np.ndarray]] = [[] for _ in targets]
        position = [span.first] * len(targets)
        for outputs in self._compute_views(span, images, views):
            for number, (target, output) in enumerate(zip(targets, outputs, strict=True)):
                waiting[number].append(output)
                section = target.layout.section(span.section)
                while position[number] < span.last:
                    first = position[number]
                    shard = first // section.rows_per_shard
                    end = section.row_range(shard)[1]
                    wanted = (end - first) * views
                    if sum(map(len, waiting[number])) < wanted:
                        break
                    joined = np.concatenate(waiting[number])
                    waiting[number] = [joined[wanted:]]
                    if (span.section, shard) in self._plan.missing[number]:  # else another target needs these rows
                        values = joined[:wanted].reshape(-1, views, *target.layout.shape)
                        unusable = bad[first - span.first : end - span.first]
                        name = _write_values(target, span.section, shard, values, unusable)
                        if unusable.any():
                            incomplete.append((number, span.section, shard, name))
                    position[number] = end
        return incomplete

    def _compute_views(
        self, span: RowRange, images: NDArray[np.uint8], views: int
    ) -> Iterator[list[NDArray[np.floating]]]:
        """The outputs for every view of a range, row by row and view by view, a batch at a time."""
        config, rows = self._plan.config, self._plan.rows[span.section][span.first : span.last]
        transforms = np.stack(
            [draw_augmentations(config.augment, config.image_size, config.seed, view, rows) for view in range(views)],
            axis=1,
        )
        transforms = transforms.reshape(-1, transforms.shape[-1])
        for first in range(0, len(images) * views, _VIEWS_PER_BATCH):
            self.check()
            last = min(first + _VIEWS_PER_BATCH, len(images) * views)
            places = np.minimum(np.arange(first, first + _VIEWS_PER_BATCH), last - 1)  # one shape, one graph
            moved = transforms[places] if span.section == "train" else None
            outputs = self._forward(images[places // views], moved)
            with np.errstate(over="ignore"):  # infinite values are reported when they are written
                yield [output.numpy()[: last - first].astype(config.feature_cache_dtype) for output in outputs]


def _write_values(
    target: CacheTarget, split: str, shard: int, values: NDArray[np.floating], unusable: NDArray[np.bool_]
) -> str:
    values[unusable] = np.nan
    if not np.isfinite(values[~unusable]).all():
        raise FeatureCacheUnavailableError(
            f"the features at {target.depth} blocks from the top exceed the range of {target.layout.dtype}; "
            "--feature-cache-dtype float32 may hold them"
        )
    return write_shard(target.location, split, shard, values)
