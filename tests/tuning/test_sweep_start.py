"""What a sweep finds in its folder: nothing trained, trials to continue, or a complete sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.run_folders import small_config, write_record

from pharmclf import storage
from pharmclf.config import ConfigError, to_dict
from pharmclf.tuning.sweep_start import inspect_sweep_folder, reopen_complete_sweep


def _sweep(folder: Path, state: str, **more: Any) -> str:
    """A sweep's folder with one trial that has no checkpoint."""
    record = {"settings": {}, "fingerprints": {"data": "d"}, "state": state, "config": to_dict(small_config())}
    storage.write_json(f"{folder}/sweep.json", record | more)
    write_record(str(folder), "trials/0000", "failed")
    return str(folder)


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_sweep_without_a_checkpoint_of_any_trial_begins_again(tmp_path: Path, state: str):
    """As one whose trials all failed for want of memory; the first checkpoint of a trial makes it one to resume."""
    folder, said = _sweep(tmp_path, state), list[str]()
    assert inspect_sweep_folder(folder, said.append, overwrite=False) == (None, True)
    assert said == [
        f"note: the sweep in {folder} has trained nothing, and begins again with the settings of this command"
    ]
    storage.write_bytes(f"{folder}/trials/0000/checkpoints/phase1-epoch0001-step000000/checkpoint.json", b"{}")
    record, clears = inspect_sweep_folder(folder, said.append, overwrite=False)
    assert (record or {})["state"] == state
    assert not clears
    assert len(said) == 1


def test_overwrite_replaces_a_sweep_whatever_it_holds(tmp_path: Path):
    """Complete, or with a damaged record; an empty folder, and one of something else, are left alone."""
    said: list[str] = []
    assert inspect_sweep_folder(str(tmp_path), said.append, overwrite=True) == (None, False)
    folder = _sweep(tmp_path, "complete")
    assert inspect_sweep_folder(folder, said.append, overwrite=True) == (None, True)
    storage.write_bytes(f"{folder}/sweep.json", b"{")
    assert inspect_sweep_folder(folder, said.append, overwrite=True) == (None, True)
    with pytest.raises(ConfigError, match="not JSON"):
        inspect_sweep_folder(folder, said.append, overwrite=False)
    assert said == [f"note: --overwrite: the sweep in {folder} is deleted with its trials, and a new one begins"] * 2


def test_a_complete_sweep_says_so_though_its_images_are_gone(tmp_path: Path):
    """Its table, and the last line."""
    base = small_config(data=f"{tmp_path}/gone")
    folder = _sweep(
        tmp_path, "complete", config=to_dict(base), table="the table", winner_folder=f"{tmp_path}/trials/0000"
    )
    record, _ = inspect_sweep_folder(folder, print, overwrite=False)
    said: list[str] = []
    assert reopen_complete_sweep(base, folder, record or {}, said.append) == 0
    assert said[0] == "the table"
    assert said[1].startswith(f"the sweep {folder} is complete already; give more --trials")
