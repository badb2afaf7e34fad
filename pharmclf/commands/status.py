"""Where the runs and sweeps of a storage stand, read from it alone: no cluster is asked, and none need be there.

pharmclf status --storage s3://bucket/prefix         a table of all
pharmclf status --storage DIR --name NAME            all that is known of one; also SWEEP/trials/TRIAL
pharmclf status --storage DIR --name NAME --watch    updated every few seconds, until it ends
pharmclf status --storage DIR --json                 for other programs; with --watch one line each time
pharmclf status --storage DIR --html                 a page of all, index.html in the storage

An ETA with a + is the least that is left: what has not begun yet could not be measured. Times are in UTC.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pharmclf import storage
from pharmclf.commands.parser import OptionsParser, Switch
from pharmclf.core.errors import ConfigError, first_line
from pharmclf.runs.status_format import status_details, status_table
from pharmclf.runs.status_reader import RunStatus, list_status

_EVERY_S = 3.0
_PATIENCE_S = 20.0  # with a storage that does not answer; somebody waits for this one
_CLEAR = "\033[H\033[2J"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is shown, and how."""

    storage: str = "runs"
    """Folder or s3:// prefix that holds the runs."""
    name: str = ""
    """Only this one, by its path below the storage: NAME, or SWEEP/trials/TRIAL. Empty: all runs and sweeps."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """As JSON: an object with --name, otherwise a list."""
    watch: bool = False
    """Update it every few seconds, until nothing shown is active."""
    html: Switch = False
    """Write index.html into the storage: all runs and sweeps with score, verdict and size; print its address."""

    def __post_init__(self) -> None:
        others = {"--name": self.name, "--json": self.as_json, "--watch": self.watch}
        if self.html and (given := [flag for flag, value in others.items() if value]):
            raise ConfigError(
                f"--html: received {given[0]} too, expected --html alone, which shows all. Give one of them"
            )


PARSER = OptionsParser("status", __doc__, Options, shows_progress=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read, show -> the exit code."""
    options = PARSER.parse(arguments)
    if options.html:
        from pharmclf.reporting.next_steps import report_link
        from pharmclf.runs.storage_index import write_index  # imports what draws pages

        with storage.timeout(_PATIENCE_S):
            print(report_link(write_index(options.storage)))
        return 0
    found: list[RunStatus] = []
    while True:
        try:
            with storage.timeout(_PATIENCE_S):
                found = list_status(options.storage, options.name)
        except storage.StorageUnavailableError as error:
            if not found:
                raise
            print(f"{first_line(error)}; it is asked again", file=sys.stderr)
            time.sleep(_EVERY_S)
            continue
        clear = _CLEAR if options.watch and sys.stdout.isatty() else ""
        print(clear + _shown(found, options), flush=True)
        if not (options.watch and any(run.is_active for run in found)):
            return 0
        time.sleep(_EVERY_S)


def _shown(found: list[RunStatus], options: Options) -> str:
    if options.as_json:
        values = [run.to_dict() for run in found]
        return json.dumps(values[0] if options.name else values, indent=None if options.watch else 2)
    if options.name:
        return status_details(found[0], time.time())
    return status_table(found, time.time())
