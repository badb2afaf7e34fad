"""Batches of a phase whose training images grow from epoch to epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf.config import PhaseConfig
from pharmclf.data.batch_sampler import BatchPlan

pytestmark = [pytest.mark.ray, pytest.mark.tf]


def batches(job: Any, rank: int = 0, workers: int = 1, first: int = 0) -> list[Any]:
    """What a worker receives in phase 2 from a step on."""
    from pharmclf.training.batch_loader import device_batches
    from pharmclf.training.phases import build_phases

    phase = build_phases(job.config)[1]
    plan = BatchPlan(
        job.train_rows, job.validation_rows, job.config.batch_size, job.config.seed, phase.first_epoch,
        phase.settings.epochs, rank, workers,
    )  # fmt: skip
    return list(device_batches(job, phase, plan, first))


def test_images_grow_and_every_worker_and_resumed_run_receives_the_same_rows(make_job: Any, tmp_path: Path) -> None:
    """Training images have the size of their epoch, images of the validation that of the model."""
    job = make_job(str(tmp_path), phase2=PhaseConfig(epochs=2, image_size="32x1-64"))
    whole = batches(job)
    training = -(-len(job.train_rows) // 10)
    per_epoch = len(whole) // 2
    sides = [batch.inputs.shape[1] for batch in whole]
    assert sides == [32] * training + [64] * (len(whole) - training)
    for one, two, both in zip(batches(job, 0, 2), batches(job, 1, 2), whole, strict=True):
        for field in ("inputs", "transforms", "labels", "mask"):
            parts = np.concatenate([getattr(one, field), getattr(two, field)])
            np.testing.assert_array_equal(parts, getattr(both, field))
    for again, before in zip(batches(job, first=2), whole[2:], strict=True):
        np.testing.assert_array_equal(again.inputs, before.inputs)
        np.testing.assert_array_equal(again.transforms, before.transforms)
    assert np.abs(whole[0].inputs.numpy().astype(int).mean() - whole[per_epoch].inputs.numpy().mean()) < 10
