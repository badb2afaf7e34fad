"""A list of corrected labels changes the labels of a data set; one that does not fit it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.config import ConfigError, RunConfig
from pharmclf.data.label_corrections import correct_labels
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_manifest
from pharmclf.data.run_manifest import update_run_manifest


def write_list(folder: Path, *rows: str) -> str:
    location = folder / "labels.csv"
    location.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    return str(location)


@pytest.fixture
def paths(drawn_manifest: Manifest) -> list[str]:
    """Of the images, relative to their folder."""
    return [path.removeprefix(drawn_manifest.root + "/") for path in drawn_manifest.table["path"]]


def test_a_run_has_the_corrected_labels(drawn_images: str, drawn_manifest: Manifest, paths: list[str], tmp_path: Path):
    """A moved image is divided with its new class; a resumed run says nothing of labels that it has already."""
    other = drawn_manifest.class_names[1]
    labels = write_list(tmp_path, f"{paths[0]},{other}", f"{drawn_images}/{paths[1]},drop")
    config = RunConfig(data=drawn_images, storage=str(tmp_path / "runs"), labels=labels)
    manifest = split_manifest(config, str(tmp_path))
    assert manifest.table.loc[0, "label"] == other
    assert manifest.table.loc[1, "status"].startswith("left out")
    assert len(manifest.ok) == len(drawn_manifest.ok) - 1
    said: list[str] = []
    update_run_manifest(config, str(tmp_path), manifest, said.append)
    assert said == []
    changed = write_list(tmp_path, f"{paths[2]},{other}")
    update_run_manifest(RunConfig(data=drawn_images, storage=str(tmp_path / "runs"), labels=changed),
                        str(tmp_path), manifest, said.append)  # fmt: skip
    assert "another label now, which is not used" in said[0]


def test_a_class_of_the_name_drop_keeps_its_images(drawn_manifest: Manifest, paths: list[str], tmp_path: Path):
    table = drawn_manifest.table.assign(label=drawn_manifest.table["label"].replace("Ambrovex", "drop"))
    names = tuple(sorted(set(table["label"])))
    manifest = Manifest(table, names, drawn_manifest.root)
    corrected = correct_labels(manifest, write_list(tmp_path, f"{paths[0]},drop"))
    assert corrected.ok["label"].tolist() == manifest.ok["label"].tolist()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("nowhere.png,drop", "not among the images: .*nowhere.png"),
        ("{path},Ambrovexx", "received 'Ambrovexx', expected drop or a class, such as Ambrovex"),
        ("{path},drop\n{path},Ambrovex", "two labels"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    row: str, expected: str, drawn_manifest: Manifest, paths: list[str], tmp_path: Path
):
    with pytest.raises(ConfigError, match=expected):
        correct_labels(drawn_manifest, write_list(tmp_path, row.format(path=paths[0])))


@pytest.mark.parametrize(("name", "expected"), [("none.csv", "No such file"), ("labels.txt", "expected a list")])
def test_a_list_that_cannot_be_read_is_refused(name: str, expected: str, drawn_manifest: Manifest, tmp_path: Path):
    with pytest.raises(ConfigError, match=expected):
        correct_labels(drawn_manifest, str(tmp_path / name))
