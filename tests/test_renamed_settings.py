"""Earlier names of settings: accepted in files, records and as flags; records of runs keep them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pharmclf.commands.parser import RunParser, _note_once
from pharmclf.config import RENAMED, ConfigError, RunConfig, from_dict, load_yaml, to_dict, to_record, to_yaml

ROOT = Path(__file__).parents[1]
OLD_FLAGS = [
    "--workers=2", "--max-bad", "1%", "--checkpoint-every-s", "7", "--keep-checkpoints", "4", "--activations", "never",
    "--activations-dtype=float32", "--failures", "5", "--wait-for-nodes=90s", "--hang-after-s=8", "--hardware-every-s",
    "0", "--allow-open-cluster", "True", "--extra-test=a=x", "--extra-test", "b=y", "c=z", "--max-error=2%",
]  # fmt: skip
CONFIG = RunConfig(
    num_workers="2", max_invalid="1%", checkpoint_interval_s=7.0, num_checkpoints_to_keep=4, feature_cache="never",
    feature_cache_dtype="float32", max_failures=5, node_timeout="90s", step_timeout_s=8.0, monitor_interval_s=0.0,
    allow_unauthenticated_cluster=True, eval_data=("a=x", "b=y", "c=z"), target_error="2%",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


PARSER = RunParser("train", "A job.", Options(), preset="demo")


def test_every_renamed_setting_is_one_of_the_configuration():
    names = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(RENAMED.values()) <= names
    assert not set(RENAMED) & names


def test_earlier_flags_are_accepted_with_a_note(capsys: pytest.CaptureFixture[str]):
    """Each is named once, whatever is parsed again; the current ones are silent."""
    _note_once.cache_clear()
    for _ in range(2):
        _, config = PARSER.parse(OLD_FLAGS)
        for name in RENAMED.values():
            assert getattr(config, name) == getattr(CONFIG, name), name
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == len(RENAMED)
    assert "note: --failures is now --max-failures" in notes
    PARSER.parse(["--num-workers=2", "--feature-cache=auto"])
    assert capsys.readouterr().err == ""


def test_help_shows_the_current_flags_only(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        PARSER.parse(["--help"])
    shown = capsys.readouterr().out
    for earlier, name in RENAMED.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"--{earlier.replace('_', '-')} " not in shown


def test_earlier_names_are_accepted_in_files(tmp_path: Path):
    """A file of an earlier version gives the same configuration; to_yaml writes the current names."""
    text = to_yaml(CONFIG)
    for earlier, name in RENAMED.items():
        text = text.replace(f"\n{name}:", f"\n{earlier}:")
    assert "\nfailures: 5\n" in text
    (tmp_path / "run.yaml").write_text(text)
    assert load_yaml(tmp_path / "run.yaml") == CONFIG
    assert set(RENAMED.values()) <= set(to_dict(CONFIG))


def test_a_setting_by_both_names_is_refused():
    with pytest.raises(ConfigError, match="received workers and num_workers"):
        from_dict({"workers": 1, "num_workers": 2})


def test_records_of_runs_keep_the_earlier_names():
    """What reads run.json finds its keys, and a run of an earlier version is resumed."""
    record = json.loads(json.dumps(to_record(CONFIG)))
    assert set(RENAMED) <= set(record)
    assert not set(RENAMED.values()) & set(record)
    assert from_dict(record) == CONFIG
