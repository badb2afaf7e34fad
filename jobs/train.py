"""Train a classifier of product images: both phases, tested, with a report.

python jobs/train.py                                          the demo, in minutes
python jobs/train.py --data DIR --name NAME                   your own images, one folder per product
ray job submit --working-dir . -- python jobs/train.py ...    the same on a cluster
"""

from __future__ import annotations

from pathlib import Path

from pharmclf.cli import parse_config, run_job
from pharmclf.pipeline import run


def main() -> int:
    """Parse, build the configuration, train."""
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "demo.yaml")
    return run(config, lambda line: print(line, flush=True))


if __name__ == "__main__":
    run_job(main)
