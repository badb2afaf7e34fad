"""Kept activations as a user meets them: in jobs/train.py and jobs/prepare.py, killed and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.programs import SMALL, call, final, finish, kill_tree, start, wait_for
from support.trained_runs import TrainedRuns

pytestmark = [pytest.mark.ray, pytest.mark.tf]
KEEP = [
    "--feature-cache=always",
    "--augment.views=2",
    "--num-workers=0",
    *SMALL,
    "--phase1.epochs=2",
    "--phase2.epochs=2",
]


def shards(place: Path) -> dict[str, int]:
    """Time of the last change of each shard."""
    return {str(path): path.stat().st_mtime_ns for path in place.glob("activations/*/*.npy")}


@pytest.mark.slow
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
    assert "the features of phase1 and phase2 exist" in again.stdout
    assert shards(tmp_path) == after
    one, other = final(tmp_path / "broken"), final(tmp_path / "again")
    assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in other["weights"])


def test_a_damaged_shard_is_named_and_computed_again(shared_ray: None, drawn_images: str, tmp_path: Path) -> None:
    """jobs/prepare.py computes the shards. Found damaged while a run trains, one is named and mended, and the run goes
    on to its end by itself; a second run reads the same shards, and ends with the same weights."""
    shared = [f"--data={drawn_images}", f"--storage={tmp_path}", *KEEP]
    prepared = finish(
        *shared[:2], *SMALL, "--augment.views=2", "--phase1.epochs=2", "--phase2.epochs=2", "--precompute-features",
        program="jobs/prepare.py",
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    # phase 2's: at this image size they are smaller than the pooled features
    deep = min(tmp_path.glob("activations/*/train-*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(deep.read_bytes())
    content[len(content) // 2] ^= 4
    deep.write_bytes(bytes(content))
    ended = call(*shared, "--name=run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (warning,) = [line for line in ended.stdout.splitlines() if line.startswith("warning")]
    assert deep.name in warning
    assert "damaged" in warning
    assert "resumed from" in ended.stdout
    assert deep.read_bytes() != bytes(content)
    computed = shards(tmp_path)
    whole = call(*shared, "--name=whole")
    assert "warning" not in whole.stdout
    assert shards(tmp_path) == computed
    one, other = final(tmp_path / "run"), final(tmp_path / "whole")
    assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in other["weights"])


def test_without_views_the_images_are_streamed_and_it_is_said(trained: TrainedRuns, tmp_path: Path) -> None:
    """`always` is refused with the remedy; `auto` says in one line why nothing is kept."""
    refused = call(f"--data={trained.images}", f"--storage={tmp_path}", "--feature-cache=always")
    assert refused.returncode == 2
    assert "--augment.views 2" in refused.stderr
    assert "Traceback" not in refused.stderr
    output = trained.output("unbroken")
    assert len([line for line in output.splitlines() if line.startswith("feature cache: not used")]) == 1
    assert json.loads((trained.unbroken / "run" / "run.json").read_text())["activations"] == []
