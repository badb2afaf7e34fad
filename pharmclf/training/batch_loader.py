"""Batches of a phase on the device, from streamed images or from cached features, in the order of the same plan.

A row whose image does not match the manifest keeps its place in the batch, with mask 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from pharmclf.core.events import Callback, ImagesQuarantined, Note
from pharmclf.data.augment import draw_augmentations, identity_transforms, resize_batch
from pharmclf.data.batch_sampler import PADDING, BatchPlan, BatchSlice, view_index
from pharmclf.data.prefetch import Prefetcher, prefetch
from pharmclf.data.ray_loader import load_batches
from pharmclf.feature_cache.reader import FeatureReader
from pharmclf.feature_cache.shards import missing_rows
from pharmclf.models.devices import gpu_compute_capability
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Phase
from pharmclf.training.train_step import Batch


def device_batches(
    job: TrainingContext, phase: Phase, plan: BatchPlan, first: int, callback: Callback | None = None
) -> Prefetcher:
    """Batches of a phase, prefetched to the device.

    Args:
        plan: of the phase, for this worker.
        callback: handles `ImagesQuarantined` and `Note`, in a thread; for cached features, at extraction.
    """
    config = job.config
    cache = job.activations.get(phase.name)
    if cache is None:
        inputs = load_batches(
            plan,
            job.images,
            config.image_size,
            first=first,
            num_cpus=job.loader_cpus,
            cache=job.image_cache,
            say=lambda text: callback.on_event(Note(text=text)) if callback else None,
        )
    else:
        inputs = _cached_batches(FeatureReader(cache), plan, first, config.views)
    numbered = ((plan.step(first + offset), *batch) for offset, batch in enumerate(inputs))
    class_weights = _class_weights(job)

    def to_device(item: tuple[BatchSlice, np.ndarray, np.ndarray]) -> Batch:
        step, inputs, bad = item
        lost = np.flatnonzero(bad != "")
        if callback and len(lost) and cache is None:
            reasons = dict(zip(step.rows[lost].tolist(), bad[lost].tolist(), strict=True))
            callback.on_event(ImagesQuarantined(reasons=reasons))
        mask = (step.rows != PADDING).astype(np.float32)
        mask[lost] = 0.0
        labels = np.where(step.rows != PADDING, job.labels[step.rows], 0)
        transforms = identity_transforms(len(step.rows))
        if step.training and cache is None:
            side = phase.image_sizes[step.epoch] if phase.image_sizes else config.image_size
            inputs = resize_batch(inputs, side)
            view = view_index(plan.first_epoch + step.epoch, config.views)
            transforms = draw_augmentations(config.augment, side, config.seed, view, step.rows)
        weights = mask * (class_weights[labels] if step.training else np.float32(1.0))
        ordinal = (plan.first_epoch + step.epoch) * plan.train_steps + step.number
        return Batch(
            tf.constant(inputs),
            tf.constant(transforms),
            tf.constant(labels, tf.int64),
            tf.constant(mask),
            tf.constant(weights, tf.float32),
            tf.constant(step.count, tf.float32),
            tf.constant(ordinal, tf.int64),
        )

    return prefetch(numbered, to_device)


def _cached_batches(
    reader: FeatureReader, plan: BatchPlan, first: int, views: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cached features of each step of a plan; zeros and a reason for rows that have none."""
    # float16 is slow on a CPU; a GPU gets half the bytes
    widen = gpu_compute_capability() is None
    for index in range(first, plan.num_steps):
        step = plan.step(index)
        section, view = "validation", 0
        if step.training:
            section, view = "train", view_index(plan.first_epoch + step.epoch, views)
        values = reader.read(section, step.rows, view)
        lacking = missing_rows(values)
        values[lacking] = 0
        yield values.astype(np.float32) if widen else values, np.where(lacking, "not kept", "")


def _class_weights(job: TrainingContext) -> np.ndarray:
    """(classes,) float32 weight of a training row of each class."""
    num_classes = len(job.class_names)
    if job.config.optimizer.class_weights == "off":
        return np.ones(num_classes, np.float32)
    counts = np.bincount(job.labels[job.train_rows], minlength=num_classes)
    return np.asarray(counts.sum() / (num_classes * np.maximum(counts, 1)), np.float32)
