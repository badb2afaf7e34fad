"""Options of the scaling forecast, with its assumptions in words, and of the benchmark of large data sets; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.benchmark.scaling_model import Link, Network
from pharmclf.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """Assumptions of the forecast."""

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
        """The network between and inside nodes, where nodes are linked at `gbit` Gbit/s."""
        between = Link(self.link_use * gbit * 1e9 / 8, self.link_latency_us / 1e6)
        inside = Link(self.link_use * self.gpu_link_gbit * 1e9 / 8, self.gpu_link_latency_us / 1e6)
        return Network(between, inside, self.gpus_per_node)


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Sizes of the data sets around a training."""

    images: int = 100_000
    """Images of the search for copies and of the manifest."""
    compared: int = 20_000
    """Images of which all pairs are compared too."""
    classes: int = 10_000
    """Classes of ten images each to split, and of one each to evaluate."""

    def __post_init__(self) -> None:
        for name, least in {"images": 100, "compared": 10, "classes": 10}.items():  # a tenth of the images is split too
            if getattr(self, name) < least:
                raise ConfigError(f"{_flag(name)}: received {getattr(self, name)}, expected {least} or more")


def _is_above_0(value: float) -> bool:
    return 0 < value < math.inf


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def assumptions(options: ScalingOptions, batch_size: int, stream_images_per_s: float) -> list[str]:
    """The assumptions of a forecast, a sentence each.

    Args:
        stream_images_per_s: of the stream of each worker.
    """
    if options.gpu_images_per_second:
        speed = (
            f"one GPU trains {_text(options.gpu_images_per_second)} images/s (phase by phase, {batch_size} images a "
            f"step), and {options.gpu_fixed_ms:g} ms of a step do not shrink with the batch: both as given"
        )
    else:
        speed = "every worker computes as fast as the one that was measured here"
    if options.gpus_per_node == 1:
        nodes = "each has a node and a link for itself, so that every byte crosses the network"
    else:
        nodes = (
            f"{options.gpus_per_node} share a node and its link; inside it {options.gpu_link_gbit:g} Gbit/s and "
            f"{options.gpu_link_latency_us:g} us a message"
        )
    return [
        speed,
        nodes,
        f"a link reaches {options.link_use:.0%} of its speed, and a message takes {options.link_latency_us:g} us; it "
        "has no other load",
        "all-reduce as a ring: 2 (N-1) messages of the N-th part of the bytes; inside each node first, then between "
        "nodes. It begins after the backward pass, and nothing hides it",
        f"images are read and decoded while a step computes, {stream_images_per_s:.0f} a second for each worker "
        f"({options.stream_cores:g} cores as fast as those here), and the storage is fast enough for all",
        "all workers are equally fast",
    ]
