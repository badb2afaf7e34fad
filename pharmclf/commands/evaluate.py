"""Evaluate a saved model on labelled images: metrics with intervals, plots and report.html.

python jobs/evaluate.py --model runs/NAME                        on the test split of its run
python jobs/evaluate.py --model runs/NAME --data DIR             on images from another source, one folder per product
python jobs/evaluate.py --model model.keras --data s3://bucket/images --out DIR

Images that the model was trained on are found and left out; labels that it does not know, or lacks, are named.
"""

from __future__ import annotations

from pharmclf.commands.parser import parse_options
from pharmclf.core.console import print_line
from pharmclf.runs.evaluate_model import evaluate_saved_model
from pharmclf.runs.evaluation_options import EvaluationOptions


def main() -> int:
    """Parse, test."""
    options = parse_options(__doc__ or "", EvaluationOptions)
    return evaluate_saved_model(options, print_line)
