"""A run keeps the images that it began with: what is new, gone or changed since is named, and not used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pharmclf import storage
from pharmclf.config import ConfigError, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import prepare_manifest
from pharmclf.data.run_manifest import DatasetChanges, read_run_manifest, update_run_manifest


def _draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def began(tmp_path: Path) -> tuple[RunConfig, str, Manifest]:
    """A run on two classes of ten images: its settings, its folder, and its manifest."""
    for number in range(20):
        _draw(tmp_path / "pills" / "ab"[number % 2] / f"{number:02d}.png", number)
    config = RunConfig(data=str(tmp_path / "pills"), storage=str(tmp_path / "runs"))
    folder = str(tmp_path / "runs" / "run")
    return config, folder, prepare_manifest(config, folder)


def test_a_folder_as_it_was_gives_the_manifest_of_the_run_in_silence(began):
    """The manifest that was written is read again, with the same fingerprint, and nothing is said."""
    config, folder, made = began
    kept = read_run_manifest(folder, made.fingerprint)
    said: list[str] = []
    assert kept is not None
    assert update_run_manifest(config, folder, kept, said.append).fingerprint == made.fingerprint
    assert said == []


def test_files_that_came_went_or_changed_are_named_and_the_rows_stay(began):
    """One line with the numbers and the first of each; splits, labels and row numbers are those of the beginning."""
    config, folder, made = began
    root = Path(config.data)
    _draw(root / "a" / "98.png", 98)
    _draw(root / "c" / "99.png", 99)
    (root / "a" / "00.png").unlink()
    (root / "b" / "01.png").write_bytes((root / "b" / "01.png").read_bytes() + b"more")
    kept = read_run_manifest(folder, made.fingerprint)
    said: list[str] = []
    again = update_run_manifest(config, folder, kept, said.append)
    assert again.fingerprint == made.fingerprint
    assert again.class_names == ("a", "b")
    assert (again.rows("train") == made.rows("train")).all()
    assert said == [
        "note: the run keeps the images that it started with: 2 new files are not used (the first is a/98.png); "
        "1 file is gone (a/00.png); 1 file has changed (b/01.png); "
        f"a new run with --init-from {folder}, once this one is complete, uses new files and keeps the splits"
    ]


def test_a_file_that_is_empty_now_has_changed(began):
    """As after a copy that ended early: it is there, with no byte of the image."""
    config, _, made = began
    (Path(config.data) / "b" / "01.png").write_bytes(b"")
    said: list[str] = []
    update_run_manifest(config, "run", made, said.append)
    assert said == ["note: the run keeps the images that it started with: 1 file has changed (b/01.png)"]


def test_a_file_in_another_class_folder_of_a_list_keeps_the_label_of_the_beginning(tmp_path: Path, began):
    """A list whose labels were edited: the run says so; upper case and blanks are no other label."""
    config, _, _ = began
    names = [f"{'ab'[number % 2]}/{number:02d}.png" for number in range(20)]
    text = "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names)
    place = Path(config.data) / "list.csv"
    place.write_text(text)
    config = RunConfig(data=str(place), storage=config.storage)
    folder = str(tmp_path / "runs" / "listed")
    made = prepare_manifest(config, folder)
    place.write_text(text.replace("a/00.png,a", "a/00.png,b").replace("a/02.png,a", "a/02.png, A"))
    said: list[str] = []
    update_run_manifest(config, folder, made, said.append)
    assert len(said) == 1
    assert said[0].endswith("1 file has another label now, which is not used (a/00.png)")


def test_too_many_missing_files_are_refused_with_their_number_and_the_remedy(began):
    """5 of 20 are more than the 20 % of --max-invalid; with 30 % the run resumes."""
    config, folder, made = began
    for number in range(0, 10, 2):
        (Path(config.data) / "a" / f"{number:02d}.png").unlink()
    with pytest.raises(
        ConfigError, match=r"5 files are gone \(the first is a/00\.png\); 25\.0% are bad.*--max-invalid"
    ):
        update_run_manifest(config, folder, made, print)
    said: list[str] = []
    accepting = RunConfig(data=config.data, storage=config.storage, max_invalid="30%")
    assert update_run_manifest(accepting, folder, made, said.append) is made
    assert len(said) == 1


def test_the_same_images_at_another_place_are_used_there_and_other_images_are_refused(tmp_path: Path, began):
    """The rows name the files of the new place, with the fingerprint of the old one; contents decide, not sizes."""
    config, folder, made = began
    shutil.copytree(config.data, tmp_path / "moved")
    moved = RunConfig(data=str(tmp_path / "moved"), storage=config.storage)
    said: list[str] = []
    kept = update_run_manifest(moved, folder, made, said.append)
    assert said == []
    assert kept.fingerprint == made.fingerprint
    assert kept.table["path"].tolist() == [
        path.replace(f"{tmp_path}/pills/", f"{tmp_path}/moved/") for path in made.table["path"]
    ]
    for number in range(20):
        _draw(tmp_path / "other" / "ab"[number % 2] / f"{number:02d}.png", 100 + number)
    with pytest.raises(ConfigError, match=r"started with other images than .*: of its 20, 20 files have changed"):
        update_run_manifest(RunConfig(data=str(tmp_path / "other"), storage=config.storage), folder, made, print)


def test_a_storage_that_does_not_answer_is_no_missing_manifest(monkeypatch: pytest.MonkeyPatch):
    """The run would take other splits than it began with, or scan all its images again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with storage.timeout(0.5), pytest.raises(storage.StorageUnavailableError):
        Manifest.read("s3://bucket/run/manifest.parquet")


def test_a_manifest_of_other_images_is_not_taken(began):
    """The fingerprint of the record decides; without the file there is none."""
    _, folder, made = began
    assert read_run_manifest(folder, "another") is None
    (Path(folder) / "manifest.parquet").unlink()
    assert read_run_manifest(folder, made.fingerprint) is None
    assert DatasetChanges().text() == ""
