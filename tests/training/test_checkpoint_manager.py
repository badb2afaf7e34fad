"""The saver: checkpoints that reach the storage behind the training's back, and are not lost when it is away."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint
from pharmclf.training.checkpoint_manager import CheckpointManager, staging_dir
from pharmclf.training.phases import Position

PRINTS = {"data": "d"}


@pytest.fixture(autouse=True)
def own_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHARMCLF_STORAGE_SPOOL", str(tmp_path / "spool"))


def saver(folder: str, notes: list[str] | None = None, **settings: Any) -> CheckpointManager:
    notes = [] if notes is None else notes
    return CheckpointManager(folder, settings.get("prints", PRINTS), settings.get("keep", 2), notes.append)


def save(to: CheckpointManager, step: int, best: int) -> str:
    """A checkpoint of step `step` that says step `best` to be its phase's best."""
    tensors = {file: {"w": np.full(4, step, np.float32)} for file in ("weights", "optimizer")}
    return to.save(Position(0, 0, step), tensors, {"best": {"phase1": Position(0, 0, best).label}})


def settle(folder: str) -> None:
    """Wait until nothing is left in the spool."""
    while storage.list_folders(staging_dir(folder)):
        time.sleep(0.02)


def steps(folder: str) -> list[int]:
    return [checkpoint.position.step for checkpoint in list_checkpoints(folder)]


def test_the_newest_and_their_best_stay(root: str):
    """Of ten checkpoints three newest are kept, and those that any of these three says to be best."""
    writer = saver(root, keep=3)
    for step in range(1, 11):
        save(writer, step, best=2 if step < 9 else 9)
        settle(root)
    writer.flush()
    assert steps(root) == [2, 8, 9, 10]
    assert list_checkpoints(staging_dir(root)) == []


def test_a_new_saver_goes_on_where_the_last_one_ended(root: str):
    """It knows what stands in the storage, and lets go what its own checkpoints supersede, also what lies ahead."""
    first = saver(root)
    for step in (1, 2, 9):
        save(first, step, best=1)
        settle(root)
    first.flush()
    second = saver(root)
    save(second, 3, best=1)  # 9 was damaged: the run goes on from 2
    second.flush()
    assert steps(root) == [1, 2, 3]


def test_a_flipped_byte_in_the_storage_is_refused_and_the_one_before_taken(root: str, caplog: pytest.LogCaptureFixture):
    """The log names the checkpoint and the file."""
    writer = saver(root)
    for step in (1, 2):
        save(writer, step, best=1)
    writer.flush()
    damaged = f"{root}/{Position(0, 0, 2).label}/weights.safetensors"
    content = bytearray(storage.read_bytes(damaged))
    content[-1] ^= 1
    storage.write_bytes(damaged, bytes(content))
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(root)
    assert found is not None
    assert found[0].position.step == 1
    assert "weights.safetensors has sha256" in caplog.text
    assert "the one before" in caplog.text


def test_a_position_saved_twice_is_written_once(root: str):
    """A checkpoint at the end of an epoch, and one because the next step has no images: the same, and no harm done."""
    writer = saver(root)
    names = {save(writer, 3, best=3) for _ in range(20)}
    writer.flush()
    assert names == {Position(0, 0, 3).label}
    assert steps(root) == [3]


@pytest.mark.s3
def test_saving_does_not_wait_for_a_storage_that_is_away(gateway: Gateway, bucket: str):
    """Ten checkpoints are saved at once while the server is down; when it is back, newest and best arrive."""
    notes: list[str] = []
    writer = saver(bucket, notes)
    save(writer, 1, best=1)
    while not steps(bucket):
        time.sleep(0.05)
    gateway.stop_gateway()
    try:
        began = time.monotonic()
        for step in range(2, 12):
            save(writer, step, best=5 if step >= 5 else 1)
        assert time.monotonic() - began < 5
    finally:
        gateway.start_gateway()
    writer.flush()
    assert steps(bucket) == [5, 11]
    assert list_checkpoints(staging_dir(bucket)) == []


@pytest.mark.s3
def test_what_cannot_be_uploaded_is_kept_and_named_and_goes_up_at_the_next_start(
    gateway: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    """The server is gone at the end of a run: flush raises, the note names checkpoint and spool, nothing is lost."""
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", "1")
    notes: list[str] = []
    writer = saver(bucket, notes)
    gateway.stop_gateway()
    try:
        name = save(writer, 7, best=7)
        with pytest.raises(storage.StorageUnavailableError, match=name):
            writer.flush()
    finally:
        gateway.start_gateway()
    assert staging_dir(bucket) in notes[-1]
    assert name in notes[-1]
    with pytest.raises(ConfigError, match="data: 'd' there, 'other' now"):
        saver(bucket, prints={"data": "other"})
    later: list[str] = []
    saver(bucket, later).close()
    assert len(later) == 1
    assert later[0].startswith(f"uploaded {name} ")
    assert staging_dir(bucket) in later[0]
    assert steps(bucket) == [7]


@pytest.mark.s3
def test_what_the_storage_has_newer_makes_the_spool_void(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another machine has gone on with the run: what this one had kept is behind, and is dropped."""
    local = saver(str(tmp_path / "here"))
    name = save(local, 3, best=3)
    storage.upload_folder(tmp_path / "here" / name, storage.join(staging_dir(bucket), name), last="checkpoint.json")
    monkeypatch.setenv("PHARMCLF_STORAGE_SPOOL", str(tmp_path / "other machine"))
    other = saver(bucket)
    save(other, 8, best=8)
    other.flush()
    monkeypatch.setenv("PHARMCLF_STORAGE_SPOOL", str(tmp_path / "spool"))
    saver(bucket).close()
    assert steps(bucket) == [8]
    assert not storage.exists(staging_dir(bucket))
