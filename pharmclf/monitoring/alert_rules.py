"""What is worth a warning, measured over the newest rows of a node; pure.

A rule says how much there is of something. Whether that is too much, and whether it is said, is decided by its limit
(`thresholds.THRESHOLDS`) and by `alerts.AlertTracker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pharmclf.core.units import format_memory, format_size
from pharmclf.monitoring.bottleneck import RunContext, find_bottleneck
from pharmclf.monitoring.gpu import HARMFUL
from pharmclf.monitoring.samples import GpuReading, NodeSample
from pharmclf.monitoring.thresholds import BOUND, Measurement

WINDOW_S = 120.0
"""How far back a rule looks at most."""
_MINUTE_S = 60.0
_GIB = 1 << 30


def measure_all(rows: Sequence[NodeSample], setting: RunContext) -> list[Measurement]:
    """What all rules say of a node.

    Args:
        rows: of the node, the newest last; those of the last `WINDOW_S` count.
        setting: what is known of the run.
    """
    window = newest_rows(rows, WINDOW_S)
    return [measure for rule in _RULES for measure in rule(window, setting)] if window else []


def newest_rows(rows: Sequence[NodeSample], seconds: float) -> list[NodeSample]:
    """The rows that end within some seconds before the last one; a clock that was set back leaves the others behind."""
    return [row for row in rows if rows[-1].at_s - seconds < row.at_s <= rows[-1].at_s]


def gpu_text(gpu: GpuReading) -> str:
    """A GPU as a warning names it."""
    return f"GPU {gpu.index} ({gpu.name})" if gpu.name else f"GPU {gpu.index}"


def _temperature(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    for gpu in rows[-1].watched_gpus:
        if gpu.temperature_c is not None:
            yield Measurement(
                rule="temperature",
                device=f"GPU {gpu.index}",
                value=gpu.temperature_c,
                subject=gpu_text(gpu),
                what=f"is at {gpu.temperature_c:.0f} °C{BOUND}",
                remedy="It will slow down to protect itself: see to its fans and the air around it, or lower its power "
                "limit (nvidia-smi -pl)",
            )


def _throttling(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    minute = newest_rows(rows, _MINUTE_S)
    for gpu in rows[-1].watched_gpus:
        readings = [(other, row.seconds) for row in minute for other in row.gpus if other.index == gpu.index]
        slowed = {
            reason: sum(length * reading.throttle.get(reason, 0.0) for reading, length in readings)
            for reason in HARMFUL
        }
        reason = max(slowed, key=lambda name: slowed[name])
        seconds = min(_MINUTE_S, slowed[reason])
        clocks = [reading.sm_clock_mhz for reading, _ in readings if reading.throttle.get(reason)]
        lowest = min((clock for clock in clocks if clock is not None), default=None)
        clock = "" if lowest is None else f", down to {lowest:.0f} MHz"
        remedy = "Cool it, lower its power limit (nvidia-smi -pl), or take another machine"
        if reason == "power brake":
            remedy = "Its power supply does not give enough: check cables and the power of the machine, or take another"
        yield Measurement(
            rule="throttling",
            device=f"GPU {gpu.index}",
            value=seconds,
            subject=gpu_text(gpu),
            what=f"was slowed down for {seconds:.0f} s of the last minute{BOUND}{clock}: {reason}",
            remedy=remedy,
        )


def _gpu_memory(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    for gpu in rows[-1].watched_gpus:
        if gpu.memory_percent is None or gpu.memory_used_bytes is None or gpu.memory_total_bytes is None:
            continue
        held = [
            f"process {process.pid}" + (f" {format_memory(process.used_bytes)}" if process.used_bytes else "")
            for process in gpu.processes[:3]
        ]
        used, total = format_memory(gpu.memory_used_bytes), format_memory(gpu.memory_total_bytes)
        yield Measurement(
            rule="gpu memory",
            device=f"GPU {gpu.index}",
            value=gpu.memory_percent,
            subject=gpu_text(gpu),
            what=f"has {gpu.memory_percent:.0f} % of its memory in use{BOUND}, {used} of {total}"
            + (f" (held by {', '.join(held)})" if held else ""),
            remedy="The next step may fail for lack of it: end other processes on it, or give a smaller --batch-size",
        )


def _gpu_errors(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    for gpu in rows[-1].watched_gpus:
        if gpu.ecc_errors is not None:
            yield Measurement(
                rule="gpu errors",
                device=f"GPU {gpu.index}",
                value=float(gpu.ecc_errors),
                subject=gpu_text(gpu),
                what=f"has had {gpu.ecc_errors} memory errors that could not be corrected",
                remedy="Its results cannot be trusted: train on another one, and have this one reset or replaced",
            )
        yield Measurement(
            rule="gpu lost",
            device=f"GPU {gpu.index}",
            value=float(gpu.lost),
            subject=gpu_text(gpu),
            what="does not answer any more",
            remedy="Its node must be started anew; the run goes on elsewhere from its newest checkpoint",
        )


def _gpu_unused(rows: Sequence[NodeSample], setting: RunContext) -> Iterator[Measurement]:
    """A GPU that does nothing while steps are taken: TensorFlow did not find it, or there are too few workers."""
    trained = [row for row in rows if row.loop is not None and row.loop.steps > 0]
    if not setting.wants_gpus or sum(row.seconds for row in trained) < _MINUTE_S or _wait_percent(trained) > 50.0:
        return
    for gpu in rows[-1].watched_gpus:
        mean = _mean_utilisation(trained, gpu.index)
        if mean is None:
            continue
        given = gpu.index in rows[-1].ours
        yield Measurement(
            rule="gpu unused",
            device=f"GPU {gpu.index}",
            value=mean,
            subject=gpu_text(gpu),
            what=f"is {mean:.0f} % busy{BOUND} while steps are taken",
            remedy="TensorFlow does not use it: python jobs/doctor.py says why"
            if given
            else "Give one worker for each GPU with --workers, or look with python jobs/doctor.py why it is not used",
        )


def _waiting(rows: Sequence[NodeSample], setting: RunContext) -> Iterator[Measurement]:
    """The share of the time that a device waits, over the rows of the present phase."""
    last = rows[-1]
    trained = [row for row in rows if row.loop is not None and row.phase == last.phase]
    if last.loop is None or sum(row.seconds for row in trained) < 0.95 * _MINUTE_S:
        return
    percent, stage = _wait_percent(trained), find_bottleneck(trained, setting)
    gpus = [gpu for gpu in last.gpus if gpu.index == last.loop.gpu] or list(last.watched_gpus)
    subject, busy = f"worker {last.loop.rank}", ""
    if len(gpus) == 1:
        subject, mean = gpu_text(gpus[0]), _mean_utilisation(trained, gpus[0].index)
        busy = "" if mean is None else f", its utilisation is {mean:.0f} %"
    yield Measurement(
        rule="waiting",
        value=percent,
        subject=subject,
        what=f"waits for data {percent:.0f} % of the time{BOUND}{busy}; the slow stage is {stage.name}, {stage.sign}",
        remedy=stage.remedy,
    )


def _wait_percent(rows: Sequence[NodeSample]) -> float:
    loops = [row.loop for row in rows if row.loop is not None]
    seconds = sum(loop.seconds for loop in loops)
    return 100.0 * sum(loop.wait_share * loop.seconds for loop in loops) / seconds if seconds > 0 else 0.0


def _mean_utilisation(rows: Sequence[NodeSample], index: int) -> float | None:
    """Of a GPU, in percent; None where it was not known in each row."""
    used = [gpu.utilisation_percent for row in rows for gpu in row.gpus if gpu.index == index]
    known = [value for value in used if value is not None]
    return sum(known) / len(known) if known and len(known) == len(rows) else None


def _memory(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    used, total = rows[-1].host.memory_used_bytes, rows[-1].host.memory_total_bytes
    if used is not None and total:
        percent = 100.0 * used / total
        yield Measurement(
            rule="memory",
            value=percent,
            subject="",
            what=f"has {percent:.0f} % of its memory in use{BOUND}, {format_memory(used)} of {format_memory(total)}",
            remedy="From 95 % on Ray ends tasks, and the system may end processes: end others, or take more memory",
        )


def _disk(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    host = rows[-1].host
    if host.disk_free_bytes is not None and host.disk_total_bytes:
        percent = 100.0 * (1.0 - host.disk_free_bytes / host.disk_total_bytes)
        yield Measurement(
            rule="disk",
            value=percent,
            subject=f"the disk of {host.disk_folder}",
            what=f"is {percent:.0f} % full{BOUND}, {format_size(host.disk_free_bytes)} are left",
            remedy="From 95 % on Ray writes no objects to it: delete old runs or kept activations "
            "(python jobs/activations.py)",
        )


def _shared_memory(rows: Sequence[NodeSample], _setting: RunContext) -> Iterator[Measurement]:
    total = rows[-1].host.shm_total_bytes
    if total is not None:
        yield Measurement(
            rule="shared memory",
            value=total / _GIB,
            subject="/dev/shm",
            what=f"has {format_memory(total)}{BOUND}",
            remedy="Ray keeps decoded images there, or on disk where it is small: docker run --shm-size=8g, or in "
            "Kubernetes a volume emptyDir with medium: Memory",
        )


_RULES: tuple[Callable[[Sequence[NodeSample], RunContext], Iterator[Measurement]], ...] = (
    _temperature, _throttling, _gpu_memory, _gpu_errors, _gpu_unused, _waiting, _memory, _disk, _shared_memory,
)  # fmt: skip
