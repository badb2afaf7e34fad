"""A worker's share in pieces: the same steps, found by trying what the device holds, and told where it holds less."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recorder import Recorder

from pharmclf.config import ConfigError, HeadConfig, OptimizerConfig, RunConfig, load_yaml
from pharmclf.core.signals import StopRequested
from pharmclf.models.devices import MEMORY_VARIABLE
from pharmclf.training.microbatch import MicrobatchLimits
from pharmclf.training.phases import build_phases

pytestmark = pytest.mark.tf
CONFIG = RunConfig(
    image_size=64,
    batch_size=10,
    weights="none",
    unfreeze_blocks=2,
    head=HeadConfig(dense=(16,), dropout=0.3),
    optimizer=OptimizerConfig(label_smoothing=0.1, clip_norm=1.0),
)
ROWS = 10


Outcome = tuple[list[Any], list[np.ndarray], list[np.ndarray]]


@functools.cache
def trained(
    microbatch: int, phase_number: int, *, cached: bool, count: float = 9.0
) -> tuple[list[Any], list[np.ndarray], list[np.ndarray]]:
    """Sums of two steps and of a validation step, and the weights before and behind."""
    import tensorflow as tf

    from pharmclf.models.backbone_split import split_backbone
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head
    from pharmclf.training.collectives import single_worker
    from pharmclf.training.model_step import ModelStep
    from pharmclf.training.train_step import synthetic_batch

    tf.keras.utils.set_random_seed(0)
    phase = list(build_phases(CONFIG))[phase_number]
    backbone = build_backbone(CONFIG.backbone, CONFIG.image_size, "none")
    head = build_head(CONFIG.head, backbone.output.shape[-1], 4, 0)
    model = ModelStep(
        CONFIG, single_worker(), backbone, head, phase.unfreeze_blocks, "float32", cached=cached, microbatch=microbatch
    )
    model.set_learning_rates(np.array([1e-2]))
    draws = np.random.default_rng(0)
    mask = np.array([1.0] * (ROWS - 1) + [0.0], np.float32)
    batch = synthetic_batch(CONFIG, ROWS)._replace(
        labels=tf.constant(draws.integers(0, 4, ROWS)), mask=tf.constant(mask),
        weights=tf.constant(mask * draws.uniform(0.5, 2.0, ROWS).astype(np.float32)), count=tf.constant(count),
    )  # fmt: skip
    if cached:
        suffix = split_backbone(backbone, phase.unfreeze_blocks).suffix
        shape = (suffix or head).input.shape[1:]
        batch = batch._replace(inputs=tf.constant(draws.random((ROWS, *shape)), tf.float32))
    before = [variable.numpy() for variable in model.trained]
    sums = [model.train_step(batch._replace(global_step=tf.constant(step, tf.int64)), tf.constant(0.0)).numpy()
            for step in range(2)]  # fmt: skip
    if not cached:
        sums.append(model.validation_step(batch).numpy())
    return sums, before, [variable.numpy() for variable in model.trained]


@pytest.mark.parametrize(("phase", "cached", "sizes"), [(0, False, [4]), (1, False, [4]), (1, True, [4, 1])])
def test_a_share_in_pieces_takes_the_steps_of_the_whole(phase: int, cached: bool, sizes: list[int]):
    """Pieces of 4 with two rows of padding behind, and single rows: with dropout, class weights, a padded row of the
    batch, and a clipped gradient the sums and the weights are the same but for rounding."""
    whole = trained(0, phase, cached=cached)
    moved = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(whole[1], whole[2], strict=True)))
    assert moved > 0.01
    for microbatch in sizes:
        sums, _, weights = trained(microbatch, phase, cached=cached)
        np.testing.assert_allclose(sums, whole[0], rtol=1e-4)
        apart = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(weights, whole[2], strict=True)))
        assert apart < 2e-3 * moved


@pytest.mark.parametrize("microbatch", [0, 4])
def test_a_row_whose_image_is_lost_is_as_one_that_the_plan_does_not_have(microbatch: int):
    """Planned are ten rows, and one of them counts for nothing: the loss is divided by nine, before it is clipped."""
    sums, _, weights = trained(microbatch, 1, cached=False, count=10.0)
    expected = trained(microbatch, 1, cached=False, count=9.0)
    np.testing.assert_allclose(sums, expected[0], rtol=1e-5)
    assert [step[3] for step in sums] == [9.0] * 3
    apart = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(weights, expected[2], strict=True)))
    moved = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(expected[1], expected[2], strict=True)))
    assert apart < 2e-3 * moved


@pytest.mark.ray
def test_a_run_in_pieces_has_the_history_of_the_whole(make_job: Any, tmp_path: Path):
    """The loop gives each phase its own pieces."""
    from pharmclf.training import collectives, trainer

    histories = []
    for number, pieces in enumerate(({}, {"phase1": 3, "phase2": 2})):
        job = dataclasses.replace(make_job(str(tmp_path / str(number))), microbatches=pieces)
        histories.append(trainer.Trainer(job, collectives.single_worker(), Recorder()).fit().history)
    for one, other in zip(*histories, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-3)


@pytest.mark.slow
def test_what_fits_grows_with_the_memory(monkeypatch: pytest.MonkeyPatch):
    """Child processes that are given little memory find few rows or none, with more memory the whole share; this
    process lives on whatever happens there."""
    from pharmclf.distributed.microbatch_search import find_max_microbatch

    config = dataclasses.replace(CONFIG, image_size=96, batch_size=64, accelerator="cpu")
    found = []
    for limit in (1, 120, 2000):
        monkeypatch.setenv(MEMORY_VARIABLE, str(limit))
        found.append(find_max_microbatch(config, 4, 64, 1, lambda: False).rows)
    assert found[0] == {"phase1": 0, "phase2": 0}
    assert 1 <= found[1]["phase1"] < 64
    assert found[1]["phase2"] <= found[1]["phase1"]
    assert found[2] == {"phase1": 64, "phase2": 64}


def test_a_device_that_holds_the_share_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    """Enough memory: the whole share of each phase, in one process that lives from try to try."""
    from pharmclf.distributed.microbatch_search import find_max_microbatch

    monkeypatch.setenv(MEMORY_VARIABLE, "2000")
    found = find_max_microbatch(dataclasses.replace(CONFIG, accelerator="cpu"), 4, 10, 1, lambda: False)
    assert found == MicrobatchLimits("CPU", 10, {"phase1": 10, "phase2": 10})


def test_a_search_ends_when_it_is_asked_to():
    from pharmclf.distributed.microbatch_search import find_max_microbatch

    with pytest.raises(StopRequested):
        find_max_microbatch(CONFIG, 4, 10, 1, lambda: True)


@pytest.mark.ray
def test_what_was_found_is_not_sought_again(make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For the same limit of memory; what was given by hand was not found."""
    from pharmclf.distributed.microbatch_search import resolve_microbatches

    job = make_job(str(tmp_path), microbatch="auto")
    earlier = {"found": True, "memory_limit_mb": 0, "rows": {"phase1": 7, "phase2": 3}}
    recorder = Recorder()
    assert resolve_microbatches(job, recorder, earlier) == earlier
    assert "phase1 7, phase2 3" in recorder.notes[0]
    given = dataclasses.replace(make_job(str(tmp_path), microbatch="5"), microbatches={"phase1": 5, "phase2": 5})
    assert resolve_microbatches(given, recorder, earlier) == {
        "found": False, "memory_limit_mb": 0, "rows": {"phase1": 5, "phase2": 5},
    }  # fmt: skip


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    from pharmclf.models.devices import memory_limit_mb

    for text in ("0", "2 GB", "-1", "1.5"):
        monkeypatch.setenv(MEMORY_VARIABLE, text)
        with pytest.raises(ConfigError, match="expected a whole number of megabytes"):
            memory_limit_mb()


def test_memory_that_runs_out_in_training_is_told_with_the_remedy():
    """TensorFlow's own error of an allocation that failed becomes one line: phase, rows, what to give; others stay."""
    import tensorflow as tf

    from pharmclf.training.context import DeviceOutOfMemoryError
    from pharmclf.training.oom import oom_as_user_error

    phase = list(build_phases(CONFIG))[1]
    with pytest.raises(
        DeviceOutOfMemoryError, match=r"phase2: .* does not hold 5 images of 64 pixels at once"
    ) as caught:
        with oom_as_user_error(CONFIG, phase, 10, 6):
            tf.zeros((1 << 24, 1 << 24))
    assert "--batch-size auto" in str(caught.value)
    assert "--microbatch 2" in str(caught.value)
    with pytest.raises(tf.errors.InvalidArgumentError), oom_as_user_error(CONFIG, phase, 10, 0):
        tf.reshape(tf.zeros(3), (2, 2))


def test_auto_leaves_the_batch_of_the_recipe_as_it_is(tmp_path: Path):
    """`batch_size: auto` in a file is the default's batch, in pieces to be found; another word is refused."""
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: auto\n")
    assert (load_yaml(file).batch_size, load_yaml(file).microbatch) == (RunConfig().batch_size, "auto")
    file.write_text("batch_size: all\n")
    with pytest.raises(ConfigError, match="expected a number of images, or auto"):
        load_yaml(file)
