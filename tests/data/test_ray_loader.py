"""The stream of a phase: its pipelines one after the other, on the Ray that the tests share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.data import ray_loader
from pharmclf.data.batch_sampler import PADDING, BatchPlan
from pharmclf.data.image_set import ImageSet

SIZE = 32


def test_a_part_is_begun_while_the_one_before_still_has_items():
    """Not earlier, not in the thread that reads, and only the next one; the items keep their order."""
    begun: dict[int, threading.Event] = {number: threading.Event() for number in range(3)}
    threads = set()

    def part(number: int) -> Iterator[int]:
        begun[number].set()
        threads.add(threading.get_ident())
        yield from range(10 * number, 10 * number + 10)

    items = ray_loader.chain_prefetched([(part(number), 10) for number in range(3)], overlap=4)
    assert list(itertools.islice(items, 6)) == list(range(6))
    assert not begun[1].is_set()
    assert next(items) == 6  # behind it are three more, and the next part is asked for before it is given
    assert begun[1].wait(10)
    assert not begun[2].is_set()
    assert list(items) == list(range(7, 30))
    assert len(threads) == 3


def test_an_error_comes_at_the_item_that_it_concerns():
    def broken() -> Iterator[int]:
        yield 10
        raise ValueError("the second item of the second part")

    items = ray_loader.chain_prefetched([(iter(range(3)), 3), (broken(), 2)], overlap=3)
    assert list(itertools.islice(items, 4)) == [0, 1, 2, 10]
    with pytest.raises(ValueError, match="second part"):
        next(items)


def test_parts_that_are_not_read_to_their_end_are_let_go():
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = ray_loader.chain_prefetched([(iter(range(2)), 2), (endless(), 1000)], overlap=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    del items
    assert closed.wait(10)


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
