"""Heads side by side: each has the results of a run of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.changed_files import CHANGED, with_changed
from support.recorder import Recorder

from pharmclf import storage
from pharmclf.config import AugmentConfig, ConfigError, HeadConfig, OptimizerConfig, PhaseConfig, StoppingConfig
from pharmclf.core.events import HeadsEpochEnd
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.feature_cache.shards import CachedFeatures, FeatureCacheCorruptedError
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Position, build_phases
from pharmclf.training.train_state import TrainResult

pytestmark = [pytest.mark.ray, pytest.mark.tf]

Make = Callable[..., TrainingContext]
SETTINGS: dict[str, Any] = {
    "augment": AugmentConfig(rotation_deg=180, vertical_flip=True, views=2),
    "unfreeze_blocks": 0,
    "feature_cache_dtype": "float32",
}


@pytest.fixture(scope="module")
def make(make_job: Any, drawn_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes jobs of runs that train the head alone, on the same kept features, without saving models.

    `changed` rows of the manifest have changed since they were listed, and the features lack them.
    """
    kept: dict[tuple[int, ...], CachedFeatures] = {}
    home = str(tmp_path_factory.mktemp("kept"))

    def job(folder: Path, changed: tuple[int, ...] = (), **settings: Any) -> TrainingContext:
        made: TrainingContext = make_job(str(folder), **SETTINGS | settings)
        if changed not in kept:
            config = dataclasses.replace(made.config, feature_cache="always", storage=home)
            works, lost = [PhaseDemand("phase1", 0, 2)], dict[int, str]()
            manifest = with_changed(drawn_manifest, changed)
            wish = FeatureRequest(config, manifest, config.weights, works, lambda _: None, lambda: False, lost.update)
            (kept[changed],) = get_or_compute(wish).values()
            assert lost == dict.fromkeys(changed, CHANGED)
        activations = dict.fromkeys([phase.name for phase in build_phases(made.config)], kept[changed])
        return dataclasses.replace(made, activations=activations, saves_models=False)

    return job


def of_group(jobs: Sequence[TrainingContext], observer: Recorder | None = None) -> list[TrainResult]:
    from pharmclf.training import collectives
    from pharmclf.training.vectorized_heads import HeadSpec, train_heads

    members = [HeadSpec(config=job.config, folder=job.folder, fingerprints=job.fingerprints) for job in jobs]
    return train_heads(jobs[0], members, collectives.single_worker(), observer or Recorder())


def alone(job: TrainingContext) -> TrainResult:
    from pharmclf.training import collectives, trainer

    return trainer.Trainer(job, collectives.single_worker(), Recorder()).fit()


def check_equal(one: TrainResult, other: TrainResult, tolerance: float = 1e-4) -> None:
    """Results of a run: the same epochs, numbers and best checkpoints; times are their own."""
    assert one.best == other.best
    assert [(r.phase, r.epoch) for r in one.history] == [(r.phase, r.epoch) for r in other.history]
    for ours, theirs in zip(one.history, other.history, strict=True):
        ours, theirs = ours.to_dict(), theirs.to_dict()
        assert set(ours) == set(theirs)
        for name in set(ours) - {"phase", "epoch", "seconds", "images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=tolerance), (name, ours, theirs)
    assert {(n, m.best_epoch, m.scale) for n, m in one.monitors.items()} == {
        (n, m.best_epoch, m.scale) for n, m in other.monitors.items()
    }


def check_same_checkpoint(one: str, other: str, tolerance: float = 1e-4) -> None:
    """Two checkpoints hold the same tensors, weights and optimizer, and the same record of the run."""
    ours, theirs = read_checkpoint(one), read_checkpoint(other)
    for file in ("weights", "optimizer"):
        tensors, expected = ours.tensors(file), theirs.tensors(file)
        assert {n: (a.shape, a.dtype) for n, a in tensors.items()} == {
            n: (a.shape, a.dtype) for n, a in expected.items()
        }
        for name, array in tensors.items():
            largest = max(1.0, np.abs(expected[name]).max())  # which the rounding of sums is in proportion to
            assert np.abs(array - expected[name]).max() <= tolerance * largest, (file, name)
    assert set(ours.state) == set(theirs.state)
    assert ours.state["best"] == theirs.state["best"]
    assert ours.state["monitors"].keys() == theirs.state["monitors"].keys()
    assert len(ours.state["history"]) == len(theirs.state["history"])


def check_same_end(one: TrainingContext, other: TrainingContext, best: dict[str, str], tolerance: float = 1e-4) -> None:
    """The newest checkpoints of two runs, and those of each phase's best epoch, are the same."""
    newest = [list_checkpoints(job.checkpoints)[-1].name for job in (one, other)]
    assert newest[0] == newest[1]
    for name in {newest[0], *best.values()}:
        check_same_checkpoint(storage.join(one.checkpoints, name), storage.join(other.checkpoints, name), tolerance)


DIFFERENT: list[dict[str, Any]] = [  # four heads; the second stops early, the third meets plateaus
    {"phase1": PhaseConfig(epochs=5, learning_rate=3e-3), "num_checkpoints_to_keep": 1},
    {
        "phase1": PhaseConfig(epochs=5, learning_rate=1e-7),
        "phase2": PhaseConfig(epochs=3, learning_rate=1e-2),
        "stopping": StoppingConfig(early_patience=1),
        "optimizer": OptimizerConfig(label_smoothing=0.1, weight_decay=0.1),
    },
    {
        "phase1": PhaseConfig(epochs=5),  # its rate is the test's: too high or too low for the loss to fall
        "stopping": StoppingConfig(early_patience=0, plateau_patience=1, plateau_factor=0.3, learning_rate_floor=1e-9),
        "optimizer": OptimizerConfig(clip_norm=0.1),
    },
    {
        "phase1": PhaseConfig(epochs=5, learning_rate=3e-3, schedule="cosine", warmup=0.4),
        "optimizer": OptimizerConfig(label_smoothing=0.2, clip_norm=1.0),
    },
]
NONE = PhaseConfig(epochs=0)
DROPOUTS = (0.0, 0.3, 0.5, 0.7)


@pytest.mark.parametrize(("dense", "phase2_epochs", "level_rate"), [((), 3, 0.3), ((16,), 0, 1e-7)])
def test_heads_side_by_side_are_the_runs_of_each_alone(
    make: Make, tmp_path: Path, dense: tuple[int, ...], phase2_epochs: int, level_rate: float
) -> None:
    """Two phases or one: history, best epochs, and the tensors of the checkpoints, to 1e-4; each with its own numbers.

    Of the runs one stops early, one has its rate lowered and one follows a cosine; else the test would prove nothing.
    """
    jobs = []
    for number, (own, dropout) in enumerate(zip(DIFFERENT, DROPOUTS, strict=True)):
        settings = {"stopping": StoppingConfig(early_patience=0), "phase2": PhaseConfig(epochs=3, learning_rate=1e-3)}
        settings |= own | {"head": HeadConfig(dense=dense, dropout=dropout)}
        settings["phase2"] = dataclasses.replace(settings["phase2"], epochs=phase2_epochs)
        if number == 2:
            settings["phase1"] = dataclasses.replace(settings["phase1"], learning_rate=level_rate)
        jobs.append([make(tmp_path / kind / str(number), **settings) for kind in ("group", "alone")])
    observer = Recorder()
    ours = of_group([group for group, _ in jobs], observer)
    theirs = [alone(separate) for _, separate in jobs]
    for (group, separate), one, other in zip(jobs, ours, theirs, strict=True):
        assert (one.status, one.reason) == ("complete", "")
        check_equal(one, other)
        check_same_end(group, separate, one.best)
    first = [r.phase for r in theirs[1].history].count("phase1")
    assert first < 5
    assert theirs[2].monitors["phase1"].scale < 1
    assert len({round(r.learning_rate, 9) for r in theirs[3].history if r.phase == "phase1"}) == 5
    assert [event.epoch for event in observer.of(HeadsEpochEnd)] == [*range(5), *range(phase2_epochs)]


WEIGHED = {"optimizer": OptimizerConfig(class_weights="auto", label_smoothing=0.1)}


@pytest.mark.parametrize(
    "settings",
    [{"precision": "mixed_bfloat16"}, {"xla": True}, WEIGHED],
    ids=["bfloat16", "xla", "class-weights"],
)
def test_heads_compute_in_the_numbers_of_the_run(make: Make, tmp_path: Path, settings: dict[str, Any]) -> None:
    """In bfloat16, compiled by XLA or with class weights, a head behind a hidden layer is its own run to 1e-3."""
    import keras

    common = settings | {"head": HeadConfig(dense=(16,), dropout=0.3), "phase2": PhaseConfig(epochs=0)}
    policy = keras.config.dtype_policy()
    try:
        result, _ = of_group([make(tmp_path / str(number), **common) for number in range(2)])
        check_equal(result, alone(make(tmp_path / "alone", **common)), 1e-3)
    finally:
        keras.config.set_dtype_policy(policy)


def test_a_head_that_diverges_harms_no_other(make: Make, tmp_path: Path) -> None:
    """It is told as the loop would tell it, in the phase where it happens; the others have their own results."""
    from pharmclf.training.context import TrainingDivergedError

    one_phase = {"phase2": PhaseConfig(epochs=2, learning_rate=1e-3)}
    late = {"phase2": PhaseConfig(epochs=2, learning_rate=3e38)}
    early = {"phase1": PhaseConfig(epochs=2, learning_rate=3e38)} | one_phase
    jobs = [make(tmp_path / "g" / name, **own) for name, own in (("a", one_phase), ("b", early), ("c", late))]
    sound, at_once, later = of_group(jobs)
    check_equal(sound, alone(make(tmp_path / "alone", **one_phase)))
    assert [r.status for r in (sound, at_once, later)] == ["complete", "diverged", "diverged"]
    assert not list_checkpoints(jobs[1].checkpoints)
    assert [r.phase for r in later.history] == ["phase1"] * 2
    assert list_checkpoints(jobs[2].checkpoints)[-1].name == "phase1-epoch0002-step000000"
    for result, own in ((at_once, early), (later, late)):
        with pytest.raises(TrainingDivergedError) as told:
            alone(make(tmp_path / "alone" / result.reason[:5] / str(len(result.history)), **own))
        assert result.reason == str(told.value)


TRAIN, VALIDATION = 4, 2
"""Steps of an epoch of the small job."""


@pytest.mark.parametrize(
    ("batches", "epochs", "newest"),
    [
        (2 * (TRAIN + VALIDATION), 2, Position(0, 2, 0)),
        (TRAIN + 1, 0, Position(0, 0, TRAIN)),  # in the validation
        (4 * (TRAIN + VALIDATION) + 3, 4, Position(1, 1, 3)),
    ],
    ids=["between-epochs", "validation", "phase2"],
)
def test_the_loop_goes_on_with_a_head_where_the_group_was_stopped(
    make: Make, tmp_path: Path, batches: int, epochs: int, newest: Position
) -> None:
    """Stopped behind so many batches: each member, resumed by itself, comes to the end of a run of its own."""
    numbers = [{"phase1": PhaseConfig(epochs=3, learning_rate=rate)} for rate in (1e-3, 1e-2)]
    numbers[1]["phase2"] = PhaseConfig(epochs=3, learning_rate=1e-3)
    numbers[0]["phase2"] = PhaseConfig(epochs=3, learning_rate=1e-4)
    jobs = [make(tmp_path / "g" / str(number), **own) for number, own in enumerate(numbers)]
    stopped = of_group(jobs, Recorder(batches))
    assert [result.status for result in stopped] == ["stopped"] * 2
    assert [len(result.history) for result in stopped] == [epochs] * 2
    assert [list_checkpoints(job.checkpoints)[-1].position for job in jobs] == [newest] * 2
    for number, own in enumerate(numbers):
        unbroken = make(tmp_path / "alone" / str(number), **own)
        theirs, ours = alone(unbroken), alone(jobs[number])
        check_equal(ours, theirs)
        check_same_end(jobs[number], unbroken, theirs.best)


def test_heads_leave_out_the_rows_that_the_features_lack(make: Make, drawn_manifest: Manifest, tmp_path: Path) -> None:
    """Of each split one image has changed: the group's numbers are those of each run alone, of the images left."""
    changed = tuple(int(drawn_manifest.rows(split)[3]) for split in ("train", "validation"))
    kinds, rates = ("group", "alone"), (1e-4, 1e-3)
    jobs = {
        kind: [
            make(tmp_path / kind / str(rate), changed, phase1=PhaseConfig(epochs=2, learning_rate=rate), phase2=NONE)
            for rate in rates
        ]
        for kind in kinds
    }
    for group, separate, one in zip(*jobs.values(), of_group(jobs["group"]), strict=True):
        other = alone(separate)
        check_equal(one, other)
        check_same_end(group, separate, one.best)
        for record in (*one.history, *other.history):
            right = record.train_accuracy * (len(group.train_rows) - 1)
            assert right == pytest.approx(round(right), abs=1e-4)


@pytest.mark.parametrize("batches", [2, 5, 11])
def test_where_the_features_are_lost_nothing_else_is(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """In the middle of training or validation each member writes where it stands; the loop goes on from there."""
    from pharmclf.training import trainer

    load = trainer.device_batches

    class CutOff:
        ready = True

        def __init__(self, *arguments: Any) -> None:
            self.source, self.left = load(*arguments), batches
            self.close = self.source.close

        def __next__(self) -> Any:
            if self.left == 0:
                raise FeatureCacheCorruptedError("a shard is gone")
            self.left -= 1
            return next(self.source)

    jobs = [make(tmp_path / "g" / str(rate), phase1=PhaseConfig(epochs=2, learning_rate=rate)) for rate in (1e-3, 1e-2)]
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "device_batches", CutOff)
        with pytest.raises(FeatureCacheCorruptedError):
            of_group(jobs)
    newest = list_checkpoints(jobs[1].checkpoints)[-1]
    assert newest.position.step > 0
    unbroken = make(tmp_path / "alone", phase1=jobs[1].config.phase1)
    theirs, ours = alone(unbroken), alone(jobs[1])
    check_equal(ours, theirs)
    check_same_end(jobs[1], unbroken, theirs.best)


@pytest.mark.s3
def test_all_checkpoints_are_in_an_object_store_at_the_end(make: Make, bucket: str) -> None:
    """They go by way of the spool, which is empty when the call returns."""
    from pharmclf.training.checkpoint_manager import staging_dir

    jobs = [make(Path("unused"), phase2=PhaseConfig(epochs=0)) for _ in range(2)]
    jobs = [dataclasses.replace(job, folder=f"{bucket}/{number}") for number, job in enumerate(jobs)]
    for job, result in zip(jobs, of_group(jobs), strict=True):
        names = {checkpoint.name for checkpoint in list_checkpoints(job.checkpoints)}
        assert names == {"phase1-epoch0002-step000000", *result.best.values()}
        assert not storage.list_folders(staging_dir(job.checkpoints))


def test_the_loop_has_nothing_to_train_behind_a_finished_head(make: Make, tmp_path: Path) -> None:
    """It takes up the last checkpoint of the group, and ends with the same history."""
    job = make(tmp_path)
    (finished,) = of_group([job])
    before = newest_checkpoint(job.checkpoints)
    again = alone(job)
    after = newest_checkpoint(job.checkpoints)
    assert again.history == finished.history
    assert before is not None
    assert after is not None
    assert before[0].files == after[0].files


def test_a_checkpoint_is_written_at_every_epoch_that_asks_for_one(make: Make, tmp_path: Path) -> None:
    """With a time that has always passed all epochs leave one, and each one's best is there too."""
    jobs = [
        make(tmp_path / str(seconds), checkpoint_interval_s=seconds, num_checkpoints_to_keep=100, unfreeze_blocks=0)
        for seconds in (1e-9, 0)
    ]
    of_group(jobs)
    names = [[checkpoint.name for checkpoint in list_checkpoints(job.checkpoints)] for job in jobs]
    assert names[0] == [f"phase{phase}-epoch{epoch:04d}-step000000" for phase in (1, 2) for epoch in (1, 2)]
    assert set(names[1]) <= set(names[0])
    for job in jobs:
        found = list_checkpoints(job.checkpoints)
        assert {name for one in found for name in one.state["best"].values()} <= {one.name for one in found}


def test_a_run_with_other_data_is_refused(make: Make, tmp_path: Path) -> None:
    """A checkpoint of other data in a member's folder is not replaced, and the field is named."""
    job = make(tmp_path / "one", phase2=PhaseConfig(epochs=0))
    of_group([job])
    other = dataclasses.replace(job, fingerprints={"data": "other"})
    with pytest.raises(ConfigError, match="data: "):
        of_group([other])


def test_runs_that_are_no_group_are_refused(make: Make, tmp_path: Path) -> None:
    """Another batch size, and images instead of features: one line says what is wrong."""
    one, other = make(tmp_path / "one"), make(tmp_path / "other", batch_size=7)
    with pytest.raises(ValueError, match="2 groups"):
        of_group([one, other])
    with pytest.raises(ValueError, match="pooled features"):
        of_group([dataclasses.replace(one, activations={})])
