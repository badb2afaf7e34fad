"""Search learning rates, dropout and unfreeze depth; the frozen part of the backbone is computed once for all trials.

python tune/sweep.py --data DIR --name NAME --trials 16             on this machine
ray job submit --working-dir . -- python tune/sweep.py ...          the same on a cluster
python tune/sweep.py --space FILE --search grid --trials 100 ...    other parameters, every combination of them
python jobs/fetch_best.py --experiment NAME --out DIR               the winner's model

The same command again goes on: trials that have ended stay ended, those that were broken off go on.
--overwrite deletes the sweep of this name, and begins again.
"""

from __future__ import annotations

from pathlib import Path

from pharmclf.cli import parse_options, run_job, take_switch
from pharmclf.core.console import print_line
from pharmclf.tuning.options import SweepOptions
from pharmclf.tuning.sweep import run_sweep

_HERE = Path(__file__).parent


def main() -> int:
    """Parse, build both configurations, sweep."""
    overwrite = take_switch("--overwrite")
    options, base = parse_options(__doc__ or "", _HERE / "base.yaml", SweepOptions())
    space = Path(options.space) if options.space else _HERE / "space.yaml"
    return run_sweep(options, base, space, print_line, overwrite=overwrite)


if __name__ == "__main__":
    run_job(main)
