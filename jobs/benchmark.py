"""Measure how fast each part of a run is on this machine; every figure stands beside what it is compared with.

python jobs/benchmark.py                                          each stage: decoding, stream, training step, loop
python jobs/benchmark.py --data DIR --demo.images-per-class 100   on your images; on more of the demo's
python jobs/benchmark.py storage --storage s3://BUCKET/PREFIX     the same images from the storage and from local disk
"""

from __future__ import annotations

from pathlib import Path

from pharmclf import storage
from pharmclf.benchmark.remote import benchmark_storage
from pharmclf.benchmark.stages import benchmark
from pharmclf.cli import parse_config, run_job, take_switch

_BACKBONES = ["efficientnet_lite0", "resnet50"]


def main() -> int:
    """Parse, measure, write the figures into the storage."""
    compare = take_switch("storage")
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "benchmark.yaml")

    def say(line: str) -> None:
        print(line, flush=True)

    report = benchmark_storage(config, say) if compare else benchmark(config, _BACKBONES, say)
    name = "benchmark-storage.json" if compare else "benchmark.json"
    location = storage.join(storage.absolute(config.storage), name)
    storage.write_json(location, report)
    print(f"benchmark: {len(report['rows'])} rows, written to {location}")
    return 0


if __name__ == "__main__":
    run_job(main)
