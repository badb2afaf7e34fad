"""The benchmarks by name: their functions, settings and options, and the files that they write."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pharmclf import storage
from pharmclf.benchmark.measure import (
    MeasureOptions,
    PeersOptions,
    RecipeOptions,
    Report,
    UnknownOptions,
    describe_machine,
)
from pharmclf.benchmark.scaling_options import ScaleOptions, ScalingOptions
from pharmclf.config import RunConfig
from pharmclf.config.presets import SPACES
from pharmclf.core.console import print_result, show_activity
from pharmclf.core.errors import format_error
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.data.destination import check_destination

BACKBONES = ["efficientnet_lite0", "resnet50"]
QUICK_PRESET = "benchmark-quick"
BenchmarkOptions = MeasureOptions | PeersOptions | RecipeOptions | UnknownOptions | ScaleOptions | ScalingOptions | None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    function: str
    """module:function below pharmclf.benchmark, imported when it runs: most import Ray or TensorFlow."""
    preset: str = "benchmark"
    """Configuration where --config gives none."""
    options: BenchmarkOptions = None
    """Defaults of its options, the second argument of the function."""
    quick: BenchmarkOptions = None
    """Defaults with --quick; None: as without."""
    argument: list[str] | Path | None = None
    """Without options, the second argument."""


_SHORT = MeasureOptions(sides=("plain",), seconds=2.0)
_FEW = ScaleOptions(images=2000, compared=1000, classes=100)
_EASY = PeersOptions(sides=("keras",), peers_target=0.5, peers_epochs=2, peers_image_size=128)
_ONE = RecipeOptions(seeds=1, ingredients=("light",))
BENCHMARKS = {
    "plain": Benchmark("vs_keras:benchmark_vs_keras", "lookalikes-quick", MeasureOptions(), _SHORT),
    "peers": Benchmark("peers:benchmark_peers", "lookalikes", PeersOptions(), _EASY),
    "recipe": Benchmark("recipe:benchmark_recipe", "lookalikes", RecipeOptions(), _ONE),
    "unknown": Benchmark("unknown:benchmark_unknown", "lookalikes", UnknownOptions()),
    "stages": Benchmark("stages:benchmark_stages", argument=BACKBONES),
    "devices": Benchmark("devices:benchmark_devices", options=MeasureOptions(), quick=_SHORT),
    "monitor": Benchmark("monitor_cost:benchmark_monitor", options=MeasureOptions(), quick=_SHORT),
    "activations": Benchmark("feature_cache:benchmark_feature_cache"),
    "scaling": Benchmark("scaling:benchmark_scaling", "scaling", ScalingOptions()),
    "scale": Benchmark("scale:benchmark_scale", options=ScaleOptions(), quick=_FEW),
    "sweep": Benchmark("sweep:benchmark_sweep", argument=SPACES / "default.yaml"),
    "storage": Benchmark("storage_throughput:benchmark_storage"),
    "stream": Benchmark("stream:benchmark_stream"),
    "predict": Benchmark("inference:benchmark_inference"),
    "serve": Benchmark("serving:benchmark_serving"),
    "folding": Benchmark("folding:benchmark_folding"),
}
ALL = ("plain", "stages", "devices", "monitor", "activations", "scaling", "scale", "sweep")
"""Benchmarks that run where none is named."""
QUICK = ("plain", "devices")
"""Benchmarks of --quick."""


def get_benchmark(name: str, *, quick: bool) -> Benchmark:
    """A benchmark; with `quick`, on few small images."""
    benchmark = BENCHMARKS[name]
    quick_options = benchmark.quick or benchmark.options
    return dataclasses.replace(benchmark, preset=QUICK_PRESET, options=quick_options) if quick else benchmark


def run_benchmark(name: str, config: RunConfig, options: BenchmarkOptions) -> Report:
    """Run a benchmark, and write its report and its plot below the storage.

    Args:
        options: of the benchmark; None where it has none.
    """
    place = storage.absolute(config.storage)
    check_destination("--storage", place)
    argument = BENCHMARKS[name].argument
    second = argument if options is None else options
    module, function = BENCHMARKS[name].function.split(":")
    with show_activity(f"measuring {name}"):
        call = getattr(importlib.import_module(f"pharmclf.benchmark.{module}"), function)
        measured: Report = call(config, *([] if second is None else [second]), print_result)
    report: Report = {"benchmark": name, "machine": describe_machine()} | measured
    from pharmclf.benchmark.plots import plot_report  # Matplotlib takes a second to import

    location = storage.join(place, f"benchmark-{name}.json")
    storage.write_json(location, report)
    if plot := plot_report(name, report):
        storage.write_bytes(storage.join(place, f"benchmark-{name}.png"), plot)
    print_result(f"{name}: {len(report['rows'])} rows, written to {location}")
    return report


def run_benchmarks(
    names: Sequence[str], settings: Mapping[str, tuple[BenchmarkOptions, RunConfig]]
) -> dict[str, Report]:
    """Run several benchmarks, each in a fresh process -> reports by name; that of a failed one has the reason."""
    reports: dict[str, Report] = {}
    for name in names:
        print_result(f"=== {name}")
        options, config = settings[name]
        try:
            with show_activity(f"measuring {name}"):
                reports[name] = run_in_subprocess(partial(run_benchmark, name, config, options))
        except Exception as error:
            print_result(f"{name} failed: {format_error(error)}")
            reports[name] = {"benchmark": name, "rows": [], "failed": format_error(error), "holds": False}
    return reports
