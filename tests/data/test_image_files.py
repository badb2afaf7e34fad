"""What is listed of a folder or bucket: images, rows for what cannot be read, and notes on all that is left out."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.manifests import build_manifest
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.config import ConfigError, RunConfig, SplitConfig
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.image_files import find_images
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import prepare_manifest
from pharmclf.evaluation.datasets import external_dataset
from pharmclf.inference.image_listing import list_images
from pharmclf.storage import objects

COUNT = 6  # images of a class


def jpeg(seed: int) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    small.resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def put(root: str | Path, name: str, content: bytes = b"") -> None:
    storage.write_bytes(storage.join(str(root), name), content)


@pytest.fixture
def data(root: str) -> str:
    """Two classes of six images, in each kind of storage."""
    return fill(storage.join(root, "set"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same on a disk."""
    return Path(fill(str(tmp_path / "set")))


def fill(place: str) -> str:
    for number in range(2 * COUNT):
        put(place, f"{('aspirin', 'ibuprofen')[number % 2]}/{number:02}.jpg", jpeg(number))
    return place


def bad(manifest: Manifest, root: str | Path) -> dict[str, str]:
    rows = manifest.quarantined
    prefix = f"{root}/"
    return {path.removeprefix(prefix): status for path, status in zip(rows["path"], rows["status"], strict=True)}


def test_a_clean_folder_is_listed_by_name_and_nothing_is_said(data: str):
    """One item for each file, in the order of the paths, with the folder as label; no note."""
    listing = list_dataset(data)
    names = [f"aspirin/{number:02}.jpg" for number in range(0, 12, 2)]
    names += [f"ibuprofen/{number:02}.jpg" for number in range(1, 12, 2)]
    assert [(item.relative, item.label) for item in listing.items] == [(n, n.split("/")[0]) for n in names]
    assert [(item.group, item.split, item.status) for item in listing.items] == [("", "", "")] * 12
    assert listing.notes == []


@pytest.mark.parametrize(
    "leftover",
    [
        "$RECYCLE.BIN/a.jpg", "lost+found/a.jpg", "System Volume Information/a.jpg", "RECYCLER/S-1-5/a.jpg",
        "found.000/a.jpg", "aspirin/@eaDir/00.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/aspirin/a.jpg", "@Recycle/a.jpg",
        "aspirin/CaptureOne/Cache/a.jpg", "Smart Previews.lrdata/a.jpg", "aspirin/NKSC_PARAM/a.jpg", "wandb/x/a.png",
        "aspirin/Thumbs.db", "SegmentationClassPNG/a.png", "aspirin/task-7-annotation-3-by-1-tag-Pill-0.png",
        "venv/lib/icons/a.png", "a_json/img.png",
    ],
)  # fmt: skip
def test_files_of_systems_and_tools_are_left_out_and_counted(folder: Path, leftover: str):
    """They are neither classes nor images, in training and in prediction; the images next to them are used."""
    put(folder, leftover, jpeg(99))
    put(folder, "venv/pyvenv.cfg")
    put(folder, "a_json/label_viz.png", jpeg(98))
    listing = list_dataset(str(folder))
    assert {item.label for item in listing.items} == {"aspirin", "ibuprofen"}
    assert len(listing.items) == 12 == len(list_images(str(folder)))
    assert "of systems and tools" in "\n".join(listing.notes)


def test_products_that_sound_like_tools_stay(folder: Path):
    """Only names that no product has are left out."""
    for name in ("Recycle", "Trash", "masks", "thumbnails", "runs", "test", "Previews", "found"):
        put(folder, f"{name}/a.jpg", jpeg(50))
    assert {item.label for item in list_dataset(str(folder)).items} >= {"Recycle", "Trash", "masks", "runs", "test"}


def test_masks_beside_their_images_are_left_out(folder: Path):
    """A mask without its image is an image."""
    put(folder, "aspirin/00_mask.png", jpeg(60))
    put(folder, "aspirin/00_mask_1.png", jpeg(61))
    put(folder, "aspirin/77_mask.png", jpeg(62))
    listing = list_dataset(str(folder))
    assert [item.relative for item in listing.items if "mask" in item.relative] == ["aspirin/77_mask.png"]
    assert listing.notes == ["files not read, masks of images next to them: 2"]


# ---- results


def test_results_are_never_data(data: str):
    """The storage, runs, sweeps, evaluations and drawn demos below the data, each by its folder."""
    results = {
        "other storage/manifests/" + "0" * 32 + ".parquet": "other storage/",
        "other storage/tablets/evaluation/test/confusion_matrix.png": "other storage/",
        "tablets/run.json": "tablets/", "tablets/report/a.png": "tablets/",
        "search/sweep.json": "search/", "search/parameters.png": "search/",
        "eval/metrics.json": "eval/", "eval/confusion_matrix.png": "eval/", "eval/sample_predictions.png": "eval/",
        "demo-data-0-100/.pharmclf-demo.json": "demo-data-0-100/", "demo-data-0-100/Ambrovex/0.jpg": "demo-data-0-100/",
    }  # fmt: skip
    for name in results:
        put(data, name, jpeg(70))
    found = find_images(data)
    assert len(found.images) == 12 == len(list_images(data))
    assert found.notes == [f"results of runs, left out: {', '.join(sorted(set(results.values())))}"]


def test_a_storage_below_the_data_is_left_out_from_the_first_run_on(folder: Path):
    """The same manifest before and after it holds images, found in the cache the second time, however it is written."""
    config = RunConfig(data=str(folder), storage=str(folder / "results"))
    first = prepare_manifest(config, str(folder / "results" / "one"))
    put(folder, "results/one/evaluation/test/sample_predictions.png", jpeg(71))
    config = RunConfig(data=str(folder), storage=f"{folder}/aspirin/../results/")
    again = prepare_manifest(config, str(folder / "results" / "one"))
    assert first.fingerprint == again.fingerprint
    assert again.notes == ["results of runs, left out: results/"]
    assert len(list((folder / "results" / "manifests").iterdir())) == 1


def test_a_storage_that_is_the_data_hides_its_own_files_only(folder: Path):
    """--data . --storage . is the same data before and after."""
    config = RunConfig(data=str(folder), storage=str(folder))
    first = prepare_manifest(config, str(folder / "one"))
    put(folder, "one/run.json", b"{}")
    put(folder, "one/evaluation/test/sample_predictions.png", jpeg(71))
    again = prepare_manifest(config, str(folder / "one"))
    assert first.fingerprint == again.fingerprint
    assert len(again.table) == 12


# ---- what cannot be read


def test_images_of_formats_that_are_not_read_have_rows(data: str):
    """Each counts for --max-invalid and has a row in predictions; one next to the same image in JPEG only counts."""
    for name in ("aspirin/x.nef", "aspirin/y.PSD", "ibuprofen/z.svg", "ibuprofen/01.cr2", "ibuprofen/notes.txt"):
        put(data, name, b"II*\0")
    made = build_manifest(data)
    assert bad(made, data) == {
        f"{place}{extension}": f"format {extension.lower()} is not read: convert it to .jpg or .png"
        for place, extension in (("aspirin/x", ".nef"), ("aspirin/y", ".PSD"), ("ibuprofen/z", ".svg"))
    }
    assert len(made.ok) == 12
    assert "each next to the same image in a format that is read (1 .cr2): 1" in "\n".join(made.notes)
    with pytest.raises(ConfigError, match="3 of 15 images are bad"):
        build_manifest(data, max_invalid_share=0.1)
    images = list_images(data)
    assert {images.paths[place].as_py(): reason for place, reason in images.unreadable.items()} == {
        storage.join(data, place): reason for place, reason in bad(made, data).items()
    }


def test_what_is_no_file_is_named_and_never_waited_for(folder: Path):
    """Pipes, sockets and links that lead nowhere, of the name of an image or not; also where a list names one."""
    os.mkfifo(folder / "aspirin" / "pipe.jpg")
    os.mkfifo(folder / "aspirin" / "pipe")
    os.symlink("gone.jpg", folder / "aspirin" / "dangling.jpg")
    os.symlink("circle.jpg", folder / "aspirin" / "circle.jpg")
    os.symlink("../ibuprofen/01.jpg/x.jpg", folder / "ibuprofen" / "through-a-file.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        made = build_manifest(str(folder))
    assert bad(made, folder) == {
        "aspirin/circle.jpg": "link in a circle",
        "aspirin/dangling.jpg": "link that points nowhere",
        "aspirin/pipe.jpg": "named pipe, not a file",
        "ibuprofen/through-a-file.jpg": "link that points nowhere",
    }
    notes = "\n".join(made.notes)
    assert "left out: aspirin/pipe (named pipe, not a file), socket (socket, not a file)" in notes
    assert f"2 links point nowhere, the first: {folder}/aspirin/dangling.jpg" in notes
    assert set(list_images(str(folder)).unreadable.values()) == set(bad(made, folder).values())
    rows = "".join(f"{name}/{n:02}.jpg,{name}\n" for n in range(12) for name in [("aspirin", "ibuprofen")[n % 2]])
    put(folder, "list.csv", f"path,label\n{rows}aspirin/pipe.jpg,aspirin\n".encode())
    assert bad(build_manifest(str(folder / "list.csv")), folder) == {
        "aspirin/pipe.jpg": "not read: named pipe, not a file"
    }


def test_a_link_to_a_folder_above_is_not_entered(folder: Path):
    """Nor one out of the data to a folder that holds it, nor one to a class; each is named."""
    os.symlink("..", folder / "aspirin" / "all")
    os.symlink("../..", folder / "aspirin" / "out")
    os.symlink("ibuprofen", folder / "again")
    listing = list_dataset(str(folder))
    assert len(listing.items) == 12
    assert listing.notes[0] == (
        f"left out: again (link to a folder that is listed already, {folder}/ibuprofen), "
        f"aspirin/all (link to a folder above, {folder}), aspirin/out (link to a folder above, {folder.parent})"
    )


def test_links_to_folders_elsewhere_are_followed(folder: Path, tmp_path: Path):
    """To another place, and to a hidden folder of the data itself."""
    put(tmp_path, "elsewhere/a.jpg", jpeg(80))
    put(folder, ".store/b.jpg", jpeg(81))
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(".store", folder / "shown")
    listing = list_dataset(str(folder))
    labels = {item.relative: item.label for item in listing.items}
    assert (labels["linked/a.jpg"], labels["shown/b.jpg"], len(labels)) == ("linked", "shown", 14)


def test_a_folder_of_the_system_that_may_not_be_read_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """lost+found of a disk belongs to root; another folder that refuses ends the listing."""
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith(("lost+found", "secret")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (folder / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)  # root, as whom tests may run, is refused nothing
    assert list_dataset(str(folder)).notes == ["files not read, of systems and tools (1 lost+found): 1"]
    (folder / "secret").mkdir()
    with pytest.raises(ConfigError, match=r"Permission denied.*secret"):
        list_dataset(str(folder))


def test_names_that_are_not_utf_8_are_quarantined_by_name(folder: Path, tmp_path: Path):
    """Files and whole folders; the name is shown as `printf %b` takes it back, in the manifest and in predictions."""
    place = os.fsencode(folder)
    os.rename(place + b"/aspirin/00.jpg", place + b"/aspirin/comprim\xe9\\0.jpg")
    os.mkdir(place + b"/g\xe9lule")
    (Path(os.fsdecode(place + b"/g\xe9lule")) / "1.jpg").write_bytes(jpeg(90))
    config = RunConfig(data=str(folder), storage=str(tmp_path / "runs"))
    made = prepare_manifest(config, str(tmp_path / "runs" / "one"))
    read = Manifest.read(str(tmp_path / "runs" / "one" / "manifest.parquet"))
    assert {name: status[:22] for name, status in bad(read, folder).items()} == {
        r"aspirin/comprim\xe9\\0.jpg": "the name is not UTF-8:", r"g\xe9lule/1.jpg": "the name is not UTF-8:",
    }  # fmt: skip
    assert (len(made.ok), made.class_names) == (11, ("aspirin", "ibuprofen"))
    assert r"comprim\xe9\\0.jpg" in (tmp_path / "runs" / "one" / "quarantine.csv").read_text()
    images = list_images(str(folder))
    assert {images.paths[place].as_py().removeprefix(f"{folder}/") for place in images.unreadable} == set(
        bad(made, folder)
    )


def test_pointers_of_git_lfs_are_told_from_images(folder: Path):
    """A few are quarantined with the remedy; a set of nothing else is refused with it."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n" % 7
    put(folder, "aspirin/99.jpg", pointer)
    made = build_manifest(str(folder))
    assert bad(made, folder) == {"aspirin/99.jpg": "Git LFS pointer in place of the image: run git lfs pull"}
    assert made.notes == [f"1 files are Git LFS pointers: run git lfs pull, the first: {folder}/aspirin/99.jpg"]
    for path in folder.glob("*/*"):
        path.write_bytes(pointer)
    with pytest.raises(ConfigError, match=r"all bad: 13 files are Git LFS pointers: run git lfs pull, the first: .*00"):
        build_manifest(str(folder))


@pytest.mark.s3
def test_a_key_with_two_slashes_costs_its_own_row_only(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """As scripts leave it that join "dir/" and "/name"; the other images are used, by every listing."""
    monkeypatch.setattr(objects, "_PAGE_KEYS", 5)  # the last page is one of them
    data = fill(f"{bucket}/set")
    name = bucket.removeprefix("s3://")
    for key in ("set/aspirin//stray.jpg", "set/zinc/tab\t.jpg", "set//"):
        gateway.client.put_object(Bucket=name, Key=key, Body=jpeg(95) if key.endswith("g") else b"")
    made = build_manifest(data)
    assert bad(made, data) == {
        "aspirin//stray.jpg": "the key has an empty part (//): copy the object to another key",
        "zinc/tab\t.jpg": "the key has a control character: copy the object to another key",
    }
    assert (len(made.ok), made.class_names) == (12, ("aspirin", "ibuprofen"))
    images = list_images(data)
    assert {images.paths[place].as_py() for place in images.unreadable} == set(made.quarantined["path"])
    assert len(list(storage.list_files(data))) == 12


# ---- splits and labels, all the way


def test_splits_of_folders_reach_the_manifest(tmp_path: Path):
    """16, 8 and 8 rows as the folders say; --split.ignore-folders draws them; a set from outside has none."""
    number = 0
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        for label in ("aspirin", "ibuprofen"):
            for _ in range(count):
                put(tmp_path, f"data/{split}/{label}/{number}.jpg", jpeg(number))
                number += 1
    config = RunConfig(data=str(tmp_path / "data"), storage=str(tmp_path / "runs"))
    kept = prepare_manifest(config, str(tmp_path / "runs" / "one"))
    by_folder = kept.ok["path"].str.split("/").str[-3].replace({"valid": "validation"})
    assert (kept.ok["split"] == by_folder).all()
    assert kept.ok["split"].value_counts().to_dict() == {"train": 16, "validation": 8, "test": 8}
    drawn_config = RunConfig(data=config.data, storage=config.storage, split=SplitConfig(ignore_folders=True))
    drawn = prepare_manifest(drawn_config, str(tmp_path / "runs" / "two"))
    assert drawn.ok["split"].value_counts().to_dict() == {"train": 20, "validation": 6, "test": 6}
    assert (drawn.ok["split"] != by_folder).any()
    outside = external_dataset("x", config.data, ["Ibuprofen", "aspirin"], cache=str(tmp_path / "runs" / "manifests"))
    assert (len(outside.rows), sorted(set(outside.labels))) == (32, ["Ibuprofen", "aspirin"])


def test_twins_of_labels_are_one_class_in_folders_and_lists(tmp_path: Path):
    """Also where a list names an image under both."""
    for number in range(8):
        put(tmp_path, f"data/{('Aspirin', 'aspirin', 'b', 'b')[number % 4]}/{number}.jpg", jpeg(number))
    made = build_manifest(str(tmp_path / "data"))
    assert made.class_names == ("Aspirin", "b")
    assert made.notes == ["labels that differ in case, blanks or Unicode form only are one: Aspirin (also aspirin)"]
    rows = ["Aspirin/0.jpg,X", "Aspirin/0.jpg,x", "Aspirin/4.jpg,X", "b/2.jpg,y", "b/3.jpg,y"]
    put(tmp_path, "data/list.csv", "\n".join(["path,label", *rows]).encode())
    listed = build_manifest(str(tmp_path / "data" / "list.csv"))
    assert listed.table["label"].tolist() == ["X", "X", "y", "y"]
