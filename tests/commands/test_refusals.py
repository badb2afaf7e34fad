"""A command line that is refused ends in one line: what was received, what is expected, what was meant."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pharmclf.cli import run_command
from pharmclf.commands.refusals import closest_flags
from pharmclf.core.errors import ConfigError

WRONG = {
    "train --backbon resnet50": "--backbone",
    "train --epochs 3": "--phase1.epochs or --phase2.epochs",
    "train --learning-rat 1": "--phase1.learning-rate",
    "train --backbone resnet5": "resnet50",
    "train --backbone": "resnet50",
    "train --feature-cache maybe": "auto, always, never",
    "train --phase1.epochs 2.5": "'2.5', expected a whole number",
    "train --head.dense a b": "'a', expected whole numbers",
    "train --head.dropout much": "'much', expected a number",
    "train --seed": "--seed: received no value, expected a whole number",
    "train --phase1.epochs -1": "--phase1.epochs: received -1",
    "train --split.test 2": "--split.test: received 2",
    "train --num-workers 3-1": "--num-workers: received '3-1'",
    "train --overwrite yes": "--overwrite: received 'yes'",
    "train --overwrite --dry-run": "--overwrite and --dry-run",
    "train extra": "'extra'",
    "train -x": "-x",
    "sweep --search gird": "grid",
    "sweep --trials many": "'many'",
    "predict --modle x": "--model",
    "export": "--model and no --out and no --format",
    "export --format onx --model x --out y": "onnx",
    "status --json=3": "--json: received '3'",
    "status --html --watch": "--html: received --watch",
    "fetch-best --metric val": "val_loss",
    "cache --delete-oldr-than 3d": "--delete-older-than",
    "doctor --storag x": "--storage",
    "evaluate --dat x": "--data",
    "prepare --max-invald 3%": "--max-invalid",
    "benchmark stagse": "stages",
    "benchmark plain --backbon x": "--backbone",
    "trian": "train",
}
"""Command line -> what the line names."""


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_refused_in_one_line(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed besides, no box and no usage."""
    with pytest.raises(ConfigError) as caught:
        run_command(line.split())
    assert WRONG[line] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_process_ends_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "pharmclf", "train", "--backbon", "resnet50"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: --backbon: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--bogus", []), ("--backbon", ["--backbone"]), ("--epochs", ["--phase1.epochs", "--phase2.epochs"]), ("--v", [])],
)
def test_a_flag_is_suggested_only_where_it_is_spelled_alike(word: str, meant: list[str]) -> None:
    assert closest_flags(word, ["--backbone", "--phase1.epochs", "--phase2.epochs", "--storage"]) == meant
