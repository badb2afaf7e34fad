"""The command predict for a folder with the code: `python jobs/predict.py --help`."""

from __future__ import annotations

from pharmclf.commands.predict import main
from pharmclf.core.program import run_job

if __name__ == "__main__":
    run_job(main)
