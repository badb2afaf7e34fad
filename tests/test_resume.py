"""What a command finds in the folder of its run: nothing trained, a run to resume or to extend, or a complete one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.epoch_records import epoch_record
from support.programs import final
from support.run_folders import small_config, write_record

import pharmclf
from pharmclf import storage
from pharmclf.config import ConfigError, HeadConfig, PhaseConfig, RunConfig, StoppingConfig
from pharmclf.resume import RunStart, inspect_run_folder, reopen_complete_run
from pharmclf.runs.final_evaluation import untested_datasets
from pharmclf.runs.record import clear_folder, read_record, result_settings
from pharmclf.training.checkpoint import list_checkpoints, write_checkpoint
from pharmclf.training.lr_schedule import EarlyStoppingState
from pharmclf.training.phases import Position

BEGAN = {"phase1": PhaseConfig(epochs=4), "phase2": PhaseConfig(epochs=2)}


def _run(root: str, state: str, *positions: Position, weights: str = "imagenet", **settings: Any) -> str:
    """A run's folder with its settings, and a checkpoint at each position."""
    folder = write_record(root, "run", state, **BEGAN | settings)
    record = storage.read_json(f"{folder}/run.json")
    record["settings"] = result_settings(small_config(**BEGAN | settings))
    record["fingerprints"] |= {"weights": weights, "settings": "as it began"}
    storage.write_json(f"{folder}/run.json", record)
    for position in positions:
        tensors = {"weights": {"kernel": np.zeros(2, np.float32)}}
        write_checkpoint(f"{folder}/checkpoints", position, tensors, {"best": {}}, record["fingerprints"])
    return folder


def _look(folder: str, *, overwrite: bool = False, **settings: Any) -> tuple[RunStart, list[str]]:
    said: list[str] = []
    return inspect_run_folder(small_config(**BEGAN | settings), folder, said.append, overwrite=overwrite), said


def test_an_empty_folder_begins_a_run(tmp_path):
    """Nothing is said, and nothing is cleared."""
    assert _look(f"{tmp_path}/run") == (RunStart(), [])
    assert _look(f"{tmp_path}/run", overwrite=True) == (RunStart(), [])


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_run_that_has_trained_nothing_begins_again_with_any_settings(tmp_path, state: str):
    """Without a checkpoint the name is free: seed, backbone and weights may be others, and one line says so."""
    folder = _run(str(tmp_path), state)
    start, said = _look(folder, seed=7, backbone="resnet50")
    assert (start.record, start.grown, len(said)) == (None, {}, 1)
    assert "has trained nothing, and begins again with the settings of this command" in said[0]
    for name in ("status.json", "mlflow.json", "notes.txt", "hardware/node.jsonl"):
        storage.write_bytes(f"{folder}/{name}", b"{}")
    clear_folder(folder, start.clears)
    left = sorted(entry.location.removeprefix(f"{folder}/") for entry in storage.list_files(folder))
    assert left == ["hardware/node.jsonl", "notes.txt", "run.json"]


def test_a_run_with_a_checkpoint_keeps_its_settings(tmp_path):
    """Another seed is refused by name, with both values and all three remedies; the same settings resume."""
    folder = _run(str(tmp_path), "failed", Position(0, 1, 0))
    with pytest.raises(
        ConfigError, match=r"seed: 0 there, 7 now.*new --name, the settings of that run, or --overwrite"
    ):
        _look(folder, seed=7)
    with pytest.raises(ConfigError, match="weights: 'imagenet' there, 'none' now"):
        _look(folder, weights="none")
    start, said = _look(folder)
    assert start.record is not None
    assert (start.clears, said) == (None, [])


def test_overwrite_deletes_all_but_the_lease(tmp_path):
    """Also of a complete run, and of one whose run.json is damaged; a folder without a run is left alone."""
    folder = _run(str(tmp_path), "complete", Position(1, 2, 0))
    storage.write_bytes(f"{folder}/lease.json", b"{}")
    storage.write_bytes(f"{folder}/model/model.keras", b"model")
    start, said = _look(folder, overwrite=True, seed=7)
    assert start == RunStart(clears=())
    assert said == [f"note: --overwrite: the run in {folder} is deleted, and a new one begins"]
    clear_folder(folder, ())
    assert [entry.location for entry in storage.list_files(folder)] == [f"{folder}/lease.json"]
    storage.write_bytes(f"{folder}/run.json", b"{")
    assert _look(folder, overwrite=True)[0] == RunStart(clears=())
    storage.write_json(f"{folder}/run.json", {"of": "another program"})
    assert _look(folder, overwrite=True)[0] == RunStart()


def test_a_setting_that_an_earlier_version_did_not_know_has_its_default(tmp_path):
    """The run resumes with the default, and is refused with another value."""
    folder = _run(str(tmp_path), "interrupted", Position(0, 1, 0))
    record = storage.read_json(f"{folder}/run.json")
    del record["settings"]["augment"]["vertical_flip"], record["settings"]["optimizer"]
    storage.write_json(f"{folder}/run.json", record)
    start = _look(folder)[0]
    assert start.record is not None
    assert start.record == read_record(folder)
    changed = dataclasses.replace(RunConfig().augment, vertical_flip=True)
    with pytest.raises(ConfigError, match=r"augment\.vertical_flip: False there, True now"):
        _look(folder, augment=changed)


@pytest.mark.parametrize(
    ("state", "position", "epochs", "grown"),
    [
        ("complete", Position(1, 2, 0), (4, 5), {"phase2.epochs": (2, 5)}),
        ("interrupted", Position(1, 1, 3), (4, 5), {"phase2.epochs": (2, 5)}),
        ("interrupted", Position(0, 3, 1), (6, 5), {"phase1.epochs": (4, 6), "phase2.epochs": (2, 5)}),
    ],
)
def test_epochs_may_grow_where_nothing_trained_depends_on_their_number(
    tmp_path, state: str, position: Position, epochs: tuple[int, int], grown: dict[str, tuple[int, int]]
):
    """At the end, on the way, and of a phase that has not begun; the run is no longer complete, and it is said."""
    folder = _run(str(tmp_path), state, Position(0, 1, 0), position)
    phases = {name: PhaseConfig(epochs=count) for name, count in zip(("phase1", "phase2"), epochs, strict=True)}
    start, said = _look(folder, **phases)
    assert (start.grown, start.is_complete) == (grown, False)
    assert said == [
        f"note: {name} is {there} there and {now} now: training continues from the newest checkpoint"
        for name, (there, now) in grown.items()
    ]


@pytest.mark.parametrize(
    ("epochs", "words"),
    [((4, 1), "phase2.epochs: 2 there, 1 now"), ((5, 2), "phase1.epochs: 4 there, 5 now"), ((5, 3), "phase1.epochs")],
)
def test_fewer_epochs_and_more_of_a_phase_that_is_over_are_refused(tmp_path, epochs: tuple[int, int], words: str):
    """What has been trained would have been another."""
    folder = _run(str(tmp_path), "complete", Position(1, 2, 0))
    with pytest.raises(ConfigError, match=f"belongs to another run: {words}"):
        _look(folder, phase1=PhaseConfig(epochs=epochs[0]), phase2=PhaseConfig(epochs=epochs[1]))


def test_a_cosine_schedule_is_not_extended_and_the_model_is_named_as_the_way_out(tmp_path):
    """Its rates depend on the number of epochs; where the phase has not begun they may be any."""
    cosine = PhaseConfig(epochs=2, schedule="cosine")
    more = dataclasses.replace(cosine, epochs=3)
    folder = _run(str(tmp_path / "one"), "complete", Position(1, 2, 0), phase2=cosine)
    with pytest.raises(ConfigError, match=rf"2 there, 3 now.*ends at epoch 2.*--name NEW --init-from {folder}"):
        _look(folder, phase2=more)
    folder = _run(str(tmp_path / "two"), "interrupted", Position(0, 4, 0), phase2=cosine)
    assert _look(folder, phase2=more)[0].grown == {"phase2.epochs": (2, 3)}


def test_image_sizes_that_are_shares_of_the_epochs_keep_their_number(tmp_path):
    """Of 4 epochs two were at 32 pixels, of 8 four would be; a number of epochs at 32 stays what it is."""
    for text, grows in (("32-64", False), ("32x1-64", True)):
        sized = PhaseConfig(epochs=4, image_size=text)
        folder = _run(str(tmp_path / text), "interrupted", Position(1, 3, 0), phase2=sized, image_size=64)
        more = {"phase2": dataclasses.replace(sized, epochs=8), "image_size": 64}
        if grows:
            assert _look(folder, **more)[0].grown == {"phase2.epochs": (4, 8)}
            continue
        with pytest.raises(ConfigError, match=r"phase2\.epochs: 4 there, 8 now, and its image sizes 32-64 are shares"):
            _look(folder, **more)


def _stopped(folder: str, phase: str, epochs: int, since_best: int) -> None:
    """Let the newest checkpoint say that a phase has trained some epochs, the last ones without a better accuracy."""
    location = f"{list_checkpoints(f'{folder}/checkpoints')[-1].location}/checkpoint.json"
    content = storage.read_json(location)
    history = [epoch_record(phase, number).to_dict() for number in range(epochs)]
    content["state"]["history"] = content["state"].get("history", []) + history
    monitor = EarlyStoppingState(best_accuracy=0.5, best_epoch=0, since_best=since_best)
    content["state"]["monitors"] = content["state"].get("monitors", {}) | {phase: monitor.to_dict()}
    storage.write_json(location, content)


@pytest.mark.parametrize("patience", [3, 0])
@pytest.mark.parametrize(("state", "position"), [("complete", Position(1, 2, 0)), ("interrupted", Position(0, 3, 0))])
def test_patience_may_grow_where_it_has_ended_no_phase_before_the_current_one(
    tmp_path, state: str, position: Position, patience: int
):
    """0 is never. Less of it is refused, and so is more where it ended a phase that another one has followed."""
    patient, phase = StoppingConfig(early_patience=2), f"phase{position.phase + 1}"
    six = {"phase2": PhaseConfig(epochs=6), "stopping": patient}
    folder = _run(str(tmp_path), state, position, **six)
    _stopped(folder, phase, position.epoch, 2)
    start, said = _look(folder, **six | {"stopping": StoppingConfig(early_patience=patience)})
    assert (start.grown, start.is_complete) == ({"stopping.early_patience": (2, patience)}, False)
    assert said == [
        f"note: stopping.early_patience is 2 there and {patience} now: training continues from the newest checkpoint"
    ]
    with pytest.raises(ConfigError, match=r"stopping\.early_patience: 2 there, 1 now"):
        _look(folder, **six | {"stopping": StoppingConfig(early_patience=1)})
    if phase == "phase2":
        _stopped(folder, "phase1", 3, 2)
        with pytest.raises(ConfigError, match=rf"early_patience: 2 there.*it ended phase1, .*--init-from {folder}"):
            _look(folder, **six | {"stopping": StoppingConfig(early_patience=patience)})


def test_a_complete_run_that_would_train_no_more_stays_complete_and_says_why(tmp_path):
    """More epochs of a phase that patience ended, and more patience for one that has had all of its epochs."""
    patient = StoppingConfig(early_patience=2)
    folder = _run(str(tmp_path / "one"), "complete", Position(1, 2, 0), phase2=PhaseConfig(epochs=6), stopping=patient)
    _stopped(folder, "phase2", 2, 2)
    start, said = _look(folder, phase2=PhaseConfig(epochs=9), stopping=patient)
    assert start.is_complete
    ended = "phase2 has ended by stopping.early_patience 2"
    assert said == [f"note: the run trains no more with another phase2.epochs: {ended}"]
    both = {"phase2": PhaseConfig(epochs=9), "stopping": StoppingConfig(early_patience=3)}
    assert set(_look(folder, **both)[0].grown) == {"phase2.epochs", "stopping.early_patience"}
    folder = _run(str(tmp_path / "two"), "complete", Position(1, 2, 0), stopping=patient)
    start, said = _look(folder, stopping=StoppingConfig(early_patience=3))
    assert start.is_complete
    assert said == ["note: the run trains no more with another stopping.early_patience: phase2 has all of its epochs"]


def test_a_complete_run_says_so_whatever_has_become_of_its_images(tmp_path):
    """The folder of the images is gone, and no manifest is there: the numbers of result.json and the last line."""
    gone = f"{tmp_path}/gone"
    folder = _run(str(tmp_path), "complete", Position(1, 2, 0))
    record = storage.read_json(f"{folder}/run.json")
    record["config"]["data"] = gone
    storage.write_json(f"{folder}/run.json", record)
    result = {
        "name": "run", "backbone": "efficientnet_lite0", "workers": 0, "train_images": 9, "seconds_total": 1.0,
        "val_images": 3, "val_accuracy": 1.0, "val_accuracy_interval": [0.4, 1.0], "test_images": 3,
        "test_accuracy": 0.75, "test_accuracy_interval": [0.3, 0.9], "test_macro_f1": 0.7,
        "test_macro_f1_interval": [0.3, 0.9], "phases": [], "best_checkpoint": "x",
    }  # fmt: skip
    storage.write_json(f"{folder}/result.json", result)
    config = small_config(**BEGAN, data=gone)
    start = inspect_run_folder(config, folder, print, overwrite=False)
    assert start.is_complete
    assert start.record is not None
    said: list[str] = []
    assert reopen_complete_run(dataclasses.replace(config, target_error="5%"), folder, start.record, said.append) == 0
    assert said.pop(0) == "note: the threshold of the run stays that of --target-error 1%; 5% is not used"
    assert ["test", "accuracy", "3", "0.750", "0.300-0.900"] in [line.split() for line in said[0].splitlines()]
    assert said[1] == (
        f"the run {folder} is complete already; give more --phase2.epochs or --stopping.early-patience to extend it, "
        "another --name, or --overwrite"
    )
    with pytest.raises(ConfigError, match=r"lost its manifest.*pharmclf evaluate"):
        reopen_complete_run(dataclasses.replace(config, eval_data=(f"lamp={gone}",)), folder, start.record, print)


def test_a_set_that_was_tested_is_known_by_name_and_place(tmp_path):
    """Another place under the same name, and another name of the same place, are tested."""
    result = {"extra_tests": [{"name": "lamp", "source": f"{tmp_path}/a"}]}
    asked = RunConfig(head=HeadConfig(), eval_data=(f"lamp={tmp_path}/a", f"day={tmp_path}/a"))
    assert untested_datasets(asked, result) == {"day": f"{tmp_path}/a"}
    assert untested_datasets(RunConfig(eval_data=(f"lamp={tmp_path}/b",)), result) == {"lamp": f"{tmp_path}/b"}
    assert untested_datasets(RunConfig(), result) == {}


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_with_more_patience_ends_as_one_that_had_it_from_the_start(
    shared_ray: None, drawn_images: str, tmp_path: Path
):
    """Phase 2 ends early, is extended over the rest of its cosine schedule, and equals the patient one bit for bit."""
    settings = {
        "data": drawn_images, "image_size": 64, "batch_size": 10, "unfreeze_blocks": 1, "head": {"dense": []},
        "phase1": {"epochs": 2, "learning_rate": 1e-2}, "phase2": {"epochs": 6, "schedule": "cosine"},
        "num_workers": "0", "skip_checks": True, "quiet": True,
    }  # fmt: skip
    never, one = {"early_patience": 0}, {"early_patience": 1}
    patient = pharmclf.train(name="run", storage=tmp_path / "patient", stopping=never, **settings)
    settings |= {"name": "run", "storage": tmp_path / "extended"}
    early = len(pharmclf.train(stopping=one, **settings).history)
    assert early < len(patient.history) == 8
    extended = pharmclf.train(stopping=never, **settings)
    kept = ("phase", "epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate")
    histories = [[[getattr(epoch, name) for name in kept] for epoch in run.history] for run in (patient, extended)]
    assert histories[0] == histories[1]
    ours, theirs = (final(tmp_path / name / "run") for name in ("extended", "patient"))
    for file in ("weights", "optimizer"):
        assert all(np.array_equal(ours[file][name], array) for name, array in theirs[file].items())
    assert extended.result["test_accuracy"] == patient.result["test_accuracy"]
