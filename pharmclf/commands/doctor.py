"""Examine machines, storage and data before a run: a table of what is available, what is wrong, and the remedy.

pharmclf doctor                                            this machine, storage runs/
pharmclf doctor --data DIR --storage s3://BUCKET/PREFIX    what a run with these flags needs; --config FILE too
pharmclf doctor --num-workers 2                            with an all-reduce of two workers
ray job submit -- pharmclf doctor ...                      every node of the cluster, and the network between

Exit code: 0 training can start, perhaps with warnings; 1 it would fail; 2 bad flags. All files it writes are deleted.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pharmclf.commands.parser import RunParser, Switch
from pharmclf.core.console import print_result, show_loading

if TYPE_CHECKING:
    from pharmclf.diagnostics.results import Section


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the result is printed."""

    as_json: Annotated[Switch, tyro.conf.arg(name="json")] = False
    """Print JSON, for other programs."""


PARSER = RunParser("doctor", __doc__, Options(), preset="demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, examine, and print the result -> the exit code."""
    options, config = PARSER.parse(arguments)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if options.as_json else out):  # Ray prints there when a node is lost
        with show_loading():
            from pharmclf.diagnostics.results import exit_code, format_section, to_dict, verdict
            from pharmclf.diagnostics.runner import run_diagnostics

        def show(section: Section) -> None:
            if not options.as_json:
                print_result(format_section(section))

        sections = run_diagnostics(config, show)
        text = json.dumps(to_dict(sections), indent=2) if options.as_json else verdict(sections)
        print(text, file=out, flush=True)
    return exit_code(sections)
