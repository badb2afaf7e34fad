"""The command benchmark for a folder with the code: `python jobs/benchmark.py --help`."""

from __future__ import annotations

from pharmclf.commands.benchmark import main
from pharmclf.core.program import run_job

if __name__ == "__main__":
    run_job(main)
