"""The command sweep for a folder with the code: `python tune/sweep.py --help`."""

from __future__ import annotations

from pharmclf.commands.sweep import main
from pharmclf.core.program import run_job

if __name__ == "__main__":
    run_job(main)
