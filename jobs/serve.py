"""The command serve for a folder with the code: `python jobs/serve.py --help`."""

from __future__ import annotations

from pharmclf.commands.serve import main
from pharmclf.core.program import run_job

if __name__ == "__main__":
    run_job(main)
