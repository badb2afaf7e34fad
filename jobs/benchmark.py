"""Measure how fast each part of a run is on this machine; every figure stands beside what it is compared with.

python jobs/benchmark.py                                          all of it, the long way; a failed part is named
python jobs/benchmark.py --quick                                  plain and devices, on a few small images
python jobs/benchmark.py plain --data DIR                         a run beside the same job in plain Keras
python jobs/benchmark.py stages --data DIR                        decoding, stream, training step, loop
python jobs/benchmark.py devices --backbone resnet50              CPU and GPUs: speed, memory, energy by precision
python jobs/benchmark.py monitor                                  what watching the hardware costs
python jobs/benchmark.py activations                              runs with and without kept activations; every cut
python jobs/benchmark.py sweep --data DIR                         trials that share what is computed, and that do not
python jobs/benchmark.py storage --storage s3://BUCKET/PREFIX     the same images from the storage and from local disk
python jobs/benchmark.py predict --backbone resnet50              prediction from files, and the bare forward pass
python jobs/benchmark.py scaling --link-gbit 25 100               one and two workers, and what to expect of 256 GPUs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pharmclf import storage
from pharmclf.benchmark.registry import ALL, BENCHMARKS, QUICK, get_benchmark, run_benchmark, run_benchmarks
from pharmclf.cli import parse_config, parse_options, run_job, take_command, take_switch
from pharmclf.config import RunConfig

_HOME = Path(__file__).resolve().parents[1]


def main() -> int:
    """Parse, measure, write the figures and their pictures into the storage."""
    quick = take_switch("--quick")
    asked = take_command(BENCHMARKS)
    if asked:
        part = get_benchmark(asked, quick=quick)
        default, options = _HOME / "jobs" / "configs" / part.file, part.options
        if options is None:
            config = parse_config(__doc__ or "", default)
        else:
            options, config = parse_options(__doc__ or "", default, options)
        return 0 if run_benchmark(asked, config, options, _HOME).get("holds", True) else 1

    def settings(name: str) -> tuple[Any, RunConfig]:
        part = get_benchmark(name, quick=quick)
        return part.options, parse_config(__doc__ or "", _HOME / "jobs" / "configs" / part.file)

    names = QUICK if quick else ALL
    configs = {name: settings(name) for name in names}
    reports = run_benchmarks(names, configs, _HOME)
    location = storage.join(storage.absolute(configs[names[0]][1].storage), "benchmark.json")
    storage.write_json(location, {"parts": reports})
    bad = [name for name, report in reports.items() if not report.get("holds", True)]
    print(f"benchmark: {len(reports)} parts, written to {location}" + (f"; not well: {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    run_job(main)
