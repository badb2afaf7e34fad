"""The stream of a phase: its pipelines one after the other, on the Ray that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.data import ray_loader
from pharmclf.data.batch_sampler import PADDING, BatchPlan
from pharmclf.data.image_set import ImageSet

SIZE = 32


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_steps_are_cut_from_blocks_of_any_length(counts: list[int], rows: int):
    """Every row once, in order; all steps are whole but the last."""
    numbers = np.arange(sum(counts))
    blocks = [{"bad": part, "image": part[:, None]} for part in np.split(numbers, np.cumsum(counts)[:-1])]
    steps = list(ray_loader.assemble_steps(iter(blocks if counts else []), rows))
    assert [len(step["bad"]) for step in steps[:-1]] == [rows] * (len(steps) - 1)
    joined = [np.concatenate([step[name] for step in steps]) if steps else numbers for name in ("bad", "image")]
    np.testing.assert_array_equal(joined[0], numbers)
    np.testing.assert_array_equal(joined[1].reshape(-1), numbers)


@pytest.mark.ray
@pytest.mark.parametrize("block_rows", [32, 24, 5, 1])
@pytest.mark.parametrize("first", [0, 10])
def test_the_stream_is_the_same_however_many_pipelines_it_takes(
    shared_ray: None, drawn_images: str, first: int, block_rows: int, monkeypatch: pytest.MonkeyPatch
):
    """Every image of every step, in the order of the plan, black where a step is padded; a step may span blocks."""
    paths = sorted(str(path) for path in Path(drawn_images).glob("*/*.jpg"))
    rows = np.arange(len(paths))
    plan = BatchPlan(rows[:50], rows[50:], 16, 0, 0, 3)
    monkeypatch.setattr(ray_loader, "_BLOCK_BYTES", block_rows * SIZE * SIZE * 3)
    monkeypatch.setattr(ray_loader, "_SECTION_BLOCKS", 96 // block_rows)
    monkeypatch.setattr(ray_loader, "_OVERLAP_BLOCKS", 1)
    batches = list(ray_loader.load_batches(plan, ImageSet.of_paths(paths), SIZE, first=first))
    assert len(batches) == plan.num_steps - first
    assert plan.num_steps - first > 6  # more than one pipeline
    images, _ = ray_loader.load_images(ImageSet.of_paths(paths), SIZE)
    for index, (batch, bad) in enumerate(batches):
        wanted = plan.step(first + index).rows
        expected = np.where((wanted != PADDING)[:, None, None, None], images[wanted], 0)
        np.testing.assert_array_equal(batch, expected)
        assert set(bad) == {""}
