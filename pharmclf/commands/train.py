"""Train a classifier of product images: both phases, final evaluation, report.

pharmclf train                                     the demo, in minutes
pharmclf train --data DIR --name NAME              your own images, a folder per product
pharmclf train --extend NAME --phase2.epochs 40    the run of that name for longer
ray job submit -- pharmclf train ...               the same on a cluster

The same command again resumes the run, or reports that it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pharmclf.commands.parser import RunParser, Switch
from pharmclf.core.console import print_line, print_result, show_loading
from pharmclf.core.errors import EXIT_OK, ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with the run configuration."""

    extend: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """Folder of a run, or its name in the storage: it resumes with its own settings, and with the flags on top of them;
    `--phase2.epochs` and `--stopping.early-patience` may grow."""
    overwrite: Switch = False
    """Delete the run of this name, and start a new one."""
    dry_run: Switch = False
    """Print the layers, frozen and trained, with their parameters, and end."""
    list_backbones: Switch = False
    """Print a table of all backbones with size, published accuracy and speed here, and end; also: --backbone list."""
    find_lr: Switch = False
    """Run a learning rate range test of each phase, plot it and suggest learning rates, and end."""

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value]
        if len(given) > 1:
            raise ConfigError(f"received {' and '.join(given)}, expected at most one of them. Give one at a time")


PARSER = RunParser("train", __doc__, Options(), preset="demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, then train -> the exit code."""
    options, config = PARSER.parse(arguments)
    # imported after the flags are parsed, so that --help and a bad flag answer at once
    if options.list_backbones:
        with show_loading():
            from pharmclf.models.backbone_table import format_backbones

        print_result("\n".join(format_backbones(config)))
        return EXIT_OK
    if options.dry_run:
        with show_loading():
            from pharmclf.dry_run import dry_run

        return dry_run(config, print_line)
    if options.find_lr:
        with show_loading():
            from pharmclf.find_rate import find_learning_rates

        return find_learning_rates(config, print_line)
    with show_loading():
        from pharmclf.pipeline import run

    return run(config, print_line, overwrite=options.overwrite)
