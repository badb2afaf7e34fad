"""Search learning rates, dropout and unfreeze depth; all trials share the frozen features of the backbone.

pharmclf sweep --data DIR --name NAME --trials 16             on this machine
ray job submit -- pharmclf sweep ...                          the same on a cluster
pharmclf sweep --space FILE --search grid --trials 100 ...    other parameters, every combination of them
pharmclf fetch-best --experiment NAME --out DIR               the model of the best trial

The same command again resumes the sweep: completed trials are kept, interrupted ones continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pharmclf.commands.parser import RunParser, Switch
from pharmclf.config.presets import DEFAULT_SPACE, SPACES, find_preset
from pharmclf.core.console import print_line, show_loading
from pharmclf.tuning.options import SweepOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a sweep, and of this command."""

    sweep: Annotated[SweepOptions, tyro.conf.arg(name="")] = field(default_factory=SweepOptions)
    overwrite: Switch = False
    """Delete the sweep of this name, with its trials, and start a new one."""


PARSER = RunParser("sweep", __doc__, Options(), preset="sweep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, then sweep -> the exit code."""
    options, base = PARSER.parse(arguments)
    space = find_preset(options.sweep.space or DEFAULT_SPACE, "--space", SPACES)
    with show_loading():  # after the flags are parsed, so that --help answers at once
        from pharmclf.tuning.sweep import run_sweep

    return run_sweep(options.sweep, base, space, print_line, overwrite=options.overwrite)
