import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pharmclf.config import ConfigError, DemoConfig, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import count_table, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images, and one empty file."""
    rng = np.random.default_rng(0)
    for number in range(20):
        place = tmp_path / "pills" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(place / f"{number}.png")
    (tmp_path / "pills" / "a" / "nothing.jpg").touch()
    return tmp_path


def test_prepare_writes_manifest_and_quarantine(folder):
    """The folder of the run holds what prepare returns; the same seed gives the same fingerprint."""
    config = RunConfig(data=str(folder / "pills"), storage=str(folder / "runs"))
    made = prepare(config, str(folder / "runs" / "one"))
    assert count_table(made) == [("a", 6, 2, 2), ("b", 6, 2, 2), ("all", 12, 4, 4)]
    assert Manifest.read(str(folder / "runs" / "one" / "manifest.parquet")).fingerprint == made.fingerprint
    assert pd.read_csv(folder / "runs" / "one" / "quarantine.csv")["status"].tolist() == ["empty"]
    assert len(list((folder / "runs" / "manifests").iterdir())) == 1
    again = prepare(config, str(folder / "runs" / "two"))
    assert again.fingerprint == made.fingerprint
    other = prepare(RunConfig(data=config.data, storage=config.storage, seed=1), str(folder / "runs" / "three"))
    assert other.fingerprint != made.fingerprint


def test_too_many_bad_images_leave_their_list_in_the_folder(folder):
    """--max-bad refuses, and the quarantine file is there to be worked through."""
    config = RunConfig(data=str(folder / "pills"), storage=str(folder / "runs"), max_bad="1%")
    with pytest.raises(ConfigError, match="1 of 21 images are bad"):
        prepare(config, str(folder / "runs" / "one"))
    assert (folder / "runs" / "one" / "quarantine.csv").is_file()


def test_splits_that_tear_copies_are_noted(folder):
    """A list may put copies into two splits; the notes say so."""
    paths = sorted((folder / "pills").glob("*/*.png"))
    names = ["train", "validation", "test", "train"] * 5
    rows = {"path": [*paths, paths[0]], "label": [p.parent.name for p in [*paths, paths[0]]], "split": [*names, "test"]}
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    made = prepare(RunConfig(data=str(folder / "list.csv"), storage=str(folder / "runs")), str(folder / "runs" / "one"))
    assert any("copies in several splits" in note for note in made.notes)


def test_the_demo_is_drawn_below_the_storage(tmp_path):
    """data: demo draws its images once, and ten products come out, without a single group."""
    config = RunConfig(storage=str(tmp_path), demo=DemoConfig(images_per_class=5))
    made = prepare(config, str(tmp_path / "demo"))
    assert len(made.class_names) == 10
    assert len(made.ok) == 50
    assert made.table["group"].nunique() == 50


def run_job(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_job_prints_counts_and_bad_files_and_refuses_in_one_line(folder):
    """Exit code 0 with the counts, the quarantined file and its reason; 2 with one line where nothing is there."""
    done = run_job("--data", "pills", "--seed", "3", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "all" in done.stdout
    assert "nothing.jpg: empty" in done.stdout
    refused = run_job("--data", "missing", cwd=folder)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr
