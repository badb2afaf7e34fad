"""Search learning rates, dropout and unfreeze depth; all trials share the frozen features of the backbone.

python tune/sweep.py --data DIR --name NAME --trials 16             on this machine
ray job submit --working-dir . -- python tune/sweep.py ...          the same on a cluster
python tune/sweep.py --space FILE --search grid --trials 100 ...    other parameters, every combination of them
python jobs/fetch_best.py --experiment NAME --out DIR               the model of the best trial

The same command again resumes the sweep: completed trials are kept, interrupted ones continue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pharmclf.commands.parser import Switch, parse_run
from pharmclf.config.presets import PRESETS, SPACES
from pharmclf.core.console import print_line
from pharmclf.tuning.options import SweepOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a sweep, and of this command."""

    sweep: Annotated[SweepOptions, tyro.conf.arg(name="")] = field(default_factory=SweepOptions)
    overwrite: Switch = False
    """Delete the sweep of this name, with its trials, and start a new one."""


def main() -> int:
    """Parse the flags, then sweep."""
    options, base = parse_run(__doc__ or "", PRESETS / "sweep.yaml", Options())
    space = Path(options.sweep.space) if options.sweep.space else SPACES / "default.yaml"
    from pharmclf.tuning.sweep import run_sweep  # after the flags are parsed, so that --help answers at once

    return run_sweep(options.sweep, base, space, print_line, overwrite=options.overwrite)
