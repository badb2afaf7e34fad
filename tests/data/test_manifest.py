import io
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.manifests import build_manifest

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data import build_manifest as manifest_builder
from pharmclf.data import duplicates, prepare, scan
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import cached_manifest
from pharmclf.data.splits import split_rows


def picture(seed, side=40):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def jpeg(seed, side=40, quality=90):
    buffer = io.BytesIO()
    picture(seed, side).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def rubbish(tmp_path_factory):
    """300 good images of three classes in the Kaggle layout, 30 bad ones, and what lies about in real folders."""
    root = tmp_path_factory.mktemp("rubbish")
    combined = root / "Drug Vision" / "Data Combined"
    for number in range(300):
        put(combined / f"Class{number % 3}" / f"good_{number:03}.jpg", jpeg(number))
    png = io.BytesIO()
    picture(2).save(png, "PNG")
    bomb = bytearray(png.getvalue())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    broken_png = bytearray(png.getvalue())
    broken_png[60:200] = bytes(140)
    kinds = {
        "empty": b"",
        "truncated": jpeg(900)[:-250],
        "no_image": b"<html>404</html>",
        "bomb": bytes(bomb),
        "unreadable": bytes(broken_png),
    }
    for number in range(5):
        for kind, content in kinds.items():
            put(
                combined / f"Class{number % 3}" / f"bad_{kind}_{number}.png",
                content + (b"" if kind == "empty" else b" "),
            )
    for name, seed in (("Class0/bad_twin", 700), ("Class1/bad_twin", 700), ("Class2/bad_twin", 700)):
        put(combined / f"{name}.jpg", jpeg(seed))
    for name in ("Class0/bad_pair", "Class1/bad_pair"):
        put(combined / f"{name}.jpg", jpeg(701))
    put(combined / "Class0" / "really.jpg", png.getvalue())
    put(combined / "Class0" / "notes.txt", b"text")
    put(combined / "Class0" / ".hidden.jpg", b"")
    put(root / "__MACOSX" / "Class0" / "a.jpg", b"")
    put(root / "loose.jpg", jpeg(5))
    (combined / "Empty").mkdir()
    return root


@pytest.fixture
def small(tmp_path):
    """Two classes of six."""
    for number in range(12):
        put(tmp_path / "set" / "ab"[number % 2] / f"{number}.jpg", jpeg(number))
    return tmp_path / "set"


def test_each_bad_file_is_quarantined_with_its_reason(rubbish):
    """30 bad among 300 good: every one is named with its reason, every good one is used."""
    made = build_manifest(str(rubbish))
    bad = made.quarantined
    assert len(bad) == 30
    assert all("bad_" in path for path in bad["path"])
    for kind, reason in {
        "empty": "empty",
        "truncated": "truncated",
        "no_image": "no image",
        "bomb": "too large",
        "unreadable": "unreadable|truncated",
        "twin": "label conflict",
        "pair": "label conflict",
    }.items():
        statuses = bad[bad["path"].str.contains(f"bad_{kind}")]["status"]
        assert len(statuses)
        assert statuses.str.contains(reason).all(), kind
    twins = bad[bad["path"].str.contains("bad_twin")]
    others = twins["status"].str.extract(r"as (.+), which is '(.+)'$")
    assert set(others[0]) <= set(made.table["path"])
    assert all(others[0].to_numpy() != twins["path"].to_numpy())
    assert all(others[1].to_numpy() != twins["label"].to_numpy())
    assert made.class_names == ("Class0", "Class1", "Class2")
    assert made.table["path"].is_monotonic_increasing
    assert (made.ok[["width", "height"]] == 40).all(axis=None)
    assert made.ok["phash"].str.fullmatch("[0-9a-f]{16}").all()


def test_what_is_no_image_by_its_name_is_counted_and_named(rubbish):
    """Hidden files, other types, loose images, empty folders and wrong extensions end in the notes."""
    notes = "\n".join(build_manifest(str(rubbish)).notes)
    for text in ("hidden: 2", "1 .txt", "class folder: 1", "Data Combined/Empty", "really.jpg"):
        assert text in notes


def test_too_many_bad_images_are_refused_with_the_first_and_the_whole_list(rubbish, tmp_path):
    """The error names count, share and first files; the whole list is in the quarantine file."""
    where = str(tmp_path / "quarantine.csv")
    with pytest.raises(ConfigError, match=r"30 of 331 images are bad \(9.1%\), expected at most 5.0%: .*bad_.*25 more"):
        build_manifest(str(rubbish), max_invalid_share=0.05, quarantine=where)
    listed = pd.read_csv(where)
    assert len(listed) == 30
    assert list(listed.columns) == ["path", "label", "status"]


def test_a_manifest_reads_back_as_it_was_written(rubbish, tmp_path):
    """Table, classes, notes and fingerprint survive Parquet; another file is refused."""
    made = build_manifest(str(rubbish))
    splits = split_rows(made.ok["label"], made.ok["group"], 0, 0.2, 0.2)
    made = made.with_splits(splits)
    made.write(str(tmp_path / "m.parquet"))
    read = Manifest.read(str(tmp_path / "m.parquet"))
    pd.testing.assert_frame_equal(read.table, made.table, check_dtype=False)
    assert (read.class_names, read.notes, read.fingerprint) == (made.class_names, made.notes, made.fingerprint)
    assert (read.ok["split"].to_numpy() == splits).all()
    assert read.crops is None
    crops = np.random.default_rng(0).uniform(0, 1, (len(made.table), 3)).astype(np.float32)
    crops[2] = np.nan
    cropped = replace(made, crops=crops)
    cropped.write(str(tmp_path / "m.parquet"))
    again = Manifest.read(str(tmp_path / "m.parquet"))
    np.testing.assert_array_equal(again.crops, crops)
    assert again.fingerprint == cropped.fingerprint != made.fingerprint
    (tmp_path / "other.parquet").write_bytes(b"other")
    for name in ("other.parquet", "missing.parquet"):
        with pytest.raises(ConfigError, match=r"pharmclf prepare"):
            Manifest.read(str(tmp_path / name))


def test_processes_find_what_threads_find(rubbish, monkeypatch):
    """Many files go to processes; the manifest and the progress are the same."""
    threaded = build_manifest(str(rubbish))
    monkeypatch.setattr(scan, "_MIN_FILES_FOR_PROCESSES", 100)
    steps = []
    pooled = build_manifest(str(rubbish), progress=lambda done, total: steps.append((done, total)))
    pd.testing.assert_frame_equal(pooled.table, threaded.table)
    assert steps[-1] == (331, 331)
    assert steps == sorted(steps)


def test_a_script_that_scans_is_run_once(small, tmp_path):
    """Its processes do not run it again, as they would without a line that asks for __main__."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pharmclf.data import scan\n"
        "print('began', flush=True)\n"
        "scan._MIN_FILES_FOR_PROCESSES = 0\n"
        f"print([result.status for result in scan.scan_files({[str(small / 'a' / '0.jpg')]})])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("began\n['ok']\n", "")


def test_the_fingerprint_does_not_depend_on_the_place(small, tmp_path):
    """A moved folder has the same fingerprint; another label, content or split has not."""
    made = build_manifest(str(small))
    moved = shutil.copytree(small, tmp_path / "elsewhere" / "deep")
    assert build_manifest(str(moved)).fingerprint == made.fingerprint
    put(moved / "a" / "bad.jpg", b"")
    assert build_manifest(str(moved)).fingerprint == made.fingerprint
    assert made.with_splits(["train"] * 12).fingerprint != made.fingerprint
    (moved / "a" / "0.jpg").rename(moved / "b" / "0.jpg")
    assert build_manifest(str(moved)).fingerprint != made.fingerprint


def test_copies_share_a_group_and_are_noted(small):
    """Exact and near copies join the smallest row; a near copy under another label is noted with both paths."""
    put(small / "a" / "copy_of_0.jpg", (small / "a" / "0.jpg").read_bytes())
    put(small / "a" / "near_1.jpg", jpeg(50, side=200))
    put(small / "b" / "near_2.jpg", jpeg(50, side=160, quality=60))
    made = build_manifest(str(small))
    rows = {path.rpartition("/")[2]: row for row, path in enumerate(made.table["path"])}
    groups = made.table["group"]
    assert groups[rows["copy_of_0.jpg"]] == groups[rows["0.jpg"]] == rows["0.jpg"]
    assert groups[rows["near_2.jpg"]] == rows["near_1.jpg"]
    assert groups.nunique() == 13
    assert any("different labels" in note and "near_2.jpg" in note for note in made.notes)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_gives_labels_groups_and_splits(small, kind):
    """Relative paths are relative to the list; group and split are taken over; missing files are quarantined."""
    rows = [(f"{'ab'[n % 2]}/{n}.jpg", f"product {n % 2}", n // 4, ["train", ""][n % 2]) for n in range(12)]
    frame = pd.DataFrame(
        [*rows, ("gone.jpg", "product 0", 9, ""), rows[0]], columns=["path", "label", "group", "split"]
    )
    where = small / f"list.{kind}"
    frame.to_csv(where, index=False) if kind == "csv" else frame.to_parquet(where)
    made = build_manifest(str(where))
    assert made.class_names == ("product 0", "product 1")
    assert made.quarantined["status"].tolist() == ["not read: No such file or directory"]
    assert len(made.table) == 13
    by_name = made.ok.assign(name=made.ok["path"].str.rpartition("/")[2]).set_index("name")
    assert by_name["group"].nunique() == 3
    assert by_name.loc["4.jpg", "group"] == by_name.loc["7.jpg", "group"]
    assert by_name.loc["4.jpg", "split"] == "train"
    assert any("repeat another row" in note for note in made.notes)


def test_data_that_cannot_serve_is_refused(tmp_path, small):
    """Nothing there, an empty folder, no class folders, one class, only bad images, a file that is no list."""
    (tmp_path / "empty").mkdir()
    put(tmp_path / "flat" / "a.jpg", jpeg(0))
    put(tmp_path / "one" / "a" / "a.jpg", jpeg(0))
    put(tmp_path / "bad" / "a" / "a.jpg", b"")
    put(tmp_path / "file.txt", b"")
    for name, message in {
        "missing": "nothing there",
        "empty": "no image in a class folder",
        "flat": "outside any class folder: 1",
        "one": "only the class 'a'",
        "bad": "all bad, .*a.jpg: empty",
        "file.txt": "expected a folder, or a list",
    }.items():
        with pytest.raises(ConfigError, match=message):
            build_manifest(str(tmp_path / name))


def test_the_same_files_are_not_scanned_twice(small, tmp_path, monkeypatch):
    """The second time no file is read; a changed, added or removed file, or a damaged cache, brings a new scan."""
    scans = []
    original = manifest_builder.scan_files
    monkeypatch.setattr(manifest_builder, "scan_files", lambda *args: scans.append(1) or original(*args))
    cache = str(tmp_path / "cache")
    first = cached_manifest(str(small), cache)
    second = cached_manifest(str(small), cache)
    assert len(scans) == 1
    pd.testing.assert_frame_equal(first.table, second.table, check_dtype=False)
    assert first.fingerprint == second.fingerprint
    put(small / "a" / "0.jpg", jpeg(99))
    assert cached_manifest(str(small), cache).fingerprint != first.fingerprint
    os.utime(small / "a" / "0.jpg", ns=(1, 1))
    cached_manifest(str(small), cache)
    (small / "b" / "1.jpg").unlink()
    cached_manifest(str(small), cache)
    assert len(scans) == 4
    for entry in storage.list_files(cache):
        (tmp_path / "cache" / entry.location.rpartition("/")[2]).write_bytes(b"damaged")
    cached_manifest(str(small), cache)
    assert len(scans) == 5


def test_what_storage_did_not_give_is_not_cached(small, tmp_path):
    """A file that could not be read may be there the next time."""
    where = small / "list.csv"
    pd.DataFrame({"path": ["a/0.jpg", "b/1.jpg", "c/2.jpg"], "label": ["a", "b", "b"]}).to_csv(where, index=False)
    cached_manifest(str(where), str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_hundred_thousand_rows_split_and_write_in_seconds(tmp_path):
    """Exact copies, split, write, read and fingerprint of 100,000 rows."""
    number, began = np.arange(100_000), time.monotonic()
    made = Manifest(
        pd.DataFrame(
            {
                "path": [f"/data/c{n % 50:02}/{n:06}.jpg" for n in number],
                "label": [f"c{n % 50:02}" for n in number],
                "size_bytes": 13_000,
                "sha256": [f"{n // 2:064x}" for n in number],
                "width": 300,
                "height": 300,
                "phash": [f"{n:016x}" for n in number],
                "group": duplicates.group_rows(len(number), duplicates.equal_pairs([f"{n // 2}" for n in number])),
                "split": "",
                "status": "ok",
            }
        ),
        tuple(f"c{n:02}" for n in range(50)),
        "/data",
    )
    made = made.with_splits(split_rows(made.ok["label"], made.ok["group"], 0, 0.2, 0.2))
    made.write(str(tmp_path / "m.parquet"))
    assert Manifest.read(str(tmp_path / "m.parquet")).fingerprint == made.fingerprint
    assert made.table.groupby("group")["split"].nunique().max() == 1
    assert time.monotonic() - began < 30
    assert prepare.split_counts(made)[-1] == ("all", 64_000, 16_000, 20_000)
