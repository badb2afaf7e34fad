"""A model of the time of a training step on many workers, fitted to measurements, and its forecast; pure.

A step is the longer of computing and waiting for images, and then the all-reduce: gradients are summed after the
backward pass, so that nothing hides the exchange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from pharmclf.core.errors import ConfigError

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of GPUs of the forecast."""

BatchScaling = Literal["fixed", "grown"]
"""fixed: one global batch for any number of workers, as in a run; grown: a global batch for each worker."""


@dataclass(frozen=True)
class Compute:
    """Compute time of a worker in a step, in seconds: a fixed part, and a part for each of its images."""

    fixed_s: float
    image_s: float

    def seconds(self, images: float) -> float:
        """Compute time of a step with so many images on the worker."""
        return self.fixed_s + self.image_s * images


@dataclass(frozen=True)
class Link:
    """The connection of two workers that are neighbours in a ring."""

    bytes_per_s: float
    """One way."""
    latency_s: float
    """Of one message."""

    def ring_s(self, size: float, workers: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes: each worker sends 2 (N - 1) messages of the N-th part."""
        return 2 * (workers - 1) * (size / workers / self.bytes_per_s + self.latency_s)


@dataclass(frozen=True)
class Network:
    """Nodes with workers: tensors are summed inside each node first, and then between nodes over one link a node."""

    between: Link
    inside: Link
    per_node: int = 1

    def all_reduce_s(self, size: float, workers: int) -> float:
        """Seconds of the all-reduce of `size` bytes; nodes are filled one after the other."""
        local = min(workers, self.per_node)
        return self.inside.ring_s(size, local) + self.between.ring_s(size, -(-workers // local))


def fit_compute(points: Sequence[tuple[int, float]]) -> Compute:
    """The line through measured steps, (images, seconds) each, with the smallest relative errors.

    Raises:
        ValueError: fewer than three sizes.
    """
    if len({images for images, _ in points}) < 3:
        raise ValueError(f"points: received {list(points)}, expected three batch sizes or more")
    return Compute(*_line(points))


def compute_from_rate(images_per_s: float, images: int, fixed_s: float) -> Compute:
    """The line of a worker whose speed is known for one batch: `images_per_s` in steps of `images`.

    Raises:
        ConfigError: the fixed part alone takes longer than such a step.
    """
    step_s = images / images_per_s
    if fixed_s > step_s:
        raise ConfigError(
            f"--gpu-fixed-ms: received {1e3 * fixed_s:g}, but a whole step of {images} images takes "
            f"{1e3 * step_s:.2f} ms at {images_per_s:g} images/s. Give a smaller one"
        )
    return Compute(fixed_s, (step_s - fixed_s) / images)


def fit_link(points: Sequence[tuple[float, float]], workers: int) -> Link:
    """The link, from measured ring all-reduces of some workers, (bytes, seconds) each.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len({size for size, _ in points}) < 2:
        raise ValueError(f"points: received {list(points)}, expected two sizes or more")
    fixed_s, byte_s = _line(points)
    messages = 2 * (workers - 1)
    return Link(messages / workers / byte_s if byte_s else math.inf, fixed_s / messages)


def worst_error(points: Sequence[tuple[float, float]], predicted: Sequence[float]) -> float:
    """The largest relative error of predictions for (size, seconds)."""
    return max(abs(value / seconds - 1) for (_, seconds), value in zip(points, predicted, strict=True))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, with the smallest sum of squared relative errors."""
    sizes, seconds = np.array(points, float).T
    columns = np.stack([1 / seconds, sizes / seconds], axis=1)
    line = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    if (line < 0).any():  # the best one on the border, where one of both is 0
        alone = (columns.sum(axis=0) / (columns**2).sum(axis=0)).tolist()
        borders = [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
        line = min(borders, key=lambda border: float(((columns @ border - 1) ** 2).sum()))
    return float(line[0]), float(line[1])


@dataclass(frozen=True)
class StepModel:
    """A training step on any number of equal workers."""

    compute: Compute
    network: Network
    size: float
    """Bytes summed in a step."""
    stream_images_per_s: float = math.inf
    """Images/s of the stream of each worker."""

    def step_s(self, images: int, workers: int) -> float:
        """Seconds of a step with so many images on each worker."""
        compute_s = max(self.compute.seconds(images), images / self.stream_images_per_s)
        return compute_s + self.network.all_reduce_s(self.size, workers)


def images_each(batch_size: int, workers: int, batch: BatchScaling) -> int | None:
    """Images of a step on each worker; None: there are fewer images than workers."""
    if batch == "grown":
        return batch_size
    return -(-batch_size // workers) if workers <= batch_size else None


def efficiency(one_s: float, many_s: float, workers: int, batch: BatchScaling) -> float:
    """Images/s of each of many workers, as a share of those of one worker."""
    return one_s / many_s / (1 if batch == "grown" else workers)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A step on a number of GPUs."""

    gpus: int
    images: int
    """On each GPU."""
    step_s: float
    all_reduce_s: float
    efficiency: float


def forecast(model: StepModel, batch_size: int, batch: BatchScaling) -> list[Forecast]:
    """Forecasts for the numbers of `GPUS`; those with fewer images than GPUs are left out."""
    one_s, rows = model.step_s(batch_size, 1), []
    for workers in GPUS:
        images = images_each(batch_size, workers, batch)
        if images is not None:
            step_s = model.step_s(images, workers)
            all_reduce_s = model.network.all_reduce_s(model.size, workers)
            share = efficiency(one_s, step_s, workers, batch)
            rows.append(
                Forecast(gpus=workers, images=images, step_s=step_s, all_reduce_s=all_reduce_s, efficiency=share)
            )
    return rows


@dataclass(frozen=True, kw_only=True)
class StreamedSteps:
    """Steps of workers on images from the stream; times of one step."""

    workers: int
    step_s: float
    wait_s: float
    """Of it, waiting for images."""


@dataclass(frozen=True, kw_only=True)
class PhaseMeasurement:
    """Times of the steps of one phase, the best of all rounds; what takes two workers is empty or 0 for one."""

    parameters: int
    """Trained ones."""
    bytes: int
    """Summed in a step, from its graph."""
    alone: list[tuple[int, float]]
    """(images, seconds) of a worker while the others rest."""
    beside: list[tuple[int, float]]
    """The same while all compute and exchange nothing, of the slowest worker."""
    together: dict[BatchScaling, float]
    """Seconds of a step of all workers."""
    spread: float
    """Median of the steps alone as a multiple of the best."""
    bare: float
    """Seconds of an all-reduce of the step's tensors by itself."""
    streamed: list[StreamedSteps]
    """For one worker, and for all."""


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """A measured step of all workers, and its prediction."""

    batch: BatchScaling
    images: int
    """On each worker."""
    step_s: float
    predicted_s: float
    error: float
    """Relative error of the prediction."""
    efficiency: float
    predicted_efficiency: float


@dataclass(frozen=True, kw_only=True)
class PhaseFit(PhaseMeasurement):
    """The measurements of a phase, the line of its compute time, and the checks of the model."""

    phase: str
    compute: Compute
    compute_error: float
    """Largest relative error of the line."""
    checks: list[ModelCheck]
    slowdown: float
    """Compute time of a worker while the others compute, as a multiple of that alone; it is no part of the model."""


def fit_phase(phase: str, measured: PhaseMeasurement, batch_size: int, workers: int, link: Link | None) -> PhaseFit:
    """Fit the model to a phase, and check it; predictions use the compute time of workers that compute at a time.

    Args:
        link: between the workers; None where there was one.
    """
    compute, checks, slowdown = fit_compute(measured.alone), list[ModelCheck](), 1.0
    if link is not None:
        concurrent = fit_compute(measured.beside)
        one_s, predicted_one_s = dict(measured.alone)[batch_size], compute.seconds(batch_size)
        slowdown = concurrent.seconds(batch_size) / predicted_one_s
        for batch, step_s in measured.together.items():
            images = images_each(batch_size, workers, batch) or 0
            predicted_s = concurrent.seconds(images) + link.ring_s(measured.bytes, workers)
            check = ModelCheck(
                batch=batch, images=images, step_s=step_s, predicted_s=predicted_s, error=predicted_s / step_s - 1,
                efficiency=efficiency(one_s, step_s, workers, batch),
                predicted_efficiency=efficiency(predicted_one_s, predicted_s, workers, batch),
            )  # fmt: skip
            checks.append(check)
    predicted = [compute.seconds(images) for images, _ in measured.alone]
    values = {item.name: getattr(measured, item.name) for item in fields(measured)}
    values["bytes"] = measured.bytes or 4 * measured.parameters
    return PhaseFit(
        **values, phase=phase, compute=compute, compute_error=worst_error(measured.alone, predicted), checks=checks,
        slowdown=slowdown,
    )  # fmt: skip
