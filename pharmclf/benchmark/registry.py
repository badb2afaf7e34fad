"""The benchmarks by name: what each runs, from which settings, and where its figures go."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pharmclf import storage
from pharmclf.benchmark.options import MeasureOptions
from pharmclf.benchmark.scaling_model import ScalingOptions
from pharmclf.benchmark.tables import machine
from pharmclf.config import RunConfig
from pharmclf.core.console import print_line
from pharmclf.core.errors import format_error
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.data.destination import check_destination

BACKBONES = ["efficientnet_lite0", "resnet50"]
QUICK_FILE = "benchmark-quick.yaml"
_QUICK = MeasureOptions(sides=("plain",), seconds=2.0)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    work: str
    """module:function below pharmclf.benchmark, imported when it is run: most start Ray or TensorFlow."""
    file: str = "benchmark.yaml"
    """Settings where --config gives none."""
    options: Any = None
    """Defaults of options of its own, which the function takes behind the configuration."""
    extra: Callable[[Path], Any] | None = None
    """What else it takes there; given the folder of the project."""


BENCHMARKS = {
    "plain": Benchmark("vs_keras:benchmark_vs_keras", "lookalikes-quick.yaml", MeasureOptions()),
    "stages": Benchmark("stages:benchmark_stages", extra=lambda _: BACKBONES),
    "devices": Benchmark("devices:benchmark_devices", options=MeasureOptions()),
    "monitor": Benchmark("monitor_cost:benchmark_monitor", options=MeasureOptions()),
    "activations": Benchmark("feature_cache:benchmark_feature_cache"),
    "scaling": Benchmark("scaling:benchmark_scaling", "scaling.yaml", ScalingOptions()),
    "sweep": Benchmark("sweep:benchmark_sweep", extra=lambda home: home / "tune" / "space.yaml"),
    "storage": Benchmark("storage_throughput:benchmark_storage"),
    "predict": Benchmark("inference:benchmark_inference"),
}
ALL = ("plain", "stages", "devices", "monitor", "activations", "scaling", "sweep")
"""Those that run where none is named."""
QUICK = ("plain", "devices")
"""Those of --quick."""


def get_benchmark(name: str, *, quick: bool) -> Benchmark:
    """A benchmark by its name, with --quick on few small images."""
    part = BENCHMARKS[name]
    if not quick:
        return part
    options = _QUICK if isinstance(part.options, MeasureOptions) else part.options
    return dataclasses.replace(part, file=QUICK_FILE, options=options)


def run_benchmark(name: str, config: RunConfig, options: Any, home: Path) -> dict[str, Any]:
    """Run a benchmark; its report and picture are written below the storage.

    Args:
        name: of it.
        config: what is measured.
        options: of its own; None where it has none.
        home: folder of the project.
    """
    part = BENCHMARKS[name]
    check_destination("--storage", storage.absolute(config.storage))
    module, function = part.work.split(":")
    arguments = [options] if part.options is not None else [part.extra(home)] if part.extra else []
    work = getattr(importlib.import_module(f"pharmclf.benchmark.{module}"), function)
    report: dict[str, Any] = {"benchmark": name, "machine": machine()} | work(config, *arguments, print_line)
    from pharmclf.benchmark.plots import plot_report  # Matplotlib takes a second to import

    place = storage.absolute(config.storage)
    storage.write_json(storage.join(place, f"benchmark-{name}.json"), report)
    if drawn := plot_report(name, report):
        storage.write_bytes(storage.join(place, f"benchmark-{name}.png"), drawn)
    print_line(f"{name}: {len(report['rows'])} rows, written to {storage.join(place, f'benchmark-{name}.json')}")
    return report


def run_benchmarks(names: tuple[str, ...], configs: dict[str, tuple[Any, RunConfig]], home: Path) -> dict[str, Any]:
    """Run several, each in a fresh process; one that fails is named, and the others go on -> name -> report.

    Args:
        names: which.
        configs: options and configuration of each.
        home: folder of the project.
    """
    reports: dict[str, Any] = {}
    for name in names:
        print_line(f"=== {name}")
        options, config = configs[name]
        try:
            reports[name] = run_in_subprocess(partial(run_benchmark, name, config, options, home))
        except Exception as error:
            print_line(f"{name} failed: {format_error(error)}")
            reports[name] = {"benchmark": name, "rows": [], "failed": format_error(error), "holds": False}
    return reports
