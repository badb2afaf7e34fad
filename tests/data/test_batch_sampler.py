"""The plan: every row once per epoch, and the same batches for any number of workers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.data.batch_sampler import PADDING, BatchPlan, BatchSlice, effective_batch_size, view_index


@st.composite
def _plans(draw: st.DrawFn) -> BatchPlan:
    """One worker's plan of any phase: row numbers with gaps, as quarantine and splits leave them."""
    rows = draw(st.permutations(range(0, 3 * draw(st.integers(2, 40)), 3)))
    cut = draw(st.integers(1, len(rows) - 1))
    return BatchPlan(
        train_rows=np.sort(rows[:cut]),
        validation_rows=np.sort(rows[cut:]),
        batch_size=draw(st.integers(1, 16)),
        seed=draw(st.integers(0, 2**31 - 1)),
        first_epoch=draw(st.integers(0, 50)),
        epochs=draw(st.integers(1, 3)),
    )


WORLDS = st.integers(1, 5)


def _workers(plan: BatchPlan, world: int) -> list[BatchPlan]:
    return [replace(plan, rank=rank, world=world) for rank in range(world)]


def _steps(plan: BatchPlan) -> list[BatchSlice]:
    return [plan.step(index) for index in range(plan.num_steps)]


def _global_batches(plan: BatchPlan, world: int) -> list[list[int]]:
    """What all workers together see in each step, in the order of ranks, without padding."""
    shares = zip(*(_steps(worker) for worker in _workers(plan, world)), strict=True)
    return [[int(row) for step in share for row in step.rows if row != PADDING] for share in shares]


@settings(deadline=None, max_examples=60)
@given(_plans(), WORLDS)
def test_every_row_stands_once_in_an_epoch(plan: BatchPlan, world: int):
    """Over all workers, each epoch trains every training row once and validates every validation row once."""
    trained: dict[int, list[int]] = {}
    validated: dict[int, list[int]] = {}
    for worker in _workers(plan, world):
        for step in _steps(worker):
            rows = (trained if step.training else validated).setdefault(step.epoch, [])
            rows.extend(int(row) for row in step.rows if row != PADDING)
    assert set(trained) == set(validated) == set(range(plan.epochs))
    for epoch in range(plan.epochs):
        assert sorted(trained[epoch]) == plan.train_rows.tolist()
        assert sorted(validated[epoch]) == plan.validation_rows.tolist()


@settings(deadline=None, max_examples=60)
@given(_plans(), WORLDS)
def test_any_number_of_workers_takes_the_same_batches(plan: BatchPlan, world: int):
    """Global batch b holds the same rows in the same order for one worker and for many; all know its count."""
    alone = _global_batches(plan, 1)
    assert _global_batches(plan, world) == alone
    for worker in _workers(plan, world):
        assert [step.count for step in _steps(worker)] == [len(batch) for batch in alone]


@settings(deadline=None, max_examples=60)
@given(_plans())
def test_batch_b_is_the_rows_from_b_times_g(plan: BatchPlan):
    """Cut out of the epoch's order at b·G … (b+1)·G: full batches, and one short one at the end at most."""
    steps = _steps(plan)
    for epoch in range(plan.epochs):
        batches = [step.rows[step.rows != PADDING] for step in steps if step.training and step.epoch == epoch]
        order = np.concatenate(batches)
        for number, batch in enumerate(batches):
            first = number * plan.batch_size
            np.testing.assert_array_equal(batch, order[first : first + plan.batch_size])


@settings(deadline=None, max_examples=60)
@given(_plans(), WORLDS)
def test_padding_stands_at_the_end_of_a_slice_only(plan: BatchPlan, world: int):
    """Every slice has the same shape; real rows first; no worker is padded before a later one has rows."""
    for worker in _workers(plan, world):
        for step in _steps(worker):
            assert step.rows.shape == (worker.local_batch,)
            assert step.rows.dtype == np.int64
            real = step.rows != PADDING
            assert real.tolist() == sorted(real.tolist(), reverse=True)
    for share in zip(*(_steps(worker) for worker in _workers(plan, world)), strict=True):
        filled = [int((step.rows != PADDING).sum()) for step in share]
        assert filled == sorted(filled, reverse=True)
        assert sum(filled) == share[0].count


@settings(deadline=None, max_examples=60)
@given(_plans(), WORLDS)
def test_steps_are_counted_once_and_in_order(plan: BatchPlan, world: int):
    """An epoch is its training steps, then its validation steps; `index` and `step` undo each other."""
    worker = _workers(plan, world)[-1]
    assert worker.train_steps == int(np.ceil(len(plan.train_rows) / plan.batch_size))
    assert worker.validation_steps == int(np.ceil(len(plan.validation_rows) / plan.batch_size))
    assert worker.num_steps == plan.epochs * (worker.train_steps + worker.validation_steps)
    assert worker.local_batch * world >= plan.batch_size > (worker.local_batch - 1) * world
    expected = [
        (epoch, number, training)
        for epoch in range(plan.epochs)
        for training, count in ((True, worker.train_steps), (False, worker.validation_steps))
        for number in range(count)
    ]
    assert [(step.epoch, step.number, step.training) for step in _steps(worker)] == expected
    for epoch, number, training in expected:
        if training:
            step = worker.step(worker.index(epoch, number))
            assert (step.epoch, step.number, step.training) == (epoch, number, True)


@settings(deadline=None, max_examples=40)
@given(_plans())
def test_validation_rows_keep_their_order(plan: BatchPlan):
    """Every epoch validates the same rows in the same order, so that epochs can be compared."""
    for epoch in range(plan.epochs):
        steps = [step for step in _steps(plan) if step.epoch == epoch and not step.training]
        rows = np.concatenate([step.rows[step.rows != PADDING] for step in steps])
        np.testing.assert_array_equal(rows, plan.validation_rows)


def _plan(**changes: Any) -> BatchPlan:
    settings = {"batch_size": 8, "seed": 1, "first_epoch": 0, "epochs": 2}
    return BatchPlan(np.arange(64), np.arange(64, 80), **(settings | changes))


def _order(plan: BatchPlan, epoch: int) -> list[int]:
    steps = [plan.step(plan.index(epoch, number)) for number in range(plan.train_steps)]
    return [int(row) for step in steps for row in step.rows if row != PADDING]


def test_epochs_and_seeds_have_orders_of_their_own():
    """Another epoch, another seed: another order. The same ones: the same."""
    assert _order(_plan(), 0) == _order(_plan(), 0)
    orders = [_order(_plan(), 0), _order(_plan(), 1), _order(_plan(seed=2), 0), list(range(64))]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_depends_on_the_epoch_of_the_run():
    """Epoch 1 of a phase that begins with the run's epoch 4 is epoch 0 of one that begins with epoch 5."""
    assert _order(_plan(first_epoch=4), 1) == _order(_plan(first_epoch=5), 0)
    assert _order(_plan(batch_size=8), 1) == _order(_plan(batch_size=20), 1)


def test_a_plan_sent_to_another_process_is_the_same_plan():
    """Ray's tasks unpickle the plan and find the steps that the driver finds."""
    plan = _plan(rank=1, world=3)
    there = pickle.loads(pickle.dumps(plan))
    for index in range(plan.num_steps):
        np.testing.assert_array_equal(there.step(index).rows, plan.step(index).rows)


@pytest.mark.parametrize(("views", "expected"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 0, 0, 0]), (3, [0, 1, 2, 0, 1])])
def test_epochs_share_views_in_turn(views: int, expected: list[int]):
    """Epoch e sees view e mod views; without a number of views each has its own."""
    assert [view_index(epoch, views) for epoch in range(5)] == expected


@settings(deadline=None, max_examples=60)
@given(_plans(), st.integers(1, 100_000))
def test_a_batch_beyond_the_data_computes_the_rows_that_there_are(plan: BatchPlan, batch_size: int):
    """In the same steps on the same rows, in the same order, with the same counts; one that fits is left as it is."""
    asked = replace(plan, batch_size=batch_size)
    num_train, num_validation = len(plan.train_rows), len(plan.validation_rows)
    computed = replace(plan, batch_size=effective_batch_size(batch_size, num_train, num_validation))
    assert computed.local_batch <= max(num_train, num_validation)
    assert computed.batch_size == batch_size or batch_size > max(num_train, num_validation)
    assert computed.num_steps == asked.num_steps
    for index in range(min(asked.num_steps, 8)):
        one, other = asked.step(index), computed.step(index)
        assert (one.epoch, one.number, one.training) == (other.epoch, other.number, other.training)
        assert one.count == other.count
        assert np.array_equal(one.rows[one.rows != PADDING], other.rows[other.rows != PADDING])
