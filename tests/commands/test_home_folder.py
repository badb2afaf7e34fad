"""A ~ at the beginning of a path is the home folder, in every flag and setting, also where no shell has expanded it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.commands.registry import load_command
from pharmclf.config import expand_home, from_dict, load_yaml

FLAGS = {
    "train": ["--data=~/x", "--storage=~/x", "--weights=~/x", "--config=~/my.yaml"],
    "sweep": ["--space=~/x"],
    "predict": ["--model=~/x", "--input=~/x", "--output=~/x.csv"],
    "evaluate": ["--model=~/x", "--data=~/x", "--out=~/x", "--storage=~/x"],
    "export": ["--model=~/x", "--out=~/x", "--format=onnx", "--images=~/x"],
    "fetch-best": ["--out=~/x", "--storage=~/x"],
    "status": ["--storage=~/x"],
    "cache": ["--storage=~/x"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("data: ~/photos\neval_data: [more=~/more]\n")
    return tmp_path


@pytest.mark.parametrize("command", FLAGS)
def test_a_flag_names_a_path_below_the_home_folder(command: str, home: Path) -> None:
    """All values that were given are paths below it."""
    parsed = load_command(command).PARSER.parse(FLAGS[command])
    text = repr(parsed)
    assert "~" not in text
    assert text.count(f"{home}/x") == sum("~/x" in flag for flag in FLAGS[command])


def test_a_setting_names_a_path_below_the_home_folder(home: Path) -> None:
    config = load_yaml(home / "my.yaml")
    assert (config.data, config.eval_locations) == (f"{home}/photos", {"more": f"{home}/more"})
    assert from_dict({"storage": "~/runs"}).storage == f"{home}/runs"


def test_a_flag_of_several_sets_names_paths_below_the_home_folder(home: Path) -> None:
    _, config = load_command("train").PARSER.parse(["--eval-data", "one=~/a", "two=~/b"])
    assert config.eval_locations == {"one": f"{home}/a", "two": f"{home}/b"}


@pytest.mark.parametrize("text", ["a~/x", "s3://bucket/~/x", "x=y~", "~no-such-user/x", ""])
def test_other_text_stays_as_it_is(text: str, home: Path) -> None:
    assert expand_home(text) == text
