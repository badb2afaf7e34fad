"""Position of a worker's training loop, which other threads read, and the time to the end of a phase."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pharmclf.core.rate import RateEstimator
from pharmclf.data.batch_sampler import BatchPlan

_MIN_EPOCHS, _MIN_MEASURED_S = 2, 120.0  # before an ETA: while a phase fills its caches, it may take thrice as long
LoopPosition = tuple[str, int, int]
"""Phase, epoch and step, both from 0; validation steps are counted after the training steps."""


@dataclass
class LoopProgress:
    """Written by the loop at every batch; a reader may see the batch before."""

    beats: int = 0
    place: LoopPosition | None = None
    _first: bool = True  # whether the batch is the first of its phase
    _waited_s: float = 0.0
    _waits_since: float | None = None

    def on_batch(self, place: LoopPosition) -> None:
        """The loop needs a batch."""
        self._first = self.place is None or self.place[0] != place[0]
        self.place = place
        self.beats += 1

    def on_wait_start(self) -> None:
        """The device is idle until the batch arrives."""
        self._waits_since = time.monotonic()

    def on_wait_end(self) -> None:
        """The batch has arrived."""
        waited_s = self.waited_s()
        self._waits_since = None  # first, so that a concurrent reader never counts too much
        self._waited_s = waited_s

    def waited_s(self) -> float:
        """Seconds in which the device has waited for batches, except for the first one of each phase."""
        since = self._waits_since
        return self._waited_s + (time.monotonic() - since if since is not None and not self._first else 0.0)


class PhaseClock:
    """Speed of the steps of a phase, and the time to its end; the validation is timed separately."""

    def __init__(
        self, plan: BatchPlan, step_costs: Sequence[float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """No step has been taken.

        Args:
            step_costs: time of a training step in each epoch of the phase, as a multiple of that at the model's image
                size.
        """
        self._plan, self._step_costs, self._clock = plan, step_costs, clock
        self._rate, self._validating_s = RateEstimator(), 0.0
        self._validation_s: float | None = None  # of the latest epoch
        self._num_validated, self._first_at = 0, math.inf

    def after_step(self, epoch: int, step: int) -> None:
        """Training steps of an epoch have been computed."""
        self._first_at = min(self._first_at, self._clock())
        self._rate.update(self._work(epoch, step), self._clock() - self._validating_s)

    def after_validation(self, seconds: float) -> None:
        """An epoch has been validated."""
        self._validation_s = seconds
        self._validating_s += seconds
        self._num_validated += 1

    def _work(self, epoch: int, step: int) -> float:
        """Cost of all training steps before this one."""
        return self._plan.train_steps * sum(self._step_costs[:epoch]) + step * self._step_costs[epoch]

    def steps_per_second(self, epoch: int) -> float | None:
        """Training steps per second of an epoch as of late; None where unknown."""
        speed = self._rate.per_second
        return None if speed is None else speed / self._step_costs[epoch]

    def eta_s(self, epoch: int, step: int) -> float | None:
        """Seconds to the end of the phase if it does not stop early; None while they are not known.

        Args:
            epoch: from 0.
            step: training steps of it that have been started.
        """
        if self._num_validated < _MIN_EPOCHS and self._clock() - self._first_at < _MIN_MEASURED_S:
            return None
        epochs_left = len(self._step_costs) - epoch
        work_left = self._plan.train_steps * sum(self._step_costs) - self._work(epoch, step)
        training_s, step_s = self._rate.eta_s(work_left), self._rate.eta_s(1.0)
        if training_s is None or step_s is None:
            return None
        # a validation step costs no more than a training step, but the first one compiles its graph
        validation_s = self._plan.validation_steps * step_s
        if self._validation_s is not None:
            validation_s = min(validation_s, self._validation_s)
        return training_s + epochs_left * validation_s
