"""Takes the steps of a learning-rate range test with a phase as a run trains it, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from pharmclf.core.signals import StopRequested
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.models.devices import gpu_compute_capability, resolve_precision
from pharmclf.training import collectives, trainer
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.context import Listener, TrainingContext, TrainingDivergedError
from pharmclf.training.lr_finder import LrCurve, Smoothing, candidate_lrs, stop_reason
from pharmclf.training.lr_schedule import has_diverged
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training.train_step import StepResult, TrainStep

_WARM_STEPS = 200  # of phase 1 before phase 2 is tested, at most its own epochs


def range_test(
    job: TrainingContext,
    say: Callable[[str], None],
    rate_of: Callable[[LrCurve], float],
    stopped: Callable[[], bool],
    listener: Listener,
) -> list[LrCurve]:
    """Test every phase that has epochs. Phase 2 begins where phase 1 would leave off: its head is trained before.

    Args:
        job: of a run in this process.
        say: takes lines for the console.
        rate_of: from the curve of phase 1, the rate at which its head is trained for phase 2.
        stopped: whether a stop was asked for.
        listener: is told of images that cannot be used any more.

    Returns:
        A curve for each phase.

    Raises:
        StopRequested: a stop was requested.
    """
    workers = collectives.single_worker()
    precision = resolve_precision(job.config.precision, gpu_compute_capability())
    backbone, head = trainer.build_networks(job, workers, precision)
    curves = []
    phases = build_phases(job.config)
    for phase in phases:
        cached, microbatch = phase.name in job.activations, job.microbatches.get(phase.name, 0)
        model = TrainStep(
            job.config, workers, backbone, head, phase.unfreeze_blocks, precision, cached=cached, microbatch=microbatch
        )
        before = model.state_dict()
        say(f"{phase.name}: trying learning rates on {'kept activations' if cached else 'images'}")
        curve = _measure_curve(job, phase, model, stopped, listener)
        model.load_state_dict(before)
        curves.append(curve)
        if phase is not phases[-1]:
            _train_head_first(job, phase, model, rate_of(curve), stopped, listener)
    return curves


def _measure_curve(
    job: TrainingContext, phase: Phase, model: TrainStep, stopped: Callable[[], bool], listener: Listener
) -> LrCurve:
    """One step at each rate, until the loss breaks down."""
    rates, losses, smoothing, ended = candidate_lrs(), list[float](), Smoothing(), ""
    for rate, loss in _take_steps(job, phase, model, rates, stopped, listener):
        mean = smoothing.add(loss) if math.isfinite(loss) else loss
        ended = stop_reason(loss, mean, smoothing.lowest)
        if math.isfinite(loss):
            losses.append(loss)
        if ended:
            ended = f"{ended} at a rate of {rate:.2g}"
            break
    if stopped():
        raise StopRequested
    return LrCurve(phase.name, rates[: len(losses)].tolist(), losses, ended)


def _train_head_first(
    job: TrainingContext, phase: Phase, model: TrainStep, rate: float, stopped: Callable[[], bool], listener: Listener
) -> None:
    """Train a phase for some steps at one rate.

    Raises:
        StopRequested: a stop was requested.
        TrainingDivergedError: with this rate there is nothing that the next phase could be tested on.
    """
    steps = min(_WARM_STEPS, phase.settings.epochs * -(-len(job.train_rows) // job.config.batch_size))
    for _, loss in _take_steps(job, phase, model, np.full(steps, rate), stopped, listener):
        if has_diverged(loss, len(job.class_names)):
            raise TrainingDivergedError(
                f"the loss is {loss:.3g} in {phase.name}, which is trained for the test of the next phase at a rate of "
                f"{rate:.2g}. Lower {phase.name}.learning_rate"
            )
    if stopped():
        raise StopRequested


def _take_steps(
    job: TrainingContext,
    phase: Phase,
    model: TrainStep,
    rates: np.ndarray,
    stopped: Callable[[], bool],
    listener: Listener,
) -> Iterator[tuple[float, float]]:
    """One training step at each rate, on the run's batches in the run's order -> rate, mean loss."""
    per_epoch = -(-len(job.train_rows) // job.config.batch_size)
    plan = BatchPlan(
        job.train_rows, job.validation_rows[:0], job.config.batch_size, job.config.seed, phase.first_epoch,
        -(-len(rates) // per_epoch),
    )  # fmt: skip
    batches = device_batches(job, phase, plan, 0, listener)
    try:
        for rate in rates.tolist():
            if stopped():
                return
            model.set_learning_rate(rate)
            result = StepResult.of(model.train_step(next(batches), tf.constant(0.0)))
            yield rate, result.loss_sum / max(1.0, result.images)
    finally:
        batches.close()
