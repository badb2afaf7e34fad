"""Trains a run: its context, what `auto` becomes, its feature cache, and its workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.console import Console
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_FAILED, EXIT_OK
from pharmclf.core.events import Callback, FeatureCacheReady, ImagesQuarantined, Note, RunCallback
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.units import format_size
from pharmclf.crop import crop_images
from pharmclf.data.batch_sampler import effective_batch_size
from pharmclf.data.image_cache import choose_image_cache
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE, prepare_manifest
from pharmclf.data.quarantine import OnLost, Quarantine
from pharmclf.distributed.cluster import connect, device_kind, resolve_workers, wait_for_workers
from pharmclf.distributed.controller import train_on_workers
from pharmclf.distributed.microbatch_search import resolve_microbatches
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, fallback_message, get_or_compute
from pharmclf.feature_cache.shards import (
    FeatureCacheCorruptedError,
    FeatureCacheUnavailableError,
    delete_corrupted,
)
from pharmclf.models.devices import with_precision
from pharmclf.models.precision import run_precision
from pharmclf.runs.record import RunRecord, resolve_weights_path, run_fingerprints
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import build_phases
from pharmclf.training.train_state import TrainResult

_MAX_REPAIRS = 2  # times that a run computes a corrupted feature cache again


def build_training_context(
    config: RunConfig, folder: str, manifest: Manifest | None = None, fingerprints: dict[str, Any] | None = None
) -> TrainingContext:
    """What the loop needs to train on a data set.

    Args:
        config: the run.
        folder: the run's folder.
        manifest: with splits; None: made here, and written to the folder.
        fingerprints: of `run_fingerprints`, where they are known already.
    """
    manifest = manifest or prepare_manifest(config, folder)
    fingerprints = fingerprints or run_fingerprints(config, manifest)
    train_rows, validation_rows = manifest.rows("train"), manifest.rows("validation")
    batch_size = effective_batch_size(config.batch_size, len(train_rows), len(validation_rows))
    config = dataclasses.replace(config, batch_size=batch_size)
    labels = {name: number for number, name in enumerate(manifest.class_names)}
    rows = config.microbatch_rows or 0  # one that is found comes later
    table = manifest.table
    return TrainingContext(
        config=config,
        folder=folder,
        class_names=manifest.class_names,
        images=ImageSet.of(manifest),
        labels=table["label"].map(labels).fillna(-1).to_numpy(np.int64),
        train_rows=train_rows,
        validation_rows=validation_rows,
        fingerprints=fingerprints,
        microbatches={phase.name: rows for phase in build_phases(config)} if rows else {},
    )


def resolve_auto_settings(job: TrainingContext, console: RunCallback, record: RunRecord) -> TrainingContext:
    """Decide the precision and the micro-batches, once for a run and its restarts; they are added to its record.

    Raises:
        StopRequested: a stop was requested.
    """
    if job.config.xla and (job.config.accelerator == "cpu" or device_kind() == "CPU"):
        text = "on a CPU it makes a step 10 to 14 times as long (measured on two cores). Leave it out"
        console.on_event(Note(text=f"warning: --xla: {text}"))
    precision = record.resolved.precision
    if precision is None:
        if job.config.worker_range[1]:
            wait_for_workers(job.config, console)
        precision = run_precision(job.config)
    job = dataclasses.replace(job, config=with_precision(job.config, precision))
    microbatch = resolve_microbatches(job, console, record.resolved.microbatch)
    record.resolved = dataclasses.replace(record.resolved, precision=precision, microbatch=microbatch)
    return dataclasses.replace(job, microbatches=microbatch["rows"])


def train_with_feature_cache(
    job: TrainingContext, manifest: Manifest, console: Console, record: RunRecord, *, share: float = 1.0
) -> TrainResult:
    """Find or compute the feature cache, and train; a cache that gets lost is computed again, and training resumes.

    Args:
        job: without a feature cache.
        manifest: with splits.
        console: shows what happens.
        record: of the run; it names the phases that trained on cached features before an interruption, and takes those
            that do so now.
        share: of the cluster that it may use, 0..1.

    Returns:
        The result of `train_on_workers`.

    Raises:
        As `train_on_workers` and `get_or_compute`.
    """
    checkpoints = list_checkpoints(job.checkpoints)
    phase = checkpoints[-1].position.phase if checkpoints else 0
    request = feature_request(job, manifest, phase, console.say, console.should_stop, quarantine_reporter(console))
    repairs = 0
    while True:
        earlier = record.resolved.cached_phases
        job = dataclasses.replace(job, activations=get_or_compute(request, earlier=earlier))
        ended = (earlier or ()) if phase else ()
        _record_cached_phases(job, record, console, sorted({*job.activations, *ended}))
        try:
            return train_on_workers(_with_image_cache(job, phase, console.say), console, share=share)
        except FeatureCacheCorruptedError as error:
            if repairs == _MAX_REPAIRS:
                raise
            repairs += 1
            console.say(f"warning: {error}; it is computed again, and training resumes from the newest checkpoint")
            delete_corrupted(job.activations.values())
        except FeatureCacheUnavailableError as error:
            console.say(fallback_message(error))
            job = dataclasses.replace(job, activations={})
            _record_cached_phases(job, record, console, [])  # a resumed run continues in the same way
            return train_on_workers(_with_image_cache(job, phase, console.say), console, share=share)


def _with_image_cache(job: TrainingContext, first: int, say: Say) -> TrainingContext:
    """Decide on the cache of decoded images, if a phase from number `first` on streams its images."""
    phases = [phase for phase in build_phases(job.config) if phase.number >= first]
    if all(phase.name in job.activations for phase in phases):
        return job
    rows = np.concatenate([job.train_rows, job.validation_rows])
    cache, text = choose_image_cache(job.config.image_cache, job.images, rows, job.config.image_size)
    if text:
        say(text)
    return dataclasses.replace(job, image_cache=cache)


def _record_cached_phases(
    job: TrainingContext, record: RunRecord, console: Console, cached_phases: Sequence[str]
) -> None:
    record.resolved = dataclasses.replace(record.resolved, cached_phases=tuple(cached_phases))
    record.write(job.folder)
    console.on_event(FeatureCacheReady(phases=tuple(sorted(job.activations))))


def feature_request(
    job: TrainingContext, manifest: Manifest, first: int, say: Say, stop_requested: Callable[[], bool], lost: OnLost
) -> FeatureRequest:
    """Build the request for the features of a run's phases.

    Args:
        job: the training.
        manifest: with splits.
        first: number of the first phase that needs features.
        say: takes lines for the console.
        stop_requested: whether to give up.
        lost: takes the images that differ from the manifest.
    """
    # features are those of one image size
    phases = [phase for phase in build_phases(job.config) if phase.number >= first and not phase.image_sizes]
    demands = [PhaseDemand(phase.name, phase.unfreeze_blocks, phase.settings.epochs) for phase in phases]
    return FeatureRequest(job.config, manifest, job.fingerprints["weights"], demands, say, stop_requested, lost)


def quarantine_reporter(observer: Callback) -> OnLost:
    """Make a function that reports images which the feature extraction has lost as an event of the run."""

    def lost(reasons: Mapping[int, str]) -> None:
        observer.on_event(ImagesQuarantined(reasons=dict(reasons)))

    return lost


def precompute_features(config: RunConfig, folder: str, manifest: Manifest, say: Say) -> int:
    """Compute the feature cache of a run before it begins.

    Returns:
        The exit code: 0; 1 if the features cannot be cached; 130 and 143 after a signal, with the computed shards kept.

    Raises:
        ConfigError: bad input.
    """
    config = dataclasses.replace(resolve_weights_path(config), feature_cache="always")
    with GracefulShutdown() as stop:
        config, _ = resolve_workers(config)
        manifest = crop_images(config, manifest)
        connect(allow_open=config.allow_unauthenticated_cluster)
        quarantine = Quarantine(manifest, config.max_invalid_share, say, storage.join(folder, QUARANTINE_FILE))

        def stopped() -> bool:
            return stop.received is not None or quarantine.exceeds_limit

        job = build_training_context(config, folder, manifest)
        try:
            caches = get_or_compute(feature_request(job, manifest, 0, say, stopped, quarantine.add))
        except StopRequested:
            quarantine.check()
            return stop.exit_code
    for phase, cache in caches.items():
        say(f"{phase}: {cache.location}, {format_size(cache.layout.num_bytes)}")
    return EXIT_OK if caches else EXIT_FAILED
