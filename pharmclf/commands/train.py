"""Train a classifier of product images: both phases, final evaluation, report.

python jobs/train.py                                          the demo, in minutes
python jobs/train.py --data DIR --name NAME                   your own images, one folder per product
ray job submit --working-dir . -- python jobs/train.py ...    the same on a cluster

The same command again resumes the run, or reports that it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass

from pharmclf.commands.parser import Switch, parse_run
from pharmclf.config.presets import PRESETS
from pharmclf.core.console import print_line
from pharmclf.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with the run configuration."""

    overwrite: Switch = False
    """Delete the run of this name, and start a new one."""
    dry_run: Switch = False
    """Print the layers, frozen and trained, with their parameters, and end."""
    find_lr: Switch = False
    """Run a learning rate range test of each phase, plot it and suggest learning rates, and end."""

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value]
        if len(given) > 1:
            raise ConfigError(f"received {' and '.join(given)}, expected at most one of them. Give one at a time")


def main() -> int:
    """Parse the flags, then train."""
    options, config = parse_run(__doc__ or "", PRESETS / "demo.yaml", Options())
    # imported after the flags are parsed, so that --help and a bad flag answer at once
    if options.dry_run:
        from pharmclf.pipeline import dry_run

        return dry_run(config, print_line)
    if options.find_lr:
        from pharmclf.find_rate import find_learning_rates

        return find_learning_rates(config, print_line)
    from pharmclf.pipeline import run

    return run(config, print_line, overwrite=options.overwrite)
