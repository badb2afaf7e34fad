"""Energy while something runs: of GPUs from the power that NVML tells, of processors from RAPL's counters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pharmclf.core.background import BackgroundTask
from pharmclf.monitoring import Nvml

RAPL = Path("/sys/class/powercap")
_INTERVAL_S = 0.1


@dataclass
class Energy:
    """What was used."""

    joules: float | None = None
    """None: nothing here tells of it."""


@contextlib.contextmanager
def measure_energy(nvml: Nvml | None, gpu: int, rapl: Path = RAPL) -> Iterator[Energy]:
    """Within, energy is counted; it is known behind the end.

    Args:
        nvml: the GPUs; None: the processors are asked, all that runs on them counts.
        gpu: which of them.
        rapl: where the system keeps the processors' counters.
    """
    found = Energy()
    if nvml is None:
        before = _counters(rapl)
        yield found
        after = _counters(rapl)
        if before and set(before) == set(after):
            used = ((after[name][0] - start) % (span or 1e18) for name, (start, span) in before.items())
            found.joules = sum(used) / 1e6
        return
    watts, began = list[float](), time.perf_counter()

    def read_power() -> None:
        if (power := nvml.read(gpu).power_w) is not None:
            watts.append(power)

    task = BackgroundTask("energy", read_power, every_s=_INTERVAL_S, at_start=True)
    try:
        yield found
    finally:
        seconds = time.perf_counter() - began
        task.close(1.0)
    if watts:
        found.joules = sum(watts) / len(watts) * seconds


def _counters(rapl: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each package, and where its counter begins anew; on many systems only root may read them."""
    found = {}
    for package in sorted(rapl.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") == 1:  # the others are parts of a package
            with contextlib.suppress(OSError, ValueError):
                numbers = [int((package / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
                found[package.name] = (numbers[0], numbers[1])
    return found
