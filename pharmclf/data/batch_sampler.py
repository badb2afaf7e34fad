"""Deterministic batch sampler: maps (seed, epoch, step, rank) to rows of the data set. Pure.

Global batch b of an epoch is rows b·G … (b+1)·G of the epoch's order, for any number of workers. Each worker takes
its slice of every batch; a short slice is padded with row -1, so that every step has the same shape. An epoch is its
training steps followed by its validation steps: one sequence, so that one pipeline serves the phase.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pharmclf.data.stateless_rng import shuffled

PADDING = -1


def effective_batch_size(batch_size: int, num_train: int, num_validation: int) -> int:
    """The global batch that is computed: no larger than the rows of an epoch. Pure.

    The steps equal those of the larger batch, since no step has more rows.
    """
    return min(batch_size, max(num_train, num_validation, 1))


@dataclass(frozen=True)
class BatchSlice:
    """One step of one worker."""

    epoch: int
    """Epoch within the phase, from 0."""
    number: int
    """Number of the step within the epoch's training or validation steps, from 0."""
    training: bool
    """Whether it trains; else it validates."""
    rows: NDArray[np.int64]
    """(local batch,) int64 row numbers of the manifest, `PADDING` where the slice is short."""
    count: int
    """Rows of the global batch, over all workers."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The steps of one phase for one worker."""

    train_rows: NDArray[np.int64]
    """(n,) int64 row numbers of the training split."""
    validation_rows: NDArray[np.int64]
    """(m,) int64 row numbers of the validation split."""
    batch_size: int
    """Global batch."""
    seed: int
    first_epoch: int
    """Number of the phase's first epoch among all epochs of the run: the order of epoch e is f(seed, first + e)."""
    epochs: int
    rank: int = 0
    world: int = 1

    @property
    def local_batch(self) -> int:
        """Rows of each step of one worker, padding included."""
        return -(-self.batch_size // self.world)

    @property
    def train_steps(self) -> int:
        """Training steps of an epoch."""
        return -(-len(self.train_rows) // self.batch_size)

    @property
    def validation_steps(self) -> int:
        """Validation steps of an epoch."""
        return -(-len(self.validation_rows) // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Training and validation steps of an epoch."""
        return self.train_steps + self.validation_steps

    @property
    def num_steps(self) -> int:
        """All steps of the phase."""
        return self.epochs * self.steps_per_epoch

    def index(self, epoch: int, number: int) -> int:
        """Index of training step `number` of an epoch in the phase."""
        return epoch * self.steps_per_epoch + number

    def step(self, index: int) -> BatchSlice:
        """The step at an index, 0 <= index < num_steps."""
        epoch, place = divmod(index, self.steps_per_epoch)
        training = place < self.train_steps
        number = place if training else place - self.train_steps
        order = _epoch_order(self, self.first_epoch + epoch) if training else self.validation_rows
        batch = order[number * self.batch_size : (number + 1) * self.batch_size]
        batch_slice = batch[self.rank * self.local_batch : (self.rank + 1) * self.local_batch]
        rows = np.full(self.local_batch, PADDING, np.int64)
        rows[: len(batch_slice)] = batch_slice
        return BatchSlice(epoch, number, training, rows, len(batch))

    def rows(self, steps: Iterable[int]) -> NDArray[np.int64]:
        """The rows of some steps, given by index, one after the other: (steps * local batch,) int64, padded."""
        return np.concatenate([self.step(index).rows for index in steps])


@functools.lru_cache(maxsize=4)
def _epoch_order(plan: BatchPlan, epoch: int) -> NDArray[np.int64]:
    return shuffled(plan.seed, epoch, plan.train_rows)


def view_index(epoch: int, views: int) -> int:
    """The view of an epoch of the run: epoch mod views, or a new one for each epoch where views is 0."""
    return epoch % views if views else epoch
