"""The command fetch-best for a folder with the code: `python jobs/fetch_best.py --help`."""

from __future__ import annotations

from pharmclf.commands.fetch_best import main
from pharmclf.core.program import run_job

if __name__ == "__main__":
    run_job(main)
