"""Draws the traces beside it: python tests/monitoring/modelled_traces.py. See traces/README.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STEP_S = 5
HEADING = (
    "timestamp, index, name, utilization.gpu [%], memory.used [MiB], memory.total [MiB], temperature.gpu, "
    "power.draw [W], enforced.power.limit [W], clocks.current.sm [MHz], clocks.current.memory [MHz], "
    "clocks_event_reasons.active, ecc.errors.uncorrected.volatile.total"
)
IDLE, POWER_CAP, SLOWDOWN, DRIVER_THERMAL, HARDWARE_THERMAL = 0x1, 0x4, 0x8, 0x20, 0x40


@dataclass
class Card:
    """A card with a heat capacity and a cooler."""

    name: str
    memory_mib: int
    limit_w: float
    idle_w: float
    clock_mhz: int
    memory_clock_mhz: int
    kelvin_per_watt: float
    """Of its cooler in good order."""
    temperature_c: float = 34.0
    tau_s: float = 45.0
    """Time constant of its heat balance."""

    def heat(self, power_w: float, cooling: float = 1.0) -> None:
        """Let STEP_S pass at a power; cooling 1: all of the cooler works."""
        target = 27.0 + power_w * self.kelvin_per_watt / cooling
        self.temperature_c += (target - self.temperature_c) * (1 - np.exp(-STEP_S / self.tau_s))

    def line(
        self,
        second: int,
        index: int,
        used: float,
        memory: float,
        power_w: float,
        clock: float,
        reasons: int,
        errors: int,
    ) -> str:
        """As nvidia-smi writes it."""
        at = datetime.datetime(2026, 11, 20, 3, 0, 0) + datetime.timedelta(seconds=second)
        return (
            f"{at:%Y/%m/%d %H:%M:%S}.000, {index}, {self.name}, {used:.0f} %, {memory * self.memory_mib:.0f} MiB, "
            f"{self.memory_mib} MiB, {self.temperature_c:.0f}, {power_w:.2f} W, {self.limit_w:.2f} W, {clock:.0f} MHz, "
            f"{self.memory_clock_mhz} MHz, 0x{reasons:016x}, {errors}"
        )


def a100() -> Card:
    return Card("NVIDIA A100-SXM4-80GB", 81920, 400.0, 62.0, 1410, 1593, 0.095)


def calm(random: np.random.Generator) -> Iterator[str]:
    cards = [a100(), a100()]
    for second in range(0, 300, STEP_S):
        for index, card in enumerate(cards):
            busy = second >= 20
            power = random.normal(399, 3) if busy else card.idle_w
            card.heat(power)
            used, clock = (random.integers(96, 101), random.integers(1290, 1380)) if busy else (0, 210)
            yield card.line(second, index, used, 0.71 if busy else 0.01, power, clock, POWER_CAP if busy else IDLE, 0)


def overheating(random: np.random.Generator) -> Iterator[str]:
    card, clock, protects = a100(), 1410.0, False
    for second in range(0, 600, STEP_S):
        busy = 20 <= second < 420
        hot = card.temperature_c
        protects = busy and hot >= (82.5 if protects else 86.0)
        reasons = (HARDWARE_THERMAL | SLOWDOWN) if protects else (DRIVER_THERMAL if busy and hot >= 85 else 0)
        clock = max(765.0, clock - 90) if protects else min(1350.0, clock + 60)
        power = card.idle_w + (395 - card.idle_w) * clock / 1350 + random.normal(0, 3) if busy else card.idle_w
        card.heat(power, cooling=1.0 if second < 60 else 0.6)
        shown = reasons or (POWER_CAP if busy else IDLE)
        yield card.line(second, 0, 98 if busy else 0, 0.64, power, clock if busy else 210, shown, 0)


def full(random: np.random.Generator) -> Iterator[str]:
    card = Card("NVIDIA L4", 23034, 72.0, 12.0, 2040, 6251, 0.55)
    for place, second in enumerate(range(0, 300, STEP_S)):
        power = random.normal(70, 1)
        card.heat(power)
        yield card.line(second, 0, 99, min(0.972, 0.61 + 0.01 * place), power, 1700, POWER_CAP, 0)


def starving(random: np.random.Generator) -> Iterator[str]:
    card = Card("Tesla T4", 15360, 70.0, 10.0, 1590, 5001, 0.7)
    for second in range(0, 300, STEP_S):
        used = random.choice([0, 0, 18, 35, 61, 74])
        power = 26 + 0.4 * used
        card.heat(power)
        yield card.line(second, 0, used, 0.42, power, 1590 if used else 585, 0x0 if used else IDLE, 0)


def dying(random: np.random.Generator) -> Iterator[str]:
    card = Card("NVIDIA H100 80GB HBM3", 81559, 700.0, 70.0, 1980, 2619, 0.055)
    for second in range(0, 120, STEP_S):
        power = random.normal(640, 8)
        card.heat(power)
        line = card.line(second, 0, 97, 0.8, power, 1755, 0, 0 if second < 40 else 2)
        if second >= 80:  # only what is written on the card can still be told
            parts = line.split(", ")
            line = ", ".join([*parts[:3], *["[GPU is lost]"] * (len(parts) - 3)])
        yield line


if __name__ == "__main__":
    for trace in (calm, overheating, full, starving, dying):
        lines = [HEADING, *trace(np.random.default_rng(7))]
        (Path(__file__).parent / "traces" / f"{trace.__name__}.csv").write_text("\n".join(lines) + "\n")
