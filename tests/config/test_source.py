"""Errors of a YAML file name the place: file, line and column of the key, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.config import RunConfig, load_yaml
from pharmclf.config.source import Source, read_yaml
from pharmclf.core.errors import ConfigError
from pharmclf.tuning.space_file import load_space

CONFIGS = {
    "unknown key": ("seed: 1\nbackbon: resnet50\n", 2, 1),
    "unknown key of a section": ("head:\n  dense: [8]\n  droput: 0.1\n", 3, 3),
    "wrong type": ("seed: 1\nphase1:\n  epochs: many\n", 3, 3),
    "out of range": ("phase1:\n    epochs: -1\n", 2, 5),
    "no choice": ("\n\nbackbone: resnet5\n", 3, 1),
    "a word that is no number": ("batch_size: manual\n", 1, 1),
    "a text that is checked": ("seed: 1\nnum_workers: 4-2\n", 2, 1),
    "an earlier name": ("seed: 1\nworkers: 4-2\n", 2, 1),
    "no section": ("seed: 1\nphase1: 3\n", 2, 1),
    "more than a float holds": (f"phase1:\n  learning_rate: 1{400 * '0'}\n", 2, 3),
    "flow style": ("{seed: 1, head: {droput: 1}}\n", 1, 18),
    "twice": ("seed: 1\nname: a\nseed: 2\n", 3, 1),
    "not closed": ("seed: 1\nhead: {dense: [8}\n", 2, 17),
    "a tab": ("seed: 1\n\tname: a\n", 2, 1),
    "no colon": ("seed: 1\nname a\nhead: 3\n", 2, 1),
}
SPACES = {
    "unknown parameter": ("head.dropout: {low: 0, high: 1}\nhead.dropuot: {low: 0, high: 1}\n", 2, 1),
    "unknown key": ("head.dropout:\n  low: 0\n  hihg: 1\n", 3, 3),
    "no number": ("head.dropout: {low: few, high: 1}\n", 1, 16),
    "empty range": ("\nhead.dropout: {low: 1, high: 0}\n", 2, 1),
    "a value that no run has": ("head.dropout: {low: 0, high: 7}\n", 1, 1),
    "a condition": ("head.dropout:\n  low: 0\n  high: 1\n  when: {unfreeze_blocks: {low: 1}}\n", 4, 3),
}


def refusal(load: object, path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)  # type: ignore[operator]
    return str(caught.value)


@pytest.mark.parametrize("case", CONFIGS)
def test_an_error_in_a_configuration_names_line_and_column(case: str, tmp_path: Path) -> None:
    text, line, column = CONFIGS[case]
    path = tmp_path / "my.yaml"
    assert refusal(load_yaml, path, text).startswith(f"{path}:{line}:{column}: ")


@pytest.mark.parametrize("uri", ["https://me:secret@host", "mysql+pymysql://me:secret@host/runs"])
def test_credentials_in_the_address_of_a_tracking_server_are_refused(uri: str) -> None:
    """They would land in run.json."""
    with pytest.raises(ConfigError, match="mlflow: received a URI with credentials in it"):
        RunConfig(mlflow=uri)


@pytest.mark.parametrize("case", SPACES)
def test_an_error_in_a_search_space_names_line_and_column(case: str, tmp_path: Path) -> None:
    text, line, column = SPACES[case]
    path = tmp_path / "space.yaml"
    assert refusal(lambda file: load_space(file, RunConfig()), path, text).startswith(f"{path}:{line}:{column}: ")


def test_a_key_without_a_place_has_that_of_the_section_around_it() -> None:
    source = Source("my.yaml", {"head": (3, 1), "head.dense": (4, 3)})
    assert source.at("head.dense") == "my.yaml:4:3"
    assert source.at("head.dropout") == "my.yaml:3:1"
    assert source.at("seed") == Source("my.yaml").at("head") == "my.yaml"


def test_aliases_that_lead_back_end(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("head: &a {dense: *a}\n")
    assert read_yaml(path, "--config")[1].places["head.dense"] == (1, 11)


def test_a_date_is_text(tmp_path: Path) -> None:
    """So that a name may look like one, and one that no calendar has is an error with a place."""
    path = tmp_path / "my.yaml"
    path.write_text("name: 2026-02-31\n")
    assert load_yaml(path).name == "2026-02-31"
