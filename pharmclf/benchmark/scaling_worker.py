"""The measurements of a worker: steps alone, concurrent and together, bare all-reduces, and waiting for images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from pharmclf.benchmark.scaling_model import BatchScaling, PhaseMeasurement, StreamedSteps
from pharmclf.benchmark.timed_step import Networks, TimedStep, build_step
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.diagnostics.allreduce_check import allreduce_fn
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.training import collectives
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.model_step import build_networks
from pharmclf.training.phases import Phase, build_phases

_FLAT_BYTES = (4, 1 << 20, 16 << 20)  # of the all-reduces for the latency and speed of the link
_NUM_ROUNDS = 9  # each measures everything once; the best one counts
_NUM_STEPS = 2  # in a row, of each measurement of a round
_NUM_STREAMED_STEPS = 8  # of each phase
_PLANNED_EPOCHS = 60  # so many that the stream prefetches until it must wait, as in a run


@dataclass(frozen=True, kw_only=True)
class WorkerMeasurement:
    """Times in seconds, the best of all rounds."""

    device: str
    flat: list[tuple[int, float]]
    """(bytes, seconds) of all-reduces of one tensor; empty for one worker."""
    phases: dict[str, PhaseMeasurement]


def measure(job: TrainingContext, sizes: Sequence[int], workers: Workers) -> WorkerMeasurement:
    """Measure all phases. (all ranks)

    Args:
        job: with complete batches.
        sizes: images of a step of one worker; the last one is the run's batch.
    """
    precision = resolve_precision(job.config.precision, gpu_compute_capability())
    alone = collectives.single_worker()
    networks = build_networks(job, alone, precision)
    shared = build_networks(job, workers, precision) if workers.world > 1 else None
    gather = allreduce_fn(workers, [tf.zeros(())])
    flats = [allreduce_fn(workers, [tf.zeros(size // 4)]) for size in _FLAT_BYTES] if shared else []
    phases = {
        phase.name: _PhaseTimer(job, sizes, phase, workers, networks, shared, precision)
        for phase in build_phases(job.config)
    }

    flat_s: list[list[float]] = [[] for _ in flats]
    for _ in range(_NUM_ROUNDS):
        for phase in phases.values():
            phase.measure(gather)
        for seconds, flat in zip(flat_s, flats, strict=True):
            seconds.append(_seconds(gather, flat))
    results = {name: phase.result() for name, phase in phases.items()}

    for group in (alone, workers) if shared else (alone,):
        gather()
        if group is workers or workers.is_chief:
            steps = {name: phase.step_of(group) for name, phase in phases.items()}
            for name, streamed in _measure_streamed(job, group, steps).items():
                results[name].streamed.append(streamed)
    gather()  # a worker that ends breaks the calls of the others
    flat_points = [(size, min(seconds)) for size, seconds in zip(_FLAT_BYTES, flat_s, strict=False)]
    return WorkerMeasurement(device=device_name(), flat=flat_points, phases=results)


class _PhaseTimer:
    """The steps of one phase: of this worker alone with every size, and with the others."""

    def __init__(
        self,
        job: TrainingContext,
        sizes: Sequence[int],
        phase: Phase,
        workers: Workers,
        networks: Networks,
        shared: Networks | None,
        precision: str,
    ) -> None:
        """Trace all steps, on `networks` of this worker and on `shared` ones, None where it is alone. (all ranks)"""
        self._workers = workers

        def trace(group: Workers, group_networks: Networks, batch_size: int) -> TimedStep:
            of_size = replace(job, config=replace(job.config, batch_size=batch_size))
            step = build_step(of_size, phase, group, group_networks, precision)
            step()
            return step

        self._single = {size: trace(collectives.single_worker(), networks, size) for size in sizes}
        trained = self._single[sizes[-1]].model.trained
        self._parameters = sum(int(np.prod(variable.shape)) for variable in trained)
        self._shared: dict[BatchScaling, TimedStep] = {}
        self._bare: Callable[[], None] | None = None
        if shared is not None:
            grown = sizes[-1] * workers.world
            self._shared = {"fixed": trace(workers, shared, sizes[-1]), "grown": trace(workers, shared, grown)}
            self._bare = allreduce_fn(workers, [*(tf.zeros(variable.shape) for variable in trained), tf.zeros(3)])
        self._alone: dict[int, list[float]] = {size: [] for size in self._single}
        self._beside: dict[int, list[float]] = {size: [] for size in self._single if shared is not None}
        self._together: dict[BatchScaling, list[float]] = {kind: [] for kind in self._shared}
        self._bare_s: list[float] = []

    def measure(self, gather: Callable[[], None]) -> None:
        """Measure everything once. (all ranks)"""
        for size, seconds in self._alone.items():
            gather()
            if self._workers.is_chief:
                seconds.append(_seconds(lambda: None, self._single[size]))
        for size, seconds in self._beside.items():
            seconds.append(_seconds(gather, self._single[size]))
        for kind, seconds in self._together.items():
            seconds.append(_seconds(gather, self._shared[kind]))
        if self._bare:
            self._bare_s.append(_seconds(gather, self._bare))

    def result(self) -> PhaseMeasurement:
        """The times, on the chief; nothing is streamed yet. (all ranks)"""
        alone, beside = self._alone.values(), _slowest(self._workers, list(self._beside.values()))
        return PhaseMeasurement(
            parameters=self._parameters,
            bytes=_reduced_bytes(self._shared["fixed"]) if self._shared else 0,
            alone=[(size, min(seconds, default=0.0)) for size, seconds in self._alone.items()],
            spread=max(float(np.median(seconds)) / min(seconds) if seconds else 0.0 for seconds in alone),
            beside=list(zip(self._beside, beside, strict=True)),
            together={kind: min(seconds) for kind, seconds in self._together.items()},
            bare=min(self._bare_s, default=0.0),
            streamed=[],
        )

    def step_of(self, group: Workers) -> TimedStep:
        """The step of these workers with the batch of the run."""
        return self._shared["fixed"] if group.world > 1 else list(self._single.values())[-1]


def _reduced_bytes(step: TimedStep) -> int:
    """Bytes that a step sums over the workers."""
    graph = step.model.train_step.get_concrete_function(step.batch, tf.constant(0.0)).graph
    summed = [operation.inputs[0] for operation in graph.get_operations() if "CollectiveReduce" in operation.type]
    return int(sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in summed))


def _slowest(workers: Workers, times: list[list[float]]) -> list[float]:
    """The times of the slowest worker in each round, and of those the best. (all ranks)"""
    if not times:
        return []
    each = np.zeros((workers.world, len(times), len(times[0])))
    each[workers.rank] = times
    total = tf.function(
        lambda own: workers.run(lambda own: workers.all_reduce_sum([tf.identity(own)])[0], own), autograph=False
    )
    slowest: np.ndarray = total(tf.constant(each)).numpy().max(axis=0)
    return [float(seconds) for seconds in slowest.min(axis=-1)]


def _measure_streamed(job: TrainingContext, group: Workers, steps: Mapping[str, TimedStep]) -> dict[str, StreamedSteps]:
    """Steps on images from the stream, phase after phase on one pipeline. (all ranks of the group)"""
    phases = build_phases(job.config)
    no_rows = job.validation_rows[:0]
    settings = job.config.batch_size, job.config.seed, phases[0].first_epoch, _PLANNED_EPOCHS
    batches = device_batches(job, phases[0], BatchPlan(job.train_rows, no_rows, *settings, group.rank, group.world), 0)
    results = {}
    try:
        for phase in phases:
            steps[phase.name].train(next(batches))
            wait_s, step_s = list[float](), list[float]()
            for _ in range(_NUM_STREAMED_STEPS):
                began = time.perf_counter()
                batch = next(batches)
                wait_s.append(time.perf_counter() - began)
                steps[phase.name].train(batch)
                step_s.append(time.perf_counter() - began)
            results[phase.name] = StreamedSteps(
                workers=group.world, step_s=float(np.median(step_s)), wait_s=float(np.mean(wait_s))
            )
    finally:
        batches.close()
    return results


def _seconds(gather: Callable[[], None], work: Callable[[], object]) -> float:
    """Mean seconds of calls in a row, which all workers begin at the same time."""
    gather()
    began = time.perf_counter()
    for _ in range(_NUM_STEPS):
        work()
    return (time.perf_counter() - began) / _NUM_STEPS
