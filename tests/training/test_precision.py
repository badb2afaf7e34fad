"""Half precision with several workers, and the one precision that all of them compute in."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recorder import Recorder

from pharmclf import storage
from pharmclf.config import AugmentConfig, HeadConfig, OptimizerConfig, PhaseConfig
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.manifest import Manifest
from pharmclf.distributed.controller import train_on_workers
from pharmclf.feature_cache.shards import CachedFeatures, ShardLayout, write_shard
from pharmclf.models.devices import min_compute_capability, resolve_precision
from pharmclf.runs.record import ResolvedSettings, RunRecord
from pharmclf.training.checkpoint import list_checkpoints, read_checkpoint
from pharmclf.training.context import TrainingContext
from pharmclf.training_run import resolve_auto_settings

WIDTH, OVERFLOWING_STEP = 1280, 2
ORDINARY, OVERFLOWING = 1.0, 3e4  # of a feature; its gradient times 2^15 is beyond float16 with the second only

capabilities = st.tuples(st.integers(3, 12), st.integers(0, 9))


@given(st.lists(capabilities, min_size=1))
def test_the_least_of_unlike_gpus_decides_for_all(found: list[tuple[int, int]]):
    """What is chosen is fast on each of them: no other GPU of the cluster would choose less."""
    order = ["float32", "mixed_float16", "mixed_bfloat16"]
    chosen = resolve_precision("auto", min_compute_capability(found))
    assert order.index(chosen) == min(order.index(resolve_precision("auto", each)) for each in found)
    assert min_compute_capability([*found, None]) is None


def activations(job: TrainingContext, manifest: Manifest, overflowing: int) -> CachedFeatures:
    """Features as the frozen backbone could have given them, one of them far too large in one row."""
    location, layout, files = storage.join(job.folder, "kept"), ShardLayout.of(job.config, manifest, (WIDTH,)), {}
    for section in layout.sections:
        assert section.num_shards == 1
        rows = manifest.rows(section.name)
        values = np.random.default_rng(1).uniform(0, ORDINARY, (len(rows), section.views, WIDTH)).astype("float32")
        values[rows == overflowing, :, 0] = OVERFLOWING
        files[section.name] = [write_shard(location, section.name, 0, values)]
    rows_of = {split: manifest.rows(split) for split in files}
    return CachedFeatures(location, layout, rows_of, files)


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_gradient_that_is_not_finite_on_one_worker_skips_the_step_on_all(
    make_job: Any, drawn_manifest: Manifest, tmp_path: Path, rank: int
) -> None:
    """Of two workers one overflows in one step: no weight moves there, the loss scale halves, and the next ones move.

    Had the other worker taken its own finite gradient, or both the sum, later losses would not be those of one worker.
    """
    settings: dict[str, Any] = {
        "precision": "mixed_float16",
        "feature_cache_dtype": "float32",
        "augment": AugmentConfig(views=1),
        "head": HeadConfig(dense=(16,), dropout=0.0),
        # so that the row has a gradient even where the model is right and sure
        "optimizer": OptimizerConfig(label_smoothing=0.1),
        "phase1": PhaseConfig(epochs=2, learning_rate=1e-4),
        "phase2": PhaseConfig(epochs=0),
        "checkpoint_interval_s": 1e-9,  # after every step
        "num_checkpoints_to_keep": 100,
    }
    outcomes = {}
    for workers in (1, 2):
        job = make_job(str(tmp_path / str(workers)), num_workers=str(workers), **settings)
        plan = BatchPlan(job.train_rows, job.validation_rows, job.config.batch_size, job.config.seed, 0, 1, rank, 2)
        row = int(plan.step(OVERFLOWING_STEP).rows[0])
        job = dataclasses.replace(job, activations={"phase1": activations(job, drawn_manifest, row)})
        outcomes[workers] = train_on_workers(job, Recorder())
        steps = [each for each in list_checkpoints(job.checkpoints) if each.position.epoch == 0 and each.position.step]
        tensors = [read_checkpoint(each.location) for each in steps]
        weights = [each.tensors("weights") for each in tensors]
        scales = [float(each.tensors("optimizer")["loss_scale"]) for each in tensors]
        pairs = itertools.pairwise(weights)
        moved = [any(not np.array_equal(old[name], new[name]) for name in old) for old, new in pairs]
        assert moved == [step != OVERFLOWING_STEP for step in range(1, len(steps))]
        assert scales == [2.0**15 if step < OVERFLOWING_STEP else 2.0**14 for step in range(len(steps))]
    for one, two in zip(outcomes[1].history, outcomes[2].history, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-2)
        assert two.val_loss == pytest.approx(one.val_loss, rel=1e-2)


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize(("xla", "num_warnings"), [(False, 0), (True, 1)])
def test_xla_on_a_cpu_is_named_with_its_cost(make_job: Any, tmp_path: Path, xla: bool, num_warnings: int) -> None:
    """Before anything is computed."""
    recorder = Recorder()
    record = RunRecord(name="run", settings={}, config={}, fingerprints={})
    resolve_auto_settings(make_job(str(tmp_path), xla=xla), recorder, record)
    assert sum("10 to 14 times as long" in note for note in recorder.notes) == num_warnings


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_resumed_run_keeps_the_precision_that_it_began_with(make_job: Any, tmp_path: Path, workers: str) -> None:
    """Begun where GPUs were fast at bfloat16, it goes on so on processors; one that begins here takes float32."""
    job = make_job(str(tmp_path), num_workers=workers)
    for before, expected in ((None, "float32"), ("mixed_bfloat16", "mixed_bfloat16")):
        resolved = ResolvedSettings(precision=before)
        record = RunRecord(name="run", settings={}, config={}, fingerprints={}, resolved=resolved)
        decided = resolve_auto_settings(job, Recorder(), record)
        assert decided.config.precision == record.resolved.precision == expected
        assert decided.fingerprints == job.fingerprints
