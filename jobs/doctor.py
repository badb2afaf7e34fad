"""Examine machines, storage and data before a run: a table of what is there, what is wrong, and the remedy.

python jobs/doctor.py                                              this machine, storage runs/
python jobs/doctor.py --data DIR --storage s3://BUCKET/PREFIX      what a run with these flags needs; --config FILE too
python jobs/doctor.py --workers 2                                  with a real all-reduce of two workers
ray job submit --working-dir . -- python jobs/doctor.py ...        every node of the cluster, and between them
python jobs/doctor.py --json                                       for other programs

Exit code: 0 training can start, perhaps with warnings; 1 it would fail; 2 bad flags. Nothing that it writes stays.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from pharmclf.cli import parse_config, run_job, take_switch
from pharmclf.diagnostics.results import Section, exit_code, format_section, to_dict, verdict
from pharmclf.diagnostics.runner import run_diagnostics


def main() -> int:
    """Parse, build the configuration, examine, tell."""
    as_json = take_switch("--json")
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "demo.yaml")

    def show(section: Section) -> None:
        if not as_json:
            print(format_section(section), flush=True)

    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if as_json else out):  # Ray prints there when a node is lost
        sections = run_diagnostics(config, show)
        print(json.dumps(to_dict(sections), indent=2) if as_json else verdict(sections), file=out, flush=True)
    return exit_code(sections)


if __name__ == "__main__":
    run_job(main)
