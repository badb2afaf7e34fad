"""Examine machines, storage and data before a run: a table of what is available, what is wrong, and the remedy.

python jobs/doctor.py                                              this machine, storage runs/
python jobs/doctor.py --data DIR --storage s3://BUCKET/PREFIX      what a run with these flags needs; --config FILE too
python jobs/doctor.py --num-workers 2                                  with an all-reduce of two workers
ray job submit --working-dir . -- python jobs/doctor.py ...        every node of the cluster, and the network between

Exit code: 0 training can start, perhaps with warnings; 1 it would fail; 2 bad flags. All files it writes are deleted.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pharmclf.commands.parser import Switch, parse_run
from pharmclf.config.presets import PRESETS

if TYPE_CHECKING:
    from pharmclf.diagnostics.results import Section


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the result is printed."""

    as_json: Annotated[Switch, tyro.conf.arg(name="json")] = False
    """Print JSON, for other programs."""


def main() -> int:
    """Parse the flags, examine, and print the result."""
    options, config = parse_run(__doc__ or "", PRESETS / "demo.yaml", Options())
    from pharmclf.diagnostics.results import exit_code, format_section, to_dict, verdict
    from pharmclf.diagnostics.runner import run_diagnostics

    def show(section: Section) -> None:
        if not options.as_json:
            print(format_section(section), flush=True)

    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if options.as_json else out):  # Ray prints there when a node is lost
        sections = run_diagnostics(config, show)
        text = json.dumps(to_dict(sections), indent=2) if options.as_json else verdict(sections)
        print(text, file=out, flush=True)
    return exit_code(sections)
