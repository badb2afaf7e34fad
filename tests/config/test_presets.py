"""Configurations and search spaces of the package: by name, by path, and by the paths of earlier versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.config import ConfigError, load_yaml
from pharmclf.config.presets import PRESETS, SPACES, find_preset, load_preset, preset_names


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without configurations, which is also the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_found_by_its_name_and_by_its_path_in_earlier_versions(name: str):
    assert find_preset(name, "--config") == PRESETS / f"{name}.yaml"
    earlier = {"sweep": "tune/base.yaml"}.get(name, f"jobs/configs/{name}.yaml")
    for path in (earlier, f"./{earlier}", f"/opt/pharmclf/{earlier}"):
        assert load_preset(path) == load_yaml(PRESETS / f"{name}.yaml")


def test_the_search_space_is_found_in_the_same_ways():
    for text in ("default", "tune/space.yaml", "/opt/pharmclf/tune/space.yaml"):
        assert find_preset(text, "--space", SPACES) == SPACES / "default.yaml"


def test_a_file_of_the_user_overrides_a_path_of_earlier_versions_but_not_a_name(tmp_path: Path):
    """So a name means the same in every folder; ./NAME is the file."""
    for path in ("jobs/configs/demo.yaml", "demo"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("seed: 7")
    assert load_preset("jobs/configs/demo.yaml").seed == 7
    assert load_preset("~/jobs/configs/demo.yaml").seed == 7
    assert load_preset("demo") == load_yaml(PRESETS / "demo.yaml")
    assert load_preset("./demo").seed == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lookalike", ["did you mean lookalikes?", "resnet50"]),
        ("configs/lokalikes.yaml", ["no such file", "did you mean lookalikes?"]),
        ("xyz", ["demo, lookalikes"]),
        ("fortune/base.yaml", ["no such file"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_the_list(text: str, expected: list[str]):
    with pytest.raises(ConfigError) as refused:
        find_preset(text, "--config")
    assert [part for part in expected if part not in str(refused.value)] == []
