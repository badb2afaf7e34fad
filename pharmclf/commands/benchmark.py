"""Measure how fast each part of a run is on this machine, each figure with what it is compared to.

pharmclf benchmark                                         all of it, which takes long; a failed part is named
pharmclf benchmark --quick                                 plain and devices, on a few small images
pharmclf benchmark plain --data DIR                        a run and the same job in plain Keras
pharmclf benchmark peers --data DIR                        accuracy over time: a run, plain Keras, PyTorch
pharmclf benchmark recipe --data DIR --eval-data X=DIR      what each kind of augmentation gains
pharmclf benchmark unknown --data DIR --near A B           what is answered of products that a model has not seen
pharmclf benchmark stages --data DIR                       decoding, stream, training step, loop
pharmclf benchmark devices --backbone resnet50             CPU and GPUs: speed, memory, energy by precision
pharmclf benchmark monitor                                 costs of the hardware monitor
pharmclf benchmark activations                             runs with and without the feature cache; every split
pharmclf benchmark sweep --data DIR                        trials with shared features and workers, and without
pharmclf benchmark storage --storage s3://BUCKET/PREFIX    the same images from the storage and from local disk
pharmclf benchmark predict --backbone resnet50             prediction from files, and the bare forward pass
pharmclf benchmark serve --backbone resnet50               the server under load, and the bare forward pass
pharmclf benchmark folding                                 networks with batch normalisation plain and folded
pharmclf benchmark scale --images 1000000                  copies, splits, manifest, scores of large data sets
pharmclf benchmark scaling --link-gbit 25 100              one and two workers, and a forecast up to 256 GPUs
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from pharmclf import storage
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
from pharmclf.commands.parser import RunParser, Switch
from pharmclf.config import RunConfig
from pharmclf.core.errors import EXIT_FAILED, EXIT_OK, ConfigError, did_you_mean


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


PARSER = RunParser("benchmark", __doc__, Options(), preset="benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, measure, and write the figures and their plots into the storage -> the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    quick, name = "--quick" in given, _first_word(given)
    if name in BENCHMARKS:
        benchmark = get_benchmark(name, quick=quick)
        own = NoOptions() if benchmark.options is None else benchmark.options
        options, config = parse_benchmark(benchmark, own, given)
        of_benchmark: Any = None if benchmark.options is None else options.own
        return EXIT_OK if run_benchmark(name, config, of_benchmark).get("holds", True) else EXIT_FAILED

    def settings(name: str) -> tuple[BenchmarkOptions, RunConfig]:
        benchmark = get_benchmark(name, quick=quick)
        return benchmark.options, parse_benchmark(benchmark, NoOptions(), given)[1]

    names = QUICK if quick else ALL
    configs = {name: settings(name) for name in names}
    reports = run_benchmarks(names, configs)
    location = storage.join(storage.absolute(configs[names[0]][1].storage), "benchmark.json")
    storage.write_json(location, {"parts": reports})
    failed = [name for name, report in reports.items() if not report.get("holds", True)]
    print(
        f"benchmark: {len(reports)} parts, written to {location}" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return EXIT_FAILED if failed else EXIT_OK


def parse_benchmark(benchmark: Benchmark, own: object, arguments: Sequence[str]) -> tuple[Options, RunConfig]:
    """Parse the flags, with the default configuration of a benchmark.

    Args:
        benchmark: whose configuration is the default.
        own: defaults of its options.
        arguments: the flags.

    Raises:
        ConfigError: the command line names an unknown benchmark, or names it after other flags.
    """
    parser = dataclasses.replace(PARSER, options=Options(own=own), preset=benchmark.preset)
    options, config = parser.parse(arguments)
    if (name := options.benchmark) not in ("", *BENCHMARKS):
        raise ConfigError(f"benchmark: received {name!r}; {did_you_mean(name, BENCHMARKS)}")
    if name not in ("", _first_word(arguments)):
        raise ConfigError(f"benchmark: received {name} after other flags, expected it before them. Give it first")
    return options, config


def _first_word(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if argument != "--quick"), "")
