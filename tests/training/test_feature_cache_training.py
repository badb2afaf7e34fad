"""Training on kept activations: the steps of training on images."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.changed_files import with_changed
from support.recorder import Recorder

from pharmclf.config import AugmentConfig, HeadConfig, PhaseConfig
from pharmclf.core.events import ImagesQuarantined
from pharmclf.core.signals import StopRequested
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.distributed.controller import train_on_workers
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import build_phases

pytestmark = [pytest.mark.ray, pytest.mark.tf]

SETTINGS: dict[str, Any] = {
    "augment": AugmentConfig(
        rotation_deg=180, vertical_flip=True, brightness=0.3, blur=0.02, noise=10, erase=0.2, views=2
    ),
    "head": HeadConfig(dense=(16,), dropout=0.3),
    "phase1": PhaseConfig(epochs=3, learning_rate=1e-4),
    "phase2": PhaseConfig(epochs=3, learning_rate=1e-5),
    "checkpoint_interval_s": 1e-9,  # after every step, so that the loss of each can be read
    "num_checkpoints_to_keep": 10_000,
    "feature_cache_dtype": "float32",
}


def with_activations(job: TrainingContext, manifest: Manifest, storage: str) -> TrainingContext:
    config = dataclasses.replace(job.config, feature_cache="always", storage=storage)
    works = [PhaseDemand(phase.name, phase.unfreeze_blocks, phase.settings.epochs) for phase in build_phases(config)]
    wish = FeatureRequest(config, manifest, config.weights, works, lambda _: None, lambda: False, lambda _: None)
    job = dataclasses.replace(job, config=config, activations=get_or_compute(wish))
    assert set(job.activations) == {"phase1", "phase2"}
    return job


def losses(job: TrainingContext) -> dict[tuple[int, int, int], float]:
    """Mean training loss up to each step of each epoch, by position behind the step."""
    found = {}
    history: list[dict[str, Any]] = []
    for checkpoint in list_checkpoints(job.checkpoints):
        at, state = checkpoint.position, checkpoint.state
        if at.step:
            found[at.phase, at.epoch, at.step] = state["epoch_sums"]["loss"] / state["epoch_sums"]["images"]
        history = state["history"]
    for record in history:
        found[int(record["phase"][-1]) - 1, record["epoch"] + 1, 0] = record["train_loss"]
    return found


def weights(job: TrainingContext) -> dict[str, np.ndarray]:
    found = newest_checkpoint(job.checkpoints)
    assert found is not None
    return found[1]["weights"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_cached_and_uncached_training_take_the_same_steps(
    make_job: Any, drawn_manifest: Manifest, tmp_path: Path, workers: str
) -> None:
    """Both phases, two views, by one and by two workers: each loss within 1e-4, the final weights within 1e-3.

    For two workers three images of the training split have changed since they were listed, and one of the validation
    split: the losses are means over the others, streamed and cached.
    """
    changed = [*drawn_manifest.rows("train")[:3], drawn_manifest.rows("validation")[0]] if workers == "2" else []
    manifest = with_changed(drawn_manifest, changed)
    jobs = [make_job(str(tmp_path / name), num_workers=workers, **SETTINGS) for name in ("streamed", "cached")]
    jobs = [dataclasses.replace(job, images=ImageSet.of(manifest)) for job in jobs]
    streamed, cached = jobs[0], with_activations(jobs[1], manifest, str(tmp_path))
    for job in (streamed, cached):
        observer = Recorder()
        outcome = train_on_workers(job, observer)
        assert outcome.status == "complete"
        lost = [row for event in observer.of(ImagesQuarantined) for row in event.reasons]
        assert set(lost) == (set(changed) if job is streamed else set())  # the feature pass has named them before
        for record in outcome.history:
            for name, rows in (("train_accuracy", job.train_rows), ("val_accuracy", job.validation_rows)):
                right = getattr(record, name) * len(np.setdiff1d(rows, changed))  # a share of the images that are left
                assert right == pytest.approx(round(right), abs=1e-4)
    one, other = losses(streamed), losses(cached)
    steps = -(-len(streamed.train_rows) // 10)
    assert set(one) == set(other)
    assert len(one) == 6 * steps
    assert max(abs(one[at] - other[at]) for at in one) <= 1e-4
    ours, theirs = weights(streamed), weights(cached)
    assert set(ours) == set(theirs)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) <= 1e-3


def test_a_cached_run_resumes_bit_for_bit(make_job: Any, drawn_manifest: Manifest, tmp_path: Path) -> None:
    """Stopped within phase 2 and begun again, it ends with the weights of the run that was not stopped."""
    ends = []
    for name, stops in (("unbroken", [None]), ("broken", [18, None])):
        settings = SETTINGS | {"checkpoint_interval_s": 0, "feature_cache_dtype": "float16", "num_workers": "0"}
        job = with_activations(make_job(str(tmp_path / name), **settings), drawn_manifest, str(tmp_path))
        for stop in stops:
            with pytest.raises(StopRequested) if stop else contextlib.nullcontext():
                train_on_workers(job, Recorder(stop))
        ends.append(weights(job))
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])
