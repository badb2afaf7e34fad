"""Fetch the best model of all runs and trials below a storage, verified: complete runs and others.

pharmclf fetch-best --out DIR                                 the best of runs/
pharmclf fetch-best --storage s3://bucket/prefix --out DIR    the best of a bucket, trials of sweeps among them
pharmclf fetch-best --experiment PREFIX --out DIR             the best trial of a sweep
pharmclf fetch-best --list                                    a table of the runs, the best first

Written are model.keras, labels.json, config.yaml and metrics.json, of a complete run also decision.json and the model
card README.md; all of them or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pharmclf.commands.parser import OptionsParser
from pharmclf.core.console import print_line, print_result, show_loading
from pharmclf.core.errors import ConfigError
from pharmclf.core.signals import exit_on_sigterm


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is looked for, and where it goes."""

    storage: str = "runs"
    """Folder or s3:// prefix that holds the runs."""
    name: str = ""
    """Only this run, by its path below the storage: NAME, or SWEEP/trials/TRIAL. Empty: all."""
    experiment: str = ""
    """Only the runs at or below this path. Empty: all."""
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What decides: the highest validation accuracy, or the lowest validation loss."""
    out: str = ""
    """Local folder for the model; it must not be there yet, or be empty. Needed without --list."""
    show: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print a table of the runs, and end."""


PARSER = OptionsParser("fetch-best", __doc__, Options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, then list or fetch -> the exit code."""
    exit_on_sigterm()  # what is half fetched is deleted
    options = PARSER.parse(arguments)
    if options.show:
        from pharmclf.runs.registry import list_runs, rank_runs, runs_table  # after the flags: --help answers at once

        runs = list_runs(options.storage, name=options.name, experiment=options.experiment)
        print(runs_table(rank_runs(runs, options.metric)))
        return 0
    if not options.out:
        raise ConfigError("--out: received nothing, expected a local folder for the model. Give --out DIR, or --list")
    with show_loading():
        from pharmclf.runs.best_model import fetch_best

    run = fetch_best(
        options.storage,
        options.out,
        name=options.name,
        experiment=options.experiment,
        metric=options.metric,
        say=print_line,
    )
    print_result(f"fetched: the model of run {run.name} into {options.out}")
    return 0
