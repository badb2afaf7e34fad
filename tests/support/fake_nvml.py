"""GPUs out of a recording, so that warnings are tried without heating a card.

A recording is what nvidia-smi writes on any machine with a GPU:

    nvidia-smi -l 5 --format=csv --query-gpu=timestamp,index,name,utilization.gpu,memory.used,memory.total,\
temperature.gpu,power.draw,enforced.power.limit,clocks.sm,clocks.mem,clocks_event_reasons.active,\
ecc.errors.uncorrected.volatile.total > trace.csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pharmclf.monitoring.gpu import decode_reasons
from pharmclf.monitoring.samples import GpuProcess, GpuReading

_MIB = 1 << 20
_UNKNOWN = ("[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "")
_LOST = "[GPU is lost]"


class FakeNvml:
    """The GPUs of a recording; each reading of a GPU takes its next line, and the last one stays."""

    def __init__(self, text: str) -> None:
        """Begin at the first line of a recording with its heading."""
        self._lines: dict[int, list[GpuReading]] = {}
        for line in csv.DictReader(io.StringIO(text), skipinitialspace=True):
            reading = _reading({name.partition(" [")[0]: (value or "").strip() for name, value in line.items()})
            self._lines.setdefault(reading.index, []).append(reading)
        self._next = dict.fromkeys(self._lines, 0)

    @property
    def num_gpus(self) -> int:
        """How many there are."""
        return len(self._lines)

    @property
    def num_readings(self) -> int:
        """Lines of the GPU that has most."""
        return max(map(len, self._lines.values()))

    def read(self, index: int) -> GpuReading:
        """The next line of a GPU."""
        lines, place = self._lines[index], self._next[index]
        self._next[index] = min(place + 1, len(lines) - 1)
        return lines[place]

    def processes(self, _index: int) -> Sequence[GpuProcess]:
        """None: nvidia-smi writes them separately."""
        return ()


def _reading(line: Mapping[str, str]) -> GpuReading:
    def number(name: str, kind: Callable[[float], Any] = float) -> Any:
        text = line.get(name, "")
        return None if text in _UNKNOWN or text == _LOST else kind(float(text.split()[0]))

    def mebibytes(value: float) -> int:
        return int(value * _MIB)

    reasons = line["clocks_event_reasons.active"]
    return GpuReading(
        index=int(line["index"]),
        name=line.get("name", ""),
        utilisation_percent=number("utilization.gpu"),
        memory_used_bytes=number("memory.used", mebibytes),
        memory_total_bytes=number("memory.total", mebibytes),
        temperature_c=number("temperature.gpu"),
        power_w=number("power.draw"),
        power_limit_w=number("enforced.power.limit"),
        sm_clock_mhz=number("clocks.current.sm"),
        memory_clock_mhz=number("clocks.current.memory"),
        throttle=decode_reasons(int(reasons, 16)) if reasons.startswith("0x") else {},
        ecc_errors=number("ecc.errors.uncorrected.volatile.total", int),
        lost=_LOST in line.values(),
    )
