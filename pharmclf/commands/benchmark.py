"""Measure how fast each part of a run is on this machine, each figure with what it is compared to.

python jobs/benchmark.py                                          all of it, which takes long; a failed part is named
python jobs/benchmark.py --quick                                  plain and devices, on a few small images
python jobs/benchmark.py plain --data DIR                         a run and the same job in plain Keras
python jobs/benchmark.py stages --data DIR                        decoding, stream, training step, loop
python jobs/benchmark.py devices --backbone resnet50              CPU and GPUs: speed, memory, energy by precision
python jobs/benchmark.py monitor                                  costs of the hardware monitor
python jobs/benchmark.py activations                              runs with and without the feature cache; every split
python jobs/benchmark.py sweep --data DIR                         trials with shared features and workers, and without
python jobs/benchmark.py storage --storage s3://BUCKET/PREFIX     the same images from the storage and from local disk
python jobs/benchmark.py predict --backbone resnet50              prediction from files, and the bare forward pass
python jobs/benchmark.py scaling --link-gbit 25 100               one and two workers, and a forecast up to 256 GPUs
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from pharmclf import storage
from pharmclf.benchmark.measure import MeasureOptions
from pharmclf.benchmark.registry import (
    ALL,
    BENCHMARKS,
    QUICK,
    Benchmark,
    BenchmarkOptions,
    get_benchmark,
    run_benchmark,
    run_benchmarks,
)
from pharmclf.benchmark.scaling_options import ScalingOptions
from pharmclf.commands.parser import Switch, parse_run
from pharmclf.config import RunConfig
from pharmclf.config.presets import PRESETS
from pharmclf.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a benchmark that has none."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The benchmark that runs, and its settings."""

    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")] = ""
    """Name of a benchmark. Nothing: all of them."""
    quick: Switch = False
    """On a few small images."""
    own: Annotated[object, tyro.conf.arg(name="")] = NoOptions()
    """Options of the benchmark."""


def parse_benchmark(benchmark: Benchmark, own: object) -> tuple[Options, RunConfig]:
    """Parse the flags, with the default configuration of a benchmark.

    Raises:
        ConfigError: the command line names an unknown benchmark, or names it after other flags.
    """
    file = PRESETS / benchmark.file
    options, config = parse_run(__doc__ or "", file, Options(own=own))
    if (name := options.benchmark) not in ("", *BENCHMARKS):
        raise ConfigError(f"benchmark: received {name!r}; {did_you_mean(name, BENCHMARKS)}")
    if name not in ("", _first_word()):
        raise ConfigError(f"benchmark: received {name} after other flags, expected it before them. Give it first")
    return options, config


def _first_word() -> str:
    return next((argument for argument in sys.argv[1:] if argument != "--quick"), "")


def main() -> int:
    """Parse the flags, measure, and write the figures and their plots into the storage."""
    quick, name = "--quick" in sys.argv[1:], _first_word()
    if name in BENCHMARKS:
        benchmark = get_benchmark(name, quick=quick)
        own = NoOptions() if benchmark.options is None else benchmark.options
        options, config = parse_benchmark(benchmark, own)
        given = options.own if isinstance(options.own, MeasureOptions | ScalingOptions) else None
        return 0 if run_benchmark(name, config, given).get("holds", True) else 1

    def settings(name: str) -> tuple[BenchmarkOptions, RunConfig]:
        benchmark = get_benchmark(name, quick=quick)
        return benchmark.options, parse_benchmark(benchmark, NoOptions())[1]

    names = QUICK if quick else ALL
    configs = {name: settings(name) for name in names}
    reports = run_benchmarks(names, configs)
    location = storage.join(storage.absolute(configs[names[0]][1].storage), "benchmark.json")
    storage.write_json(location, {"parts": reports})
    failed = [name for name, report in reports.items() if not report.get("holds", True)]
    print(
        f"benchmark: {len(reports)} parts, written to {location}" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0
