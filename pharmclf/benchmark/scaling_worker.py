"""What a worker measures: its steps alone, beside others and with them, bare all-reduces, and waiting for images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.diagnostics.allreduce_check import allreduce_fn
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.training import collectives, trainer
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.model_step import ModelStep
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training.synthetic_batch import synthetic_batch
from pharmclf.training.train_step import Batch

_FLAT_BYTES = (4, 1 << 20, 16 << 20)  # all-reduces that tell the link's latency and speed
_PLANNED_EPOCHS = 60  # so many that the stream runs ahead until it must wait, as in a real run

_Networks = tuple[Any, Any]  # backbone and head


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """What is measured."""

    job: TrainingContext
    """In whole batches."""
    sizes: tuple[int, ...]
    """Images of a step of one worker; the last one is the run's batch."""
    rounds: int
    """All is measured once in each, so that there is a quiet moment for everything."""
    steps: int
    """In a row, of each measurement of a round."""
    streamed_steps: int
    """Of each phase, on images from the stream."""


def measure(plan: MeasurePlan, workers: Workers) -> dict[str, Any]:
    """Measure all phases; every time is the best of the rounds, in seconds. (all ranks)

    Returns:
        device; flat: [(bytes, s)] of all-reduces of one tensor; and phases, for each by its name:
        parameters, bytes (summed in a step, as its graph has it),
        alone: [(images, s)] of a worker while the others rest,
        beside: the same while all compute and exchange nothing, the slowest of them,
        together: s of a step of all, by "fixed" or "grown" batch,
        spread: how many times the best one the median of the steps alone is,
        bare: s of an all-reduce of the step's tensors by itself,
        streamed: [{workers, step_s, wait_s}] with images from the stream, for one worker and for all.
        What takes more than one worker is empty, or 0, where there is one.
    """
    job, precision = plan.job, resolve_precision(plan.job.config.precision, gpu_compute_capability())
    alone = collectives.single_worker()
    own = trainer.build_networks(job, alone, precision)
    shared = trainer.build_networks(job, workers, precision) if workers.world > 1 else None
    gather = allreduce_fn(workers, [tf.zeros(())])
    flats = [allreduce_fn(workers, [tf.zeros(size // 4)]) for size in _FLAT_BYTES] if shared else []
    phases = {
        phase.name: _PhaseTimer(plan, phase, workers, own, shared, precision) for phase in build_phases(job.config)
    }

    flat_s: list[list[float]] = [[] for _ in flats]
    for _ in range(plan.rounds):
        for phase in phases.values():
            phase.measure(gather)
        for seconds, flat in zip(flat_s, flats, strict=True):
            seconds.append(_seconds(gather, flat, plan.steps))
    found = {name: phase.result() for name, phase in phases.items()}

    for group in (alone, workers) if shared else (alone,):
        gather()
        if group is workers or workers.is_chief:
            steps = {name: phase.step_of(group) for name, phase in phases.items()}
            for name, streamed in _streamed(plan, group, steps).items():
                found[name]["streamed"].append(streamed)
    gather()  # a worker that ends takes the others with it
    flat_points = [(size, min(seconds)) for size, seconds in zip(_FLAT_BYTES, flat_s, strict=False)]
    return {"device": device_name(), "flat": flat_points, "phases": found}


@dataclass(frozen=True)
class _TimedStep:
    """A training step on a batch of noise that lies on the device."""

    model: ModelStep
    batch: Batch
    vote: Any

    def __call__(self) -> None:
        self.train(self.batch)

    def train(self, batch: Batch) -> None:
        """A step on another batch of the same shape."""
        self.model.train_step(batch, self.vote).numpy()


class _PhaseTimer:
    """The steps of one phase: of this worker alone with every size, and with the others."""

    def __init__(
        self,
        plan: MeasurePlan,
        phase: Phase,
        workers: Workers,
        own: _Networks,
        shared: _Networks | None,
        precision: str,
    ) -> None:
        """Trace all steps. (all ranks)

        Args:
            own: networks of this worker.
            shared: networks of all of them; None where there is one.
        """
        self._workers, self._steps = workers, plan.steps

        def step(group: Workers, networks: _Networks, batch_size: int) -> _TimedStep:
            config = replace(plan.job.config, batch_size=batch_size)
            backbone, head = networks
            microbatch = plan.job.microbatches.get(phase.name, 0)
            model = ModelStep(config, group, backbone, head, phase.unfreeze_blocks, precision, microbatch=microbatch)
            traced = _TimedStep(model, synthetic_batch(config, -(-batch_size // group.world)), tf.constant(0.0))
            traced()
            return traced

        self._own = {size: step(collectives.single_worker(), own, size) for size in plan.sizes}
        trained = self._own[plan.sizes[-1]].model.trained
        self._parameters = sum(int(np.prod(variable.shape)) for variable in trained)
        self._shared: dict[str, _TimedStep] = {}
        self._bare: Callable[[], None] | None = None
        if shared is not None:
            total = plan.sizes[-1]
            self._shared = {
                "fixed": step(workers, shared, total),
                "grown": step(workers, shared, total * workers.world),
            }
            self._bare = allreduce_fn(workers, [*(tf.zeros(variable.shape) for variable in trained), tf.zeros(3)])
        self._alone: dict[int, list[float]] = {size: [] for size in self._own}
        self._beside: dict[int, list[float]] = {size: [] for size in self._own if shared is not None}
        self._together: dict[str, list[float]] = {kind: [] for kind in self._shared}
        self._bare_s: list[float] = []

    def measure(self, gather: Callable[[], None]) -> None:
        """Measure everything once. (all ranks)"""
        for size, seconds in self._alone.items():
            gather()
            if self._workers.is_chief:
                seconds.append(_seconds(lambda: None, self._own[size], self._steps))
        for size, seconds in self._beside.items():
            seconds.append(_seconds(gather, self._own[size], self._steps))
        for kind, seconds in self._together.items():
            seconds.append(_seconds(gather, self._shared[kind], self._steps))
        if self._bare:
            self._bare_s.append(_seconds(gather, self._bare, self._steps))

    def result(self) -> dict[str, Any]:
        """As in `measure`, on the chief; nothing is streamed yet. (all ranks)"""
        alone, beside = self._alone.values(), _slowest(self._workers, list(self._beside.values()))
        return {
            "parameters": self._parameters,
            "bytes": _reduced_bytes(self._shared["fixed"]) if self._shared else 0,
            "alone": [(size, min(seconds, default=0.0)) for size, seconds in self._alone.items()],
            "spread": max(float(np.median(seconds)) / min(seconds) if seconds else 0.0 for seconds in alone),
            "beside": list(zip(self._beside, beside, strict=True)),
            "together": {kind: min(seconds) for kind, seconds in self._together.items()},
            "bare": min(self._bare_s, default=0.0),
            "streamed": [],
        }

    def step_of(self, group: Workers) -> _TimedStep:
        """The step with the run's batch on these workers."""
        return self._shared["fixed"] if group.world > 1 else list(self._own.values())[-1]


def _reduced_bytes(step: _TimedStep) -> int:
    """Bytes that a step sums over the workers."""
    graph = step.model.train_step.get_concrete_function(step.batch, step.vote).graph
    summed = [operation.inputs[0] for operation in graph.get_operations() if "CollectiveReduce" in operation.type]
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in summed)


def _slowest(workers: Workers, times: list[list[float]]) -> list[float]:
    """Of the times of each round those of the slowest worker, and of them the best. (all ranks)"""
    if not times:
        return []
    each = np.zeros((workers.world, len(times), len(times[0])))
    each[workers.rank] = times
    total = tf.function(
        lambda own: workers.run(lambda own: workers.all_reduce_sum([tf.identity(own)])[0], own), autograph=False
    )
    return total(tf.constant(each)).numpy().max(axis=0).min(axis=-1).tolist()


def _streamed(plan: MeasurePlan, group: Workers, steps: Mapping[str, _TimedStep]) -> dict[str, dict[str, Any]]:
    """Steps on images from the stream, phase after phase on one pipeline. (all ranks of the group)"""
    job = plan.job
    phases = build_phases(job.config)
    nothing = job.validation_rows[:0]
    settings = job.config.batch_size, job.config.seed, phases[0].first_epoch, _PLANNED_EPOCHS
    batches = device_batches(job, phases[0], BatchPlan(job.train_rows, nothing, *settings, group.rank, group.world), 0)
    found = {}
    try:
        for phase in phases:
            steps[phase.name].train(next(batches))
            waits, wholes = [], []
            for _ in range(plan.streamed_steps):
                began = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - began)
                steps[phase.name].train(batch)
                wholes.append(time.perf_counter() - began)
            step_s, wait_s = float(np.median(wholes)), float(np.mean(waits))
            found[phase.name] = {"workers": group.world, "step_s": step_s, "wait_s": wait_s}
    finally:
        batches.close()
    return found


def _seconds(gather: Callable[[], None], work: Callable[[], None], times: int) -> float:
    """Seconds of one of several in a row, begun by all at once."""
    gather()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times
