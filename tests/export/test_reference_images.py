"""The images that an export is tried on: the run's own, a folder's or a list's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf.config import ConfigError
from pharmclf.data.image_decoding import decode
from pharmclf.evaluation.saved_model import SavedModel
from pharmclf.export.reference_images import sample_images


def saved(run_folder: str | None = None) -> SavedModel:
    return SavedModel(
        location="model.keras", sha256="", labels=("a", "b"), image_size=16, decision=None, run_folder=run_folder
    )


def sampled(given: str = "", run_folder: str | None = None, split: str = "test") -> tuple[np.ndarray, list[str]]:
    said: list[str] = []
    return sample_images(saved(run_folder), given, split, "--images", said.append), said


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_run_gives_the_images_of_the_split(drawn_manifest: Any, tmp_path: Path, split: str):
    """All of them, decoded as everywhere else, in the manifest's order."""
    drawn_manifest.write(str(tmp_path / "manifest.parquet"))
    images, said = sampled(run_folder=str(tmp_path), split=split)
    paths = drawn_manifest.table["path"].to_numpy()[drawn_manifest.rows(split)]
    np.testing.assert_array_equal(images, np.stack([decode(Path(path).read_bytes(), 16) for path in paths]))
    assert (images.dtype, said) == (np.uint8, [])


def test_a_folder_gives_its_images_at_any_depth(drawn_images: str, tmp_path: Path):
    """Loose ones and those of folders; other files are passed over, and a bad image is named and left out."""
    whole = sorted(Path(drawn_images).glob("*/*.jpg"))
    for place, source in zip(("one.jpg", "deep/er/two.JPG"), whole, strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(source.read_bytes())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("no image")
    images, said = sampled(str(tmp_path))
    assert images.shape == (2, 16, 16, 3)
    assert len(said) == 1
    assert said[0].startswith("left out: 1 of 3 images")
    assert "bad.png" in said[0]


def test_of_many_images_some_are_taken_from_everywhere(tmp_path: Path):
    """Of 600 images 256, the first and the last among them, no gap longer than three."""
    from PIL import Image

    for number in range(600):
        Image.new("L", (4, 4), number % 256).save(tmp_path / f"{number:03}.png")
    images, _ = sampled(str(tmp_path))
    assert len(images) == 256
    steps = np.diff(images[:, 0, 0, 0].astype(int)) % 256
    assert set(steps) <= {2, 3}
    assert (images[0, 0, 0, 0], images[-1, 0, 0, 0]) == (0, 599 % 256)


def test_a_list_gives_its_images(drawn_images: str, tmp_path: Path):
    """As --data takes it; one that is none is refused by the flag's own name."""
    whole = sorted(Path(drawn_images).glob("*/*.jpg"))[:3]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},x\n" for path in whole))
    images, _ = sampled(str(tmp_path / "list.csv"))
    np.testing.assert_array_equal(images, np.stack([decode(path.read_bytes(), 16) for path in whole]))
    (tmp_path / "none.csv").write_text("file\na.jpg\n")
    with pytest.raises(ConfigError, match=r"^--images .*none\.csv: no column label; found: file"):
        sampled(str(tmp_path / "none.csv"))


def test_without_any_image_the_remedy_is_named(drawn_manifest: Any, tmp_path: Path):
    """No run, a run without images, a folder that is empty or not there, images that are all bad."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    unsplit = drawn_manifest.with_splits(np.full(len(drawn_manifest.ok), "train"))
    unsplit.write(str(tmp_path / "manifest.parquet"))
    for given, run_folder, words in (
        ("", None, "lies in no run"),
        ("", str(tmp_path / "empty"), "lies in no run"),
        ("", str(tmp_path), "no image in its test split"),
        (str(tmp_path / "empty"), None, "no image there that is read .it is empty."),
        (str(tmp_path / "nowhere"), None, "nothing there"),
        (str(tmp_path / "bad"), None, r"can be read \(.*a\.jpg: empty\)"),
    ):
        with pytest.raises(ConfigError, match=words) as refused:
            sampled(given, run_folder)
        assert "Give --images DIR" in str(refused.value)
