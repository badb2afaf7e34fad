"""Checkpoints: whole or not at all, verified, and without code."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.core.hashing import sha256_bytes
from pharmclf.training.checkpoint import (
    Checkpoint,
    CorruptedCheckpointError,
    check_fingerprints,
    delete_old_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from pharmclf.training.phases import Position

FIRST, SECOND, THIRD = Position(0, 1, 0), Position(0, 1, 5), Position(1, 0, 0)
FILES = ["checkpoint.json", "optimizer.safetensors", "weights.safetensors"]


def _tensors(number: float) -> dict[str, dict[str, np.ndarray]]:
    """What a small model would have; a scalar, an empty and a turned array among them."""
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4) + np.float32(number)
    optimizer = {"00000/adam/iteration": np.array(int(number), np.int64), "loss_scale": np.float32(number)}
    return {
        "weights": {"dense/kernel": kernel, "dense/turned": kernel.T, "empty": np.zeros((0, 2), np.float16)},
        "optimizer": optimizer,
    }


def _write(folder: Path, position: Position, number: float) -> Checkpoint:
    return write_checkpoint(str(folder), position, _tensors(number), {"history": [number]}, {"data": "d", "seed": 1})


def _newest(folder: Path) -> Checkpoint:
    found = newest_checkpoint(str(folder))
    assert found is not None
    _assert_tensors(found[1], found[0].state["history"][0])
    return found[0]


def _assert_tensors(found: dict[str, dict[str, np.ndarray]], number: float) -> None:
    expected = _tensors(number)
    assert {file: set(arrays) for file, arrays in found.items()} == {file: set(a) for file, a in expected.items()}
    for file, arrays in expected.items():
        for name, array in arrays.items():
            assert found[file][name].shape == np.shape(array), name
            assert found[file][name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[file][name], array)


def _damage(location: str, change: Callable[[bytearray], Any], file: str = "weights.safetensors") -> None:
    path = Path(location) / file
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))


def _flip(content: bytearray) -> None:
    content[-3] ^= 1


def test_what_is_written_is_read(tmp_path: Path):
    """Position, state, fingerprints and every tensor come back, scalars as scalars, with types and shapes."""
    written = _write(tmp_path, SECOND, 4.0)
    found = newest_checkpoint(str(tmp_path))
    assert found is not None
    assert found[0] == written == read_checkpoint(written.location)
    assert (written.position, written.state, written.name) == (SECOND, {"history": [4.0]}, SECOND.label)
    assert written.fingerprints == {"data": "d", "seed": 1}
    _assert_tensors(found[1], 4.0)


def test_the_record_holds_the_sha256_of_every_other_file(tmp_path: Path):
    """And the schema's version; nothing else lies in the folder."""
    written = _write(tmp_path, FIRST, 1.0)
    assert sorted(path.name for path in Path(written.location).iterdir()) == FILES
    record = storage.read_json(f"{written.location}/checkpoint.json")
    assert record["schema_version"] == 1
    assert record["files"] == {name: sha256_bytes((Path(written.location) / name).read_bytes()) for name in FILES[1:]}


def test_a_run_without_checkpoints_has_none(tmp_path: Path):
    """A folder that is not there yet is no error."""
    assert newest_checkpoint(str(tmp_path / "none")) is None
    assert list_checkpoints(str(tmp_path)) == []


def test_the_newest_is_told_by_its_position_not_by_its_name(tmp_path: Path):
    """Folders renamed against their order, and written in another order: the furthest position is the newest."""
    written = {position: _write(tmp_path, position, number) for number, position in enumerate((THIRD, FIRST, SECOND))}
    for name, position in (("a", THIRD), ("b", SECOND), ("c", FIRST)):
        Path(written[position].location).rename(tmp_path / name)
    assert [checkpoint.name for checkpoint in list_checkpoints(str(tmp_path))] == ["c", "b", "a"]
    assert _newest(tmp_path).name == "a"


def test_without_its_record_a_checkpoint_does_not_exist(tmp_path: Path):
    """Tensors alone are what a killed writer leaves; the one before counts, and reading it directly is refused."""
    _write(tmp_path, FIRST, 1.0)
    torn = _write(tmp_path, SECOND, 2.0)
    (Path(torn.location) / "checkpoint.json").unlink()
    assert _newest(tmp_path).position == FIRST
    with pytest.raises(CorruptedCheckpointError, match=r"checkpoint\.json cannot be read"):
        read_checkpoint(torn.location)


@pytest.mark.parametrize("file", ["weights", "optimizer"])
@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "gone"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
):
    """One flipped bit is enough; the log names the folder and the file."""
    _write(tmp_path, FIRST, 1.0)
    newest = _write(tmp_path, SECOND, 2.0)
    name = f"{file}.safetensors"
    if damage == "gone":
        (Path(newest.location) / name).unlink()
    else:
        _damage(newest.location, _flip if damage == "flipped byte" else bytearray.pop, name)
    with pytest.raises(CorruptedCheckpointError, match=name):
        read_checkpoint(newest.location).tensors(file)
    with caplog.at_level(logging.WARNING):
        assert _newest(tmp_path).position == FIRST
    assert newest.location in caplog.text
    assert name in caplog.text
    assert "the one before" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"schema_version": 1}'])
def test_a_damaged_record_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes):
    """No JSON, no mapping, fields missing: the one before is taken and the log says which was left out."""
    _write(tmp_path, FIRST, 1.0)
    newest = _write(tmp_path, SECOND, 2.0)
    (Path(newest.location) / "checkpoint.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert _newest(tmp_path).position == FIRST
    assert f"checkpoint {newest.location}: checkpoint.json" in caplog.text


def test_a_record_without_a_file_is_damaged(tmp_path: Path):
    """A tensor file that the record does not vouch for is not read."""
    _write(tmp_path, FIRST, 1.0)
    newest = _write(tmp_path, SECOND, 2.0)
    record = storage.read_json(f"{newest.location}/checkpoint.json")
    del record["files"]["optimizer.safetensors"]
    storage.write_json(f"{newest.location}/checkpoint.json", record)
    assert _newest(tmp_path).position == FIRST


def test_when_all_are_damaged_there_is_none(tmp_path: Path):
    """The run begins anew, as if none had been written."""
    _damage(_write(tmp_path, FIRST, 1.0).location, _flip)
    assert newest_checkpoint(str(tmp_path)) is None


def test_another_schema_is_refused_by_its_version(tmp_path: Path):
    """It is whole, so nothing falls back silently: both versions and what to do are named."""
    _write(tmp_path, FIRST, 1.0)
    newest = _write(tmp_path, SECOND, 2.0)
    place = Path(newest.location) / "checkpoint.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"schema_version": 99}))
    for read in (read_checkpoint, lambda _: newest_checkpoint(str(tmp_path))):
        with pytest.raises(ConfigError, match=r"received schema_version 99, expected 1\."):
            read(newest.location)


def test_a_pickle_in_place_of_tensors_is_refused_and_never_run(tmp_path: Path):
    """Also with a record that vouches for its sha256: the format itself knows no code."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    _write(tmp_path, FIRST, 1.0)
    newest = _write(tmp_path, SECOND, 2.0)
    content = pickle.dumps(Evil())
    (Path(newest.location) / "weights.safetensors").write_bytes(content)
    record = storage.read_json(f"{newest.location}/checkpoint.json")
    record["files"]["weights.safetensors"] = sha256_bytes(content)
    storage.write_json(f"{newest.location}/checkpoint.json", record)
    with pytest.raises(CorruptedCheckpointError, match=r"weights\.safetensors"):
        read_checkpoint(newest.location).tensors("weights")
    assert _newest(tmp_path).position == FIRST
    assert not (tmp_path / "ran").exists()


class Crash(BaseException):
    """The process dies here."""


def _crash_at(monkeypatch: pytest.MonkeyPatch, call: int, names: list[str], *, after: bool) -> list[str]:
    """Die at a call to one of storage's functions, before or after it has done its work; returns the calls made."""
    calls: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(location: str, *arguments: Any) -> Any:
            dies = len(calls) == call
            calls.append(f"{name} {location.rsplit('/', 1)[-1]}")
            if dies and not after:
                raise Crash
            result = real(location, *arguments)
            if dies:
                raise Crash
            return result

        return replacement

    for name in names:
        monkeypatch.setattr(storage, name, wrap(name, getattr(storage, name)))
    return calls


WRITES = ["write_bytes", "write_json", "delete_folder"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(5))
def test_a_crash_at_any_step_of_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
):
    """Before and after each step the newest readable checkpoint is the old one, or the new one when all is written."""
    _write(tmp_path, FIRST, 1.0)
    _crash_at(monkeypatch, call, WRITES, after=after)
    with pytest.raises(Crash):
        _write(tmp_path, SECOND, 2.0)
    monkeypatch.undo()
    whole = after and call >= 3  # the record's bytes have been written
    assert _newest(tmp_path).position == (SECOND if whole else FIRST)
    assert _write(tmp_path, SECOND, 3.0).position == _newest(tmp_path).position  # the next try finds its way
    assert _newest(tmp_path).state == {"history": [3.0]}


def test_tensors_are_written_before_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the crashes above go through, step by step."""
    calls = _crash_at(monkeypatch, -1, WRITES, after=False)
    _write(tmp_path, FIRST, 1.0)
    assert calls == [
        f"delete_folder {FIRST.label}",
        "write_bytes weights.safetensors",
        "write_bytes optimizer.safetensors",
        "write_json checkpoint.json",
        "write_bytes checkpoint.json",
    ]


def test_pruning_deletes_the_record_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only the named ones stay; a crash between the steps leaves a folder that is no checkpoint, not half of one."""
    for number, position in enumerate((FIRST, SECOND, THIRD)):
        _write(tmp_path, position, number)
    calls = _crash_at(monkeypatch, 1, ["delete_file", "delete_folder"], after=False)
    with pytest.raises(Crash):
        delete_old_checkpoints(str(tmp_path), [THIRD.label])
    monkeypatch.undo()
    assert calls == ["delete_file checkpoint.json", f"delete_folder {FIRST.label}"]
    assert [checkpoint.position for checkpoint in list_checkpoints(str(tmp_path))] == [SECOND, THIRD]
    delete_old_checkpoints(str(tmp_path), [THIRD.label])
    assert [path.name for path in tmp_path.iterdir()] == [THIRD.label]
    assert _newest(tmp_path).position == THIRD


def test_fingerprints_that_differ_name_the_field():
    """Every differing field with both values, one that is missing on a side too; equal ones pass."""
    check_fingerprints({"data": "a", "seed": 1}, {"seed": 1, "data": "a"}, "checkpoint x")
    with pytest.raises(ConfigError) as caught:
        check_fingerprints({"data": "a", "seed": 1, "old": 3}, {"data": "b", "seed": 1, "new": 4}, "checkpoint x")
    message = str(caught.value)
    assert message.startswith("checkpoint x belongs to another run: data: 'a' there, 'b' now; ")
    assert "new: None there, 4 now" in message
    assert "old: 3 there, None now" in message
    assert "seed" not in message
    assert "Give a new --name" in message
