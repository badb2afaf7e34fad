"""An export takes its place whole, or leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.export.output_dir import atomic_output_dir


def fill(part: Path) -> None:
    (part / "savedmodel" / "variables").mkdir(parents=True)
    (part / "savedmodel" / "variables" / "data").write_bytes(b"weights")
    (part / "export.json").write_text("{}")


def files(location: str) -> list[str]:
    try:
        return [entry.location.removeprefix(location) for entry in storage.list_files(location)]
    except FileNotFoundError:
        return []


def test_what_is_filled_takes_the_place_when_all_is_done(root: str):
    """Until the end nothing stands at the place; then every file does, and nothing else anywhere."""
    out = storage.join(root, "deep", "out")
    with atomic_output_dir(out, last="export.json") as part:
        fill(part)
        assert files(out) == []
    assert files(out) == ["/export.json", "/savedmodel/variables/data"]
    assert storage.read_bytes(storage.join(out, "savedmodel/variables/data")) == b"weights"
    assert len(files(root)) == 2
    assert not part.exists()


def test_a_failure_leaves_nothing(root: str):
    """Neither at the place nor beside it; the failure comes out."""
    parts = []

    def stopped() -> None:
        with atomic_output_dir(storage.join(root, "out"), last="export.json") as part:
            parts.append(part)
            fill(part)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert files(root) == []
    assert [part.exists() for part in parts] == [False]


def test_a_place_that_is_taken_is_left_as_it_is(root: str):
    """A folder with a file in it, or a file: bad input, before anything is done."""
    for taken, out in (("out/mine.txt", "out"), ("file", "file")):
        storage.write_bytes(storage.join(root, taken), b"mine")
        with pytest.raises(ConfigError, match=r"--out: received .* left as it is"):
            with atomic_output_dir(storage.join(root, out), last="export.json"):
                pytest.fail("entered")
        assert storage.read_bytes(storage.join(root, taken)) == b"mine"
    assert len(files(root)) == 2


def test_an_empty_folder_is_no_obstacle(tmp_path: Path):
    """As `mkdir` or `mktemp -d` leaves it."""
    (tmp_path / "out").mkdir()
    with atomic_output_dir(str(tmp_path / "out"), last="export.json") as part:
        fill(part)
    assert (tmp_path / "out" / "export.json").exists()


@pytest.mark.parametrize("out", ["", "/", "/proc/nowhere"])
def test_a_place_that_cannot_be_is_bad_input(out: str):
    """No name, the root of a disk, a file system that takes no folder."""
    with pytest.raises(ConfigError, match="--out"), atomic_output_dir(out, last="export.json"):
        pytest.fail("entered")
