"""Kept activations as a user meets them: in jobs/train.py and jobs/prepare.py, killed, damaged, on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import SMALL, final, finish, kill_tree, start, wait_for

from pharmclf import storage

pytestmark = [pytest.mark.ray, pytest.mark.tf]
KEEP = ["--activations=always", "--augment.views=2", "--workers=0", *SMALL, "--phase1.epochs=2", "--phase2.epochs=2"]


def shards(place: Path) -> dict[str, int]:
    """Time of the last change of each shard."""
    return {str(path): path.stat().st_mtime_ns for path in place.glob("activations/*/*.npy")}


def test_killed_in_the_pass_it_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    """SIGKILL while shards are written; the same command leaves those that stand alone, and ends as an unbroken run."""
    # 1,000 images in shards of 256 rows
    data = ["--demo.images-per-class=100", f"--storage={tmp_path}", *KEEP]
    process = start(*data, "--name=broken")
    wait_for(process, lambda: len(shards(tmp_path)) >= 2)
    kill_tree(process)
    before = shards(tmp_path)
    assert not list(tmp_path.glob("activations/*/index.json"))
    ended = finish(*data, "--name=broken")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    after = shards(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert len(after) > len(before)
    assert len(list(tmp_path.glob("activations/*/index.json"))) == 2
    # a second run finds them, and streams nothing: same numbers
    again = finish(*data, "--name=again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "are there already" in again.stdout
    assert shards(tmp_path) == after
    one, other = final(tmp_path / "broken"), final(tmp_path / "again")
    assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in other["weights"])


def test_a_damaged_shard_is_named_and_computed_again(drawn_images: str, tmp_path: Path) -> None:
    """Found while the run trains: it is said, mended, and the run goes on to its end by itself."""
    shared = [f"--data={drawn_images}", f"--storage={tmp_path}", *KEEP]
    prepared = finish(
        *shared[:2], *SMALL, "--augment.views=2", "--phase1.epochs=2", "--phase2.epochs=2", "--activations",
        program="jobs/prepare.py",
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    # phase 2's: at this image size they are smaller than the pooled features
    deep = min(tmp_path.glob("activations/*/train-*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(deep.read_bytes())
    content[len(content) // 2] ^= 4
    deep.write_bytes(bytes(content))
    ended = finish(*shared, "--name=run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "are there already" in ended.stdout
    (warning,) = [line for line in ended.stdout.splitlines() if line.startswith("warning")]
    assert deep.name in warning
    assert "damaged" in warning
    assert "resumed from" in ended.stdout
    assert deep.read_bytes() != bytes(content)
    whole = finish(*shared, "--name=whole")
    assert "warning" not in whole.stdout
    one, other = final(tmp_path / "run"), final(tmp_path / "whole")
    assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in other["weights"])


@pytest.mark.s3
def test_activations_on_s3_are_read_through_the_nodes_cache(
    drawn_images: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as one on local disk does, and its shards stand in the bucket and in the cache's folder."""
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE", str(tmp_path / "cache"))
    results: list[Any] = []
    for place in (bucket, str(tmp_path / "local")):
        ended = finish(f"--data={drawn_images}", f"--storage={place}", "--name=run", *KEEP)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        results.append(storage.read_json(storage.join(place, "run/result.json")))
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert list((tmp_path / "cache").glob("*.npy"))
    names = {Path(entry.location).name for entry in storage.list_files(f"{bucket}/activations")}
    assert {path.name for path in (tmp_path / "cache").glob("*.npy")} <= names


def test_without_views_the_images_are_streamed_and_it_is_said(drawn_images: str, tmp_path: Path) -> None:
    """`always` is refused with the remedy; `auto` says in one line why nothing is kept."""
    refused = finish(f"--data={drawn_images}", f"--storage={tmp_path}", "--activations=always")
    assert refused.returncode == 2
    assert "--augment.views 2" in refused.stderr
    assert "Traceback" not in refused.stderr
    process = start(f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--workers=0", *SMALL)
    wait_for(process, lambda: (tmp_path / "run" / "checkpoints").is_dir())
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert len([line for line in output.splitlines() if line.startswith("feature cache: not used")]) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["activations"] == []
