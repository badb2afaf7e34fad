import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pharmclf.config import ConfigError, DemoConfig, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import imbalance_note, prepare_manifest, split_counts

ROOT = Path(__file__).parents[2]


def draw(rng):
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((48, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images, and one empty file."""
    rng = np.random.default_rng(0)
    for number in range(20):
        place = tmp_path / "pills" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        draw(rng).save(place / f"{number}.png")
    (tmp_path / "pills" / "a" / "nothing.jpg").touch()
    return tmp_path


def test_prepare_writes_manifest_and_quarantine(folder):
    """The folder of the run holds what prepare returns; the same seed gives the same fingerprint."""
    config = RunConfig(data=str(folder / "pills"), storage=str(folder / "runs"))
    made = prepare_manifest(config, str(folder / "runs" / "one"))
    assert split_counts(made) == [("a", 6, 2, 2), ("b", 6, 2, 2), ("all", 12, 4, 4)]
    assert Manifest.read(str(folder / "runs" / "one" / "manifest.parquet")).fingerprint == made.fingerprint
    assert pd.read_csv(folder / "runs" / "one" / "quarantine.csv")["status"].tolist() == ["empty"]
    assert len(list((folder / "runs" / "manifests").iterdir())) == 1
    again = prepare_manifest(config, str(folder / "runs" / "two"))
    assert again.fingerprint == made.fingerprint
    other = prepare_manifest(
        RunConfig(data=config.data, storage=config.storage, seed=1), str(folder / "runs" / "three")
    )
    assert other.fingerprint != made.fingerprint


def test_too_many_bad_images_leave_their_list_in_the_folder(folder):
    """--max-invalid refuses, and the quarantine file is there to be worked through."""
    config = RunConfig(data=str(folder / "pills"), storage=str(folder / "runs"), max_invalid="1%")
    with pytest.raises(ConfigError, match="1 of 21 images are bad"):
        prepare_manifest(config, str(folder / "runs" / "one"))
    assert (folder / "runs" / "one" / "quarantine.csv").is_file()


def test_splits_that_tear_copies_are_noted(folder):
    """A list may put copies into two splits; the notes say so."""
    paths = sorted((folder / "pills").glob("*/*.png"))
    names = ["train", "validation", "test", "train"] * 5
    rows = {"path": [*paths, paths[0]], "label": [p.parent.name for p in [*paths, paths[0]]], "split": [*names, "test"]}
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    made = prepare_manifest(
        RunConfig(data=str(folder / "list.csv"), storage=str(folder / "runs")), str(folder / "runs" / "one")
    )
    assert any("copies in several splits" in note for note in made.notes)


def listed(folder, rows):
    """A run's configuration for a list of (path, label, group, split)."""
    pd.DataFrame(rows, columns=["path", "label", "group", "split"]).to_csv(folder / "list.csv", index=False)
    return RunConfig(data=str(folder / "list.csv"), storage=str(folder / "runs"))


def pills(folder):
    return [(f"pills/{'ab'[number % 2]}/{number}.png", "ab"[number % 2]) for number in range(20)]


def test_a_class_of_few_images_is_left_out_by_name_and_the_others_stay_as_they_are(folder):
    """Its rows are no bad images; the fingerprint is that of the set without it, and --min-images decides."""
    config = RunConfig(data=str(folder / "pills"), storage=str(folder / "runs"), max_invalid="5%")
    without = prepare_manifest(config, str(folder / "runs" / "without"))
    rare = folder / "pills" / "rare"
    rare.mkdir()
    for number in range(2):
        draw(np.random.default_rng([1, number])).save(rare / f"{number}.png")
    shutil.copy(rare / "0.png", rare / "2.png")
    made = prepare_manifest(config, str(folder / "runs" / "with"))
    assert (made.class_names, made.fingerprint) == (("a", "b"), without.fingerprint)
    assert split_counts(made) == split_counts(without)
    assert len(made.quarantined) == len(without.quarantined) == 1
    unused = pd.read_csv(folder / "runs" / "with" / "quarantine.csv")
    left = unused[unused["label"] == "rare"]["status"].tolist()
    assert left == ["left out: fewer than 3 different images"] * 3
    assert any(
        "classes left out, fewer than 3 different images (--min-images 3): rare (3 images, which count as copies of 2)"
        in note
        for note in made.notes
    )
    with pytest.raises(ConfigError, match=r"rare \(2\).*leave these classes out with --min-images 3"):
        prepare_manifest(dataclasses.replace(config, min_images=2), str(folder / "runs" / "strict"))
    with pytest.raises(
        ConfigError, match=r"fewer than two classes have 11 different images or more.*a \(10\), b \(10\)"
    ):
        prepare_manifest(dataclasses.replace(config, min_images=11), str(folder / "runs" / "many"))


def test_a_fixed_camera_needs_a_list_which_then_decides_the_division(tmp_path):
    """Six frames count as copies of one image, and the message says so; groups or splits of a list are kept."""
    rng, rows = np.random.default_rng(0), []
    base = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96), 3), float)
    for name in ("white_a", "white_b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        base[40:46, 30:60] -= 25
        for n in range(6):
            frame = np.clip(base + rng.normal(0, 3, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(frame).save(tmp_path / "data" / name / f"{n:03d}.jpg", quality=92)
            rows.append((f"data/{name}/{n:03d}.jpg", name, n // 2))
    with pytest.raises(
        ConfigError, match=r"white_a \(6 images, which count as copies of 1\).*, or, where images.*group or"
    ):
        prepare_manifest(
            RunConfig(data=str(tmp_path / "data"), storage=str(tmp_path / "runs")), str(tmp_path / "runs" / "one")
        )
    by_group = prepare_manifest(
        listed(tmp_path, [(path, name, f"{name}{n}", "") for path, name, n in rows]), str(tmp_path / "runs" / "two")
    )
    assert split_counts(by_group)[-1] == ("all", 4, 4, 4)
    assert by_group.table["group"].nunique() == 6
    assert any("near copies are in different groups of the list" in note for note in by_group.notes)
    words = ["train", "val", "test"]
    by_split = prepare_manifest(
        listed(tmp_path, [(*row[:2], "", words[row[2]]) for row in rows]), str(tmp_path / "runs" / "three")
    )
    assert split_counts(by_split)[-1] == ("all", 4, 4, 4)
    config = listed(tmp_path, [(*row[:2], "", words[row[2]].replace("val", "train")) for row in rows])
    with pytest.raises(
        ConfigError, match="no image is given to validation, and none can be drawn from train, since the train images"
    ):
        prepare_manifest(config, str(tmp_path / "runs" / "four"))


def test_labels_without_a_training_image_are_no_classes(folder):
    """Their rows in test and validation are left out, named and counted."""
    rows = [
        (path, f"{label}_new" if number > 17 else label, "", ["train", "train", "validation", "test"][number // 2 % 4])
        for number, (path, label) in enumerate(pills(folder))
    ]
    rows[18], rows[19] = (*rows[18][:3], "validation"), (*rows[19][:3], "test")
    made = prepare_manifest(listed(folder, rows), str(folder / "runs" / "one"))
    assert made.class_names == ("a", "b")
    assert split_counts(made) == [("a", 5, 2, 2), ("b", 5, 2, 2), ("all", 10, 4, 4)]
    assert "labels without a training image: a_new, b_new; left out with 2 images" in made.notes
    left = made.table[made.table["label"].isin(["a_new", "b_new"])]
    assert left["status"].tolist() == ["left out: no training image of its label"] * 2
    assert left["split"].tolist() == ["", ""]
    rows = [(path, label, "", "train" if label == "a" else split) for path, label, _, split in rows]
    rows = [(*row[:3], "test" if row[1] == "b" else row[3]) for row in rows]
    with pytest.raises(
        ConfigError, match="labels without a training image: a_new, b, b_new; without them fewer than two"
    ):
        prepare_manifest(
            listed(folder, [(*row[:3], "validation" if "b/5" in row[0] else row[3]) for row in rows]), str(folder)
        )


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_split_that_a_list_lacks_is_drawn_from_train(folder, missing):
    """By its share of the train rows, class by class; the rows of the other split stay where the list has them."""
    other = {"validation": "test", "test": "validation"}[missing]
    rows = [(path, label, "", other if number < 6 else "train") for number, (path, label) in enumerate(pills(folder))]
    made = prepare_manifest(listed(folder, rows), str(folder / "runs" / "one"))
    counts = dict(zip(("train", "validation", "test"), split_counts(made)[-1][1:], strict=True))
    assert counts == {"train": 12, missing: 2, other: 6}
    given = {path for path, *_, split in rows if split == other}
    assert {path.removeprefix(f"{folder}/") for path in made.ok["path"][made.ok["split"] == other]} == given
    assert f"no image is given to {missing}: 2 of the 14 images given to train are drawn into it" in made.notes


def test_the_demo_is_drawn_below_the_storage(tmp_path):
    """data: demo draws its images once, and ten products come out, without a single group."""
    config = RunConfig(storage=str(tmp_path), demo=DemoConfig(images_per_class=5))
    made = prepare_manifest(config, str(tmp_path / "demo"))
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


def test_classes_of_very_different_size_are_named():
    """The largest and the smallest, with their counts; from three times as many images on."""
    note = imbalance_note(["b"] * 1200 + ["a"] * 400 + ["c"] * 900)
    assert note.startswith("note: unbalanced classes: 1,200 training images of b, 400 of a. ")
    assert "optimizer.class_weights auto" in note


def test_classes_of_about_the_same_size_are_not():
    """Less than three times as many, one class, no image."""
    assert imbalance_note(["b"] * 1199 + ["a"] * 400) == ""
    assert imbalance_note(["a"] * 10) == imbalance_note([]) == ""
