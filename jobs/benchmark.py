"""Measure each stage of a run in images/s: decoding, the stream, the training step, the whole loop.

python jobs/benchmark.py                                          ResNet50 and EfficientNet-Lite0, each phase
python jobs/benchmark.py --data DIR --demo.images-per-class 100   on your images; on more of the demo's
"""

from __future__ import annotations

from pathlib import Path

from pharmclf import storage
from pharmclf.benchmark import benchmark
from pharmclf.cli import parse_config, run_job

_BACKBONES = ["efficientnet_lite0", "resnet50"]


def main() -> int:
    """Parse, measure, write benchmark.json into the storage."""
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "benchmark.yaml")
    report = benchmark(config, _BACKBONES, lambda line: print(line, flush=True))
    location = storage.join(storage.absolute(config.storage), "benchmark.json")
    storage.write_json(location, report)
    print(f"benchmark: {len(report['rows'])} rows, written to {location}")
    return 0


if __name__ == "__main__":
    run_job(main)
