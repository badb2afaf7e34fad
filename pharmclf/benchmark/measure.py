"""What several benchmarks share: options, results, stopwatch, throughput, energy, the machine, numbers as text."""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pharmclf.core.background import BackgroundTask
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_examples
from pharmclf.monitoring import Nvml
from pharmclf.monitoring.cores import usable_cores

Report = dict[str, Any]
"""What a benchmark writes as JSON: `rows`, and what else its function says."""
RAPL = Path("/sys/class/powercap")
_POWER_INTERVAL_S = 0.1
_PARTS = 3
_UNKNOWN = "—"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How much is measured."""

    sides: tuple[Literal["plain", "cached"], ...] = ("plain", "cached")
    """Plain Keras as it reads images each epoch, and with decoded images kept in memory by `cache()`."""
    seconds: float = 8.0
    """Seconds of each short measurement: an input alone, a training step."""

    def __post_init__(self) -> None:
        if not self.sides:
            raise ConfigError("--sides: received none, expected plain, cached or both. Write --sides plain cached")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"--seconds: received {self.seconds:g}, expected a number above 0. Write --seconds 8")


@dataclass(frozen=True, kw_only=True)
class PeersOptions:
    """The comparison of accuracy over time with other ways to train."""

    sides: tuple[Literal["keras", "torch"], ...] = ("keras", "torch")
    """Plain Keras with this configuration, and fine-tuning of the full network in PyTorch."""
    peers_target: float = 0.92
    """Test accuracy, 0..1, of which the time is compared."""
    peers_epochs: int = 12
    """Epochs in PyTorch."""
    peers_image_size: int = 224
    """Side of the images in plain Keras and PyTorch, which look at all of an image, pixels."""

    def __post_init__(self) -> None:
        if not self.sides:
            raise ConfigError("--sides: received none, expected keras, torch or both. Write --sides keras torch")
        if not 0 < self.peers_target <= 1:
            raise ConfigError(f"--peers-target: received {self.peers_target}, expected above 0 and up to 1")
        if self.peers_image_size < 32:
            raise ConfigError(f"--peers-image-size: received {self.peers_image_size}, expected 32 pixels or more")
        if self.peers_epochs < 1:
            raise ConfigError(f"--peers-epochs: received {self.peers_epochs}, expected 1 or more")


Ingredient = Literal["light", "blur-noise", "erase", "no-mirror"]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The comparison of ingredients of a training."""

    seeds: int = 3
    """Runs of each variant, with rising seeds."""
    ingredients: tuple[Ingredient, ...] = ("light", "blur-noise", "erase")
    """What is added to the configuration: each alone, and all of them."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"--seeds: received {self.seeds}, expected 1 or more")
        if not self.ingredients:
            raise ConfigError("--ingredients: received none, expected one or more. Write --ingredients light erase")


@dataclass(frozen=True, kw_only=True)
class UnknownOptions:
    """The comparison of ways to find unknown products."""

    leave_out: tuple[str, ...] = ()
    """Products that a model does not see, as A,B,C: a model for each entry. Nothing: three models, and each product is
    left out of one."""
    near: tuple[str, ...] = ()
    """Products that look like others, which are reported apart."""

    def parts(self, products: Sequence[str]) -> list[tuple[str, ...]]:
        """The products that each model does not see.

        Raises:
            ConfigError: a product that is not there, or fewer than two that a model sees.
        """
        found = [tuple(entry.split(",")) for entry in self.leave_out]
        found = found or [tuple(products[number::_PARTS]) for number in range(_PARTS)]
        named = {*self.near, *(name for part in found for name in part)}
        if wrong := sorted(named - set(products)):
            raise ConfigError(
                f"--leave-out, --near: received {format_examples(wrong)}, expected products of the data: "
                f"{format_examples(products)}"
            )
        if any(len(products) - len(set(part)) < 2 for part in found):
            raise ConfigError("--leave-out: received nearly all products, expected two that are left to train with")
        return found


@dataclass(frozen=True, kw_only=True)
class AccuracyPoint:
    """Accuracy of a model after an epoch."""

    seconds: float
    """From the start of the process, without the time of the tests."""
    val_accuracy: float
    """0..1."""
    val_loss: float
    test_accuracy: float
    """0..1."""


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """Time of a phase; images/s of training and validation together."""

    seconds: float
    epochs: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class SideResult:
    """One side of the comparison with plain Keras."""

    whole_s: float
    """From the start of the process to the tested and saved model."""
    parts_s: Mapping[str, float]
    """Seconds of each part of it."""
    phases: Mapping[str, PhaseTime]
    hits: Mapping[int, bool]
    """Row of a test image -> whether the prediction is right."""
    input_per_s: float
    """Images/s of reading and augmenting alone, after the first epoch."""
    kept_per_s: Mapping[str, float] = field(default_factory=dict)
    """Images/s of reading the feature cache, by phase."""


class Stopwatch:
    """Seconds of named parts of a process, one after the other."""

    def __init__(self, began: float) -> None:
        """Begin.

        Args:
            began: by `time.time()`, which all processes share.
        """
        self.seconds: dict[str, float] = {}
        self._last = began

    def end(self, name: str) -> None:
        """End the part of this name, and begin the next one."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def throughput(sizes: Iterator[int], first: int, seconds: float, now: Callable[[], float] = time.perf_counter) -> float:
    """Images/s.

    Args:
        first: number of batches at the start that are left out: those of the first epoch.
    """
    images, began = 0, 0.0
    for index, size in enumerate(sizes):
        if index + 1 == first:
            began = now()
        elif index >= first:
            images += size
            if now() - began >= seconds:
                break
    return images / (now() - began)


@dataclass
class Energy:
    """Energy that was used."""

    joules: float | None = None
    """None: unknown."""


@contextlib.contextmanager
def measure_energy(nvml: Nvml | None, gpu: int, rapl: Path = RAPL) -> Iterator[Energy]:
    """Measure the energy of the block: of a GPU from its power, of the processors, with all their load, from RAPL.

    Args:
        nvml: the GPUs; None: the processors.
    """
    energy = Energy()
    if nvml is None:
        before = _read_counters(rapl)
        yield energy
        after = _read_counters(rapl)
        if before and set(before) == set(after):
            used = ((after[name][0] - start) % (span or 10**18) for name, (start, span) in before.items())
            energy.joules = sum(used) / 1e6
        return
    watts, began = list[float](), time.perf_counter()

    def read_power() -> None:
        if (power := nvml.read(gpu).power_w) is not None:
            watts.append(power)

    task = BackgroundTask("energy", read_power, every_s=_POWER_INTERVAL_S, at_start=True)
    try:
        yield energy
    finally:
        seconds = time.perf_counter() - began
        task.close(1.0)
    if watts:
        energy.joules = sum(watts) / len(watts) * seconds


def _read_counters(rapl: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each package, and the range of its counter; on many systems only root may read them."""
    counters = {}
    for package in sorted(rapl.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") == 1:  # the others are parts of a package
            with contextlib.suppress(OSError, ValueError):
                used, span = (int((package / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
                counters[package.name] = (used, span)
    return counters


def resident_bytes(*, peak: bool) -> int:
    """Memory of this process now, or its peak."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss also counts the process that this one was started from
        name = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])
    return peak_resident_bytes(resource.RUSAGE_SELF)


def peak_resident_bytes(who: int) -> int:
    """Largest memory of a process; `who` as for `resource.getrusage`."""
    most = resource.getrusage(who).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def processor_name() -> str:
    """Model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, str | int]:
    """Processor, cores and system, for the report."""
    return {"processor": processor_name(), "cores": usable_cores(), "system": platform.platform()}


def format_number(value: float | None, digits: int = 1) -> str:
    """A number with commas; a dash for None."""
    return _UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_ratio(value: float | None) -> str:
    """A ratio, as 3.40x; a dash for None."""
    return _UNKNOWN if value is None else f"{value:.2f}x"
