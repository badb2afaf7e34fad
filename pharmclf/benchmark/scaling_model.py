"""How long a step takes on many workers: a model of its parts, fitted to measured ones, and what follows; pure.

A step is the longer of computing and waiting for the images, and then the all-reduce: gradients are summed when the
whole backward pass is done, so that nothing hides the exchange.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pharmclf.core.errors import ConfigError

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""For how many the efficiency is forecast."""

BatchScaling = Literal["fixed", "grown"]
"""fixed: the global batch is the same for any number of workers, as in a run; grown: each worker has a whole one."""


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What the forecast is made for."""

    link_gbit: tuple[float, ...] = (10.0, 25.0, 100.0, 400.0)
    """Speeds of the network between nodes that are compared, in Gbit/s."""
    link_use: float = 0.8
    """Share of these speeds, and of `gpu_link_gbit`, that an all-reduce reaches, above 0 and up to 1."""
    link_latency_us: float = 30.0
    """Microseconds of one message between nodes."""
    gpus_per_node: int = 1
    """GPUs that share a node and its link."""
    gpu_link_gbit: float = 200.0
    """Speed between the GPUs of a node, in Gbit/s; counts with more than one of them."""
    gpu_link_latency_us: float = 10.0
    """Microseconds of one message between the GPUs of a node."""
    gpu_images_per_second: tuple[float, ...] = ()
    """Images/s of the training step on one GPU, a number for each phase. None: as the worker that is measured here."""
    gpu_fixed_ms: float = 10.0
    """Milliseconds of such a step that do not shrink with the batch; counts with `gpu_images_per_second`."""
    stream_cores: float = 3.0
    """Cores that read and decode for each worker; a core gives as many images/s as one does here."""
    tolerance: float = 0.25
    """Largest relative error of the model, against the steps that are measured, with which the job succeeds."""

    def __post_init__(self) -> None:
        speeds = {"link_gbit": self.link_gbit, "gpu_images_per_second": self.gpu_images_per_second}
        for name, values in speeds.items():
            if not all(_is_above_0(value) for value in values):
                raise ConfigError(f"{_flag(name)}: received {_text(values)}, expected speeds above 0")
        if not self.link_gbit:
            raise ConfigError(f"{_flag('link_gbit')}: received none, expected a speed or more. Write 10 25 100 400")
        for name in ("gpu_link_gbit", "stream_cores", "tolerance", "link_use", "gpus_per_node"):
            if not _is_above_0(getattr(self, name)):
                raise ConfigError(f"{_flag(name)}: received {getattr(self, name)}, expected a number above 0")
        for name in ("link_latency_us", "gpu_link_latency_us", "gpu_fixed_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{_flag(name)}: received {getattr(self, name)}, expected a time, 0 or more")
        if self.link_use > 1:
            raise ConfigError(f"{_flag('link_use')}: received {self.link_use}, expected a share up to 1")

    def network(self, gbit: float) -> Network:
        """The network between and within nodes, where nodes are linked at `gbit` Gbit/s."""
        between = Link(self.link_use * gbit * 1e9 / 8, self.link_latency_us / 1e6)
        inside = Link(self.link_use * self.gpu_link_gbit * 1e9 / 8, self.gpu_link_latency_us / 1e6)
        return Network(between, inside, self.gpus_per_node)


def _is_above_0(value: float) -> bool:
    return 0 < value < math.inf


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


# ---------------------------------------------------------------------- parts of a step


@dataclass(frozen=True)
class Compute:
    """Seconds that a worker computes in a step: a fixed part, and a part for each of its images."""

    fixed_s: float
    image_s: float

    def seconds(self, images: float) -> float:
        """Of a step with so many images on the worker."""
        return self.fixed_s + self.image_s * images


@dataclass(frozen=True)
class Link:
    """What connects two workers that are neighbours in a ring."""

    bytes_per_s: float
    """One way."""
    latency_s: float
    """Of one message."""

    def ring_s(self, size: float, members: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes: each member sends 2 (N - 1) messages of the N-th part."""
        return 2 * (members - 1) * (size / members / self.bytes_per_s + self.latency_s)


@dataclass(frozen=True)
class Network:
    """Nodes with workers: sums are made within the nodes first, and then between them over one link a node."""

    between: Link
    inside: Link
    per_node: int = 1

    def all_reduce_s(self, size: float, workers: int) -> float:
        """Seconds of the all-reduce of `size` bytes; nodes are filled one after the other."""
        beside = min(workers, self.per_node)
        return self.inside.ring_s(size, beside) + self.between.ring_s(size, -(-workers // beside))


def fit_compute(points: Sequence[tuple[int, float]]) -> Compute:
    """The line through measured steps, (images, seconds) each, with the smallest relative errors.

    Raises:
        ValueError: fewer than three sizes.
    """
    if len({images for images, _ in points}) < 3:
        raise ValueError(f"points: received {list(points)}, expected three batch sizes or more")
    return Compute(*_line(points))


def compute_from_rate(images_per_s: float, images: int, fixed_s: float) -> Compute:
    """The line of a worker of which one speed is known: `images_per_s` in steps of `images`.

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


def fit_link(points: Sequence[tuple[float, float]], members: int) -> Link:
    """The link by measured ring all-reduces between `members` workers, (bytes, seconds) each.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len({size for size, _ in points}) < 2:
        raise ValueError(f"points: received {list(points)}, expected two sizes or more")
    fixed_s, byte_s = _line(points)
    messages = 2 * (members - 1)
    return Link(messages / members / byte_s if byte_s else math.inf, fixed_s / messages)


def worst_error(points: Sequence[tuple[float, float]], predicted: Sequence[float]) -> float:
    """The largest relative error of predictions for (size, seconds)."""
    return max(abs(found / seconds - 1) for (_, seconds), found in zip(points, predicted, strict=True))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, with the smallest sum of squared relative errors."""
    sizes, seconds = np.array(points, float).T
    columns = np.stack([1 / seconds, sizes / seconds], axis=1)
    found = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    if (found < 0).any():  # the best one on the border, where one of both is 0
        alone = (columns.sum(axis=0) / (columns**2).sum(axis=0)).tolist()
        borders = [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
        found = min(borders, key=lambda border: float(((columns @ border - 1) ** 2).sum()))
    return float(found[0]), float(found[1])


# ---------------------------------------------------------------------- the whole step


@dataclass(frozen=True)
class StepModel:
    """A training step on any number of equal workers."""

    compute: Compute
    network: Network
    size: float
    """Bytes that are summed in a step."""
    stream_images_per_s: float = math.inf
    """Images/s that each worker's stream gives."""

    def step_s(self, images: int, workers: int) -> float:
        """Seconds of a step with so many images on each worker."""
        waits = max(self.compute.seconds(images), images / self.stream_images_per_s)
        return waits + self.network.all_reduce_s(self.size, workers)


def images_each(batch_size: int, workers: int, batch: BatchScaling) -> int | None:
    """Images of a step on each worker; None: there are fewer images than workers."""
    if batch == "grown":
        return batch_size
    return -(-batch_size // workers) if workers <= batch_size else None


def efficiency(one_s: float, many_s: float, workers: int, batch: BatchScaling) -> float:
    """Images/s of one of many workers, as a share of those of a worker alone.

    Args:
        one_s: seconds of a step of one worker with the whole batch.
        many_s: seconds of a step of many.
        workers: how many they are.
        batch: how their batch is to that of the one.
    """
    return one_s / many_s / (1 if batch == "grown" else workers)


def forecast(
    model: StepModel, batch_size: int, batch: BatchScaling, gpus: Sequence[int] = GPUS
) -> list[dict[str, Any]]:
    """For each number of GPUs: gpus, images (on each), step_s, all_reduce_s, efficiency.

    Numbers for which there are fewer images than GPUs are left out.
    """
    one_s = model.step_s(batch_size, 1)
    rows = []
    for workers in gpus:
        images = images_each(batch_size, workers, batch)
        if images is None:
            continue
        step_s = model.step_s(images, workers)
        rows.append(
            {"gpus": workers, "images": images, "step_s": step_s,
             "all_reduce_s": model.network.all_reduce_s(model.size, workers),
             "efficiency": efficiency(one_s, step_s, workers, batch)}
        )  # fmt: skip
    return rows


def fit_phase(measured: Mapping[str, Any], batch_size: int, workers: int, link: Link | None) -> dict[str, Any]:
    """A phase as measured, with the line of its compute time and the check of the model.

    `checks` holds for each batch of all workers: images, step_s, predicted_s, error (relative), efficiency and its
    prediction. The prediction takes the compute time of workers beside each other: what they lose to each other on one
    machine, `slowdown`, is no part of the model.

    Args:
        measured: parameters, bytes, alone, beside and together, as `scaling_worker.measure` returns them.
        batch_size: of the run.
        workers: how many were measured together.
        link: between them; None where there was one.
    """
    alone = measured["alone"]
    compute = fit_compute(alone)
    found = {
        **measured,
        "bytes": measured["bytes"] or 4 * measured["parameters"],
        "compute": asdict(compute),
        "compute_error": worst_error(alone, [compute.seconds(images) for images, _ in alone]),
        "checks": [],
    }
    if link is None:
        return found
    beside = fit_compute(measured["beside"])
    one_s, predicted_one_s = dict(alone)[batch_size], compute.seconds(batch_size)
    for batch, step_s in measured["together"].items():
        images = images_each(batch_size, workers, batch) or 0
        predicted_s = beside.seconds(images) + link.ring_s(measured["bytes"], workers)
        found["checks"].append(
            {"batch": batch, "images": images, "step_s": step_s, "predicted_s": predicted_s,
             "error": predicted_s / step_s - 1, "efficiency": efficiency(one_s, step_s, workers, batch),
             "predicted_efficiency": efficiency(predicted_one_s, predicted_s, workers, batch)}
        )  # fmt: skip
    return found | {"slowdown": beside.seconds(batch_size) / predicted_one_s}


def assumptions(options: ScalingOptions, batch_size: int, stream_images_per_s: float) -> list[str]:
    """What a forecast rests on, a sentence each.

    Args:
        options: of the forecast.
        batch_size: of one worker alone.
        stream_images_per_s: of each worker's stream.
    """
    if options.gpu_images_per_second:
        speed = (
            f"one GPU trains {_text(options.gpu_images_per_second)} images/s (phase by phase, {batch_size} images a "
            f"step), and {options.gpu_fixed_ms:g} ms of a step do not shrink with the batch: both as given"
        )
    else:
        speed = "every worker computes as fast as the one that was measured here"
    if options.gpus_per_node == 1:
        nodes = "each has a node and a link of its own, so that every byte crosses the network"
    else:
        nodes = (
            f"{options.gpus_per_node} share a node and its link; within it {options.gpu_link_gbit:g} Gbit/s and "
            f"{options.gpu_link_latency_us:g} us a message"
        )
    return [
        speed,
        nodes,
        f"a link gives {options.link_use:.0%} of its speed, and a message takes {options.link_latency_us:g} us; nobody "
        "else uses it",
        "all-reduce as a ring: 2 (N-1) messages of the N-th part of the bytes; within each node first, then between "
        "nodes. It begins when the backward pass has ended, and nothing hides it",
        f"images are read and decoded while a step computes, {stream_images_per_s:.0f} a second for each worker "
        f"({options.stream_cores:g} cores as fast as those here), and the storage gives them to all",
        "all workers are equally fast: nobody waits for a slow one",
    ]
