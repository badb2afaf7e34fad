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
from pharmclf.data.batch_sampler import effective_batch_size
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import prepare_manifest
from pharmclf.data.quarantine import QUARANTINED
from pharmclf.distributed.controller import train_on_workers, wait_for_workers
from pharmclf.distributed.microbatch_search import resolve_microbatches
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, delete_corrupted, fallback_message, get_or_compute
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError, FeatureCacheUnavailableError
from pharmclf.models.devices import with_precision
from pharmclf.models.precision import run_precision
from pharmclf.runs.record import RUN_FILE, run_fingerprints
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.context import Callback, TrainingContext
from pharmclf.training.phases import build_phases

Lost = Callable[[Mapping[int, str]], None]
"""Takes rows of the manifest whose images are not what it says, with the reasons."""
_MAX_REPAIRS = 2  # times that damaged activations are mended within a run


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


def resolve_auto_settings(job: TrainingContext, console: Callback, record: dict[str, Any]) -> TrainingContext:
    """The job with what is decided once for a run, which goes into its record.

    Raises:
        StopRequested: a stop was requested.
    """
    if "precision" not in record:
        if job.config.worker_range[1]:
            wait_for_workers(job.config, console)
        record["precision"] = run_precision(job.config)
    job = dataclasses.replace(job, config=with_precision(job.config, record["precision"]))
    fitted = resolve_microbatches(job, console, record.get("microbatch"))
    record["microbatch"] = fitted
    return dataclasses.replace(job, microbatches=fitted["rows"])


def train_with_feature_cache(
    job: TrainingContext,
    manifest: Manifest,
    console: Console,
    record: dict[str, Any],
    earlier: Sequence[str] | None,
    *,
    share: float = 1.0,
) -> dict[str, Any]:
    """Provide the activations and train; activations that are lost meanwhile are mended, and the run goes on.

    Args:
        job: without activations.
        manifest: with splits.
        console: shows what happens.
        record: of the run; which phases train on activations is written into it.
        earlier: the phases that did so before the run was interrupted; None: it begins.
        share: of the cluster that it may use, 0..1.

    Returns:
        What `train_on_workers` returns.

    Raises:
        As `train_on_workers` and `get_or_compute`.
    """
    checkpoints = list_checkpoints(job.checkpoints)
    at = checkpoints[-1].position.phase if checkpoints else 0
    wish = feature_request(job, manifest, at, console.say, console.should_stop, quarantine_reporter(console))
    repairs = 0
    while True:
        job = dataclasses.replace(job, activations=get_or_compute(wish, earlier=earlier))
        record["activations"] = earlier = sorted({*job.activations, *(name for name in earlier or () if at)})
        storage.write_json(storage.join(job.folder, RUN_FILE), record)
        console.event("activations", phases=sorted(job.activations))
        try:
            return train_on_workers(job, console, share=share)
        except FeatureCacheCorruptedError as error:
            if repairs == _MAX_REPAIRS:
                raise
            repairs += 1
            console.say(f"warning: {error}; it is computed again, and the run goes on from its newest checkpoint")
            delete_corrupted(job.activations.values())
        except FeatureCacheUnavailableError as error:
            console.say(fallback_message(error))
            record["activations"] = []  # a resumed run goes on in the same way
            storage.write_json(storage.join(job.folder, RUN_FILE), record)
            console.event("activations", phases=[])
            return train_on_workers(dataclasses.replace(job, activations={}), console, share=share)


def feature_request(
    job: TrainingContext, manifest: Manifest, at: int, say: Say, stopped: Callable[[], bool], lost: Lost
) -> FeatureRequest:
    """The activations that a run could train its phases on, from phase number `at` on."""
    phases = [phase for phase in build_phases(job.config) if phase.number >= at]
    works = [PhaseDemand(phase.name, phase.unfreeze_blocks, phase.settings.epochs) for phase in phases]
    return FeatureRequest(job.config, manifest, job.fingerprints["weights"], works, say, stopped, lost)


def quarantine_reporter(observer: Callback) -> Lost:
    """Tells a run's observer of images that are lost where activations are computed."""

    def lost(reasons: Mapping[int, str]) -> None:
        observer.event(QUARANTINED, rows=list(reasons), reasons=list(reasons.values()))

    return lost
