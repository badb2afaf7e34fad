"""Wrong input of every command: exit code 2, one line that begins with error:, no traceback, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pharmclf.cli import run_command
from pharmclf.commands.registry import COMMANDS
from pharmclf.core.program import run_job

CASES = {
    "train": [
        "--data {tmp}/none", "--data {tmp}/empty", "--data {tmp}/file.txt", "--data https://example.com/x.zip",
        "--data s3://user:secret@bucket/x", "--config nope", "--config lokalikes", "--config {tmp}/none.yaml",
        "--config {tmp}/empty", "--config {tmp}/key.yaml", "--config {tmp}/torn.yaml", "--config {tmp}/twice.yaml",
        "--backbone resnet5", "--weights {tmp}/none.h5", "--weights imagnet", "--name a/b", "--num-workers 3-1",
        "--num-workers many", "--batch-size none", "--batch-size 0", "--microbatch huge", "--phase1.epochs -1",
        "--phase1.epochs 0 --phase2.epochs 0", "--head.dense 0", "--split.test 1.5", "--max-invalid 200%",
        "--target-error 2", "--node-timeout soon", "--eval-data photos", "--eval-data test={tmp}/empty",
        "--eval-data more={tmp}/none", "--mlflow http://user:secret@host", "--feature-cache maybe", "--bogus",
        "--overwrite --dry-run", "--storage /proc/none --num-workers 0", "stray",
    ],
    "sweep": [
        "--num-workers 2", "--trials 0", "--trials many", "--search gird", "--space nope", "--space {tmp}/empty",
        "--space {tmp}/torn.yaml", "--space {tmp}/key.yaml", "--data {tmp}/none", "--winner best", "--bogus",
    ],
    "predict": [
        "", "--model {tmp}/none --input {tmp}/empty --output {tmp}/o.csv", "--modle x",
        "--model {tmp}/none --input {tmp}/empty --output {tmp}/o.txt", "--model {tmp}/empty --output {tmp}/o.csv",
        "--model {tmp}/empty --input {tmp}/list.csv --output {tmp}/list.csv", "--part-size 0",
        "--model m --input i --output o.csv --threshold 2", "--model m --input i --output o.csv --num-workers x",
    ],
    "serve": [
        "", "--model {tmp}/none", "--model {tmp}/empty", "--model {tmp}/none {tmp}/none", "--model https://a.org/x",
        "--model m --replicas 3-1", "--model m --port 0", "--model m --max-bytes many",
        "--model m --token-file {tmp}/none",
        "--model m --no-token --token-file {tmp}/file.txt", "--modle x",
    ],
    "evaluate": ["", "--model {tmp}/none", "--model {tmp}/empty", "--model {tmp}/none --dat x"],
    "export": [
        "", "--model {tmp}/none --out {tmp}/new --format onnx", "--model m --out {tmp}/new --format onx",
        "--model m --out {tmp}/new --format onnx --tflite int8", "--model {tmp}/none --out {tmp} --format onnx",
    ],
    "fetch-best": [
        "", "--storage {tmp}/none --list", "--storage {tmp}/empty --list", "--out {tmp} --storage {tmp}/empty",
        "--metric val", "--name a --experiment b --list", "--otu x",
    ],
    "status": [
        "--storage {tmp}/none", "--storage {tmp}/empty", "--html --json", "--json=3", "--storage {tmp}/none --html",
    ],
    "doctor": ["--storag x", "--num-workers 3-1", "--json=1"],
    "benchmark": ["stagse", "plain --bogus", "scaling --link-gbit x"],
    "prepare": ["--data {tmp}/none", "--data {tmp}/empty", "--data {tmp}/one", "--max-invalid x"],
    "cache": ["--storage {tmp}/none", "--delete-older-than 3q", "--delete-down-to much", "--older 3"],
}  # fmt: skip
LINES = [f"{command} {line}" for command, lines in CASES.items() for line in lines]
LINES += ["trian", "--data x", "fetchbest --list"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders and files that are no input of any command; also the working directory."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "a.jpg").write_bytes(b"no image")
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "list.csv").write_text("path\n")
    (tmp_path / "key.yaml").write_text("seed: 1\nbackbon: resnet50\n")
    (tmp_path / "torn.yaml").write_text("seed: [1\n")
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_wrong_input() -> None:
    assert set(CASES) == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_wrong_input_ends_with_code_2_and_one_line(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, neither in the working directory nor elsewhere in the folder."""
    before = sorted(place.rglob("*"))
    words = line.format(tmp=place).split()
    with pytest.raises(SystemExit) as ended:
        run_job(lambda: run_command(words))
    shown = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2, shown
    first = next(text for text in shown if not text.startswith(("note: ", "warning: ")))
    assert first.startswith("error: ")
    assert first == shown[-1]
    assert not re.search(r"Traceback|Error: |[╭│╰]|\[Errno|secret", "\n".join(shown))
    assert sorted(place.rglob("*")) == before
