"""Train a classifier of product images: both phases, tested, with a report.

python jobs/train.py                                          the demo, in minutes
python jobs/train.py --data DIR --name NAME                   your own images, one folder per product
ray job submit --working-dir . -- python jobs/train.py ...    the same on a cluster
python jobs/train.py --dry-run ...                            the layers, frozen and trained, with their parameters
python jobs/train.py --find-lr ...                            learning rates tried out, their curves, and a proposal
python jobs/train.py --overwrite ...                          delete the run of this name, and begin again
"""

from __future__ import annotations

import functools
from pathlib import Path

from pharmclf.cli import parse_config, run_job, take_switch
from pharmclf.core.console import print_line
from pharmclf.find_rate import find_learning_rates
from pharmclf.pipeline import dry_run, run


def main() -> int:
    """Parse, build the configuration, train."""
    whole = functools.partial(run, overwrite=take_switch("--overwrite"))
    work = dry_run if take_switch("--dry-run") else find_learning_rates if take_switch("--find-lr") else whole
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "demo.yaml")
    return work(config, print_line)


if __name__ == "__main__":
    run_job(main)
