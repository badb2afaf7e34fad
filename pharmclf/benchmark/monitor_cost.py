"""Benchmark of the hardware monitor: processor time of a reading, and the training step with and without readings."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial

from pharmclf.benchmark.measure import MeasureOptions, Report
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.distributed.cluster import connect
from pharmclf.models.devices import configure_devices_for
from pharmclf.monitoring import HardwareMonitor
from pharmclf.monitoring.sampler import NodeSampler
from pharmclf.monitoring.samples import NodeSample
from pharmclf.training.phases import build_phases

ALLOWED = 0.01
_SHORT_INTERVAL_S = 0.1  # between readings while their cost is measured
_TIMES_AS_OFTEN = 10
_NUM_ROUNDS = 3
_WRITE_INTERVAL_S = 60.0


def benchmark_monitor(config: RunConfig, options: MeasureOptions, say: Say) -> Report:
    """Measure the monitor in a child process, next to an idle Ray, whose processes are read too.

    Returns:
        rows: reading_s and writing_s (processor seconds), every_s, share (of one core), images/s of the step without
        and with readings ten times as often; holds: the share is below 1 %.
    """
    every_s = config.monitor_interval_s or 5.0
    row = run_in_subprocess(
        partial(measure_monitor, dataclasses.replace(config, num_workers="0"), every_s, options.seconds)
    )
    say(
        f"hardware monitor: {1e3 * row['reading_s']:.1f} ms of processor time a reading, one every {every_s:g} s, and "
        f"{1e3 * row['writing_s']:.1f} ms a minute to write them: {row['share']:.2%} of a core (at most {ALLOWED:.0%})"
    )
    say(
        f"hardware monitor: loop {row['without']:.1f} images/s without, {row['with_often']:.1f} with readings "
        f"{_TIMES_AS_OFTEN} times as often: {row['loss_often']:+.1%}, a tenth of it in a run"
    )
    return {"backbone": config.backbone, "rows": [row], "holds": row["share"] < ALLOWED}


class _CountingSampler(NodeSampler):
    """Counts its readings."""

    reads = 0

    def read(self, seconds: float) -> NodeSample:
        self.reads += 1
        return super().read(seconds)


def measure_monitor(config: RunConfig, every_s: float, seconds: float) -> dict[str, float]:
    """As `benchmark_monitor`, in this process."""
    connect(allow_open=config.allow_unauthenticated_cluster)
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        reading_s, writing_s = _processor_s(folder, seconds)
        with suppress_native_stderr():
            configure_devices_for(config)
            from pharmclf.benchmark.timed_step import build_synthetic_step

            step = build_synthetic_step(config, build_phases(config)[0], "float32")
            step()
            took, count = {False: 0.0, True: 0.0}, {False: 0, True: 0}
            for turn in range(2 * _NUM_ROUNDS):  # in turns, so that other load of the machine meets both
                monitored = turn % 2 == 1
                monitor = _monitor(folder, every_s / _TIMES_AS_OFTEN if monitored else 0.0)
                began = time.perf_counter()
                while time.perf_counter() - began < seconds / 2:
                    step()
                    count[monitored] += config.batch_size
                took[monitored] += time.perf_counter() - began
                monitor.close()
    without, with_often = count[False] / took[False], count[True] / took[True]
    return {
        "reading_s": reading_s, "writing_s": writing_s, "every_s": every_s,
        "share": reading_s / every_s + writing_s / _WRITE_INTERVAL_S,
        "without": without, "with_often": with_often, "loss_often": 1 - with_often / without,
    }  # fmt: skip


def _processor_s(folder: str, seconds: float) -> tuple[float, float]:
    """Processor seconds of one reading, with its alerts, and of one writing, while nothing else runs here."""
    reader = _CountingSampler("127.0.0.1", [folder])
    monitor = _monitor(folder, _SHORT_INTERVAL_S, reader)
    time.sleep(5 * _SHORT_INTERVAL_S)  # after what is done once
    first, before = reader.reads, time.process_time()
    time.sleep(max(seconds, 1.0))
    used, reads = time.process_time() - before, reader.reads - first
    before = time.process_time()
    monitor.flush()
    writing_s = time.process_time() - before
    monitor.close()
    return used / max(1, reads), writing_s


def _monitor(folder: str, every_s: float, reader: NodeSampler | None = None) -> HardwareMonitor:
    open_node = (lambda: reader) if reader else None
    return HardwareMonitor(folder, node="127.0.0.1", every_s=every_s, send=lambda _: None, open_node=open_node)
