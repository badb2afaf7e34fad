"""Measure how fast each part of a run is on this machine; every figure stands beside what it is compared with.

python jobs/benchmark.py                                          each stage: decoding, stream, training step, loop
python jobs/benchmark.py --data DIR --demo.images-per-class 100   on your images; on more of the demo's
python jobs/benchmark.py activations                              runs with and without kept activations; every cut
python jobs/benchmark.py sweep --data DIR                         trials that share what is computed, and that do not
python jobs/benchmark.py storage --storage s3://BUCKET/PREFIX     the same images from the storage and from local disk
python jobs/benchmark.py predict --backbone resnet50              prediction from files, and the bare forward pass
python jobs/benchmark.py scaling --link-gbit 25 100               one and two workers, and what to expect of 256 GPUs
"""

from __future__ import annotations

from pathlib import Path

from pharmclf import storage
from pharmclf.benchmark.activations import benchmark_activations
from pharmclf.benchmark.inference import benchmark_inference
from pharmclf.benchmark.remote import benchmark_storage
from pharmclf.benchmark.scaling import benchmark_scaling
from pharmclf.benchmark.scaling_model import ScalingOptions
from pharmclf.benchmark.stages import benchmark
from pharmclf.benchmark.sweep import benchmark_sweep
from pharmclf.cli import parse_config, parse_options, run_job, take_switch

_BACKBONES = ["efficientnet_lite0", "resnet50"]


def main() -> int:
    """Parse, measure, write the figures into the storage."""
    what = next(
        (name for name in ("storage", "activations", "sweep", "predict", "scaling") if take_switch(name)), "stages"
    )
    here = Path(__file__).parent
    if what == "scaling":
        options, config = parse_options(__doc__ or "", here / "configs" / "scaling.yaml", ScalingOptions())
    else:
        config = parse_config(__doc__ or "", here / "configs" / "benchmark.yaml")

    def say(line: str) -> None:
        print(line, flush=True)

    if what == "storage":
        report = benchmark_storage(config, say)
    elif what == "activations":
        report = benchmark_activations(config, say)
    elif what == "sweep":
        report = benchmark_sweep(config, here.parent / "tune" / "space.yaml", say)
    elif what == "predict":
        report = benchmark_inference(config, say)
    elif what == "scaling":
        report = benchmark_scaling(config, options, say)
    else:
        report = benchmark(config, _BACKBONES, say)
    name = "benchmark.json" if what == "stages" else f"benchmark-{what}.json"
    location = storage.join(storage.absolute(config.storage), name)
    storage.write_json(location, report)
    print(f"benchmark: {len(report['rows'])} rows, written to {location}")
    return 0 if report.get("holds", True) else 1  # of a model that is checked against what was measured


if __name__ == "__main__":
    run_job(main)
