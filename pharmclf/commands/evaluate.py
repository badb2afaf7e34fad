"""Evaluate a saved model on labelled images: metrics with intervals, plots and report.html.

pharmclf evaluate --model runs/NAME               on the test split of its run
pharmclf evaluate --model runs/NAME --data DIR    on images from another source, one folder per product
pharmclf evaluate --model model.keras --data s3://bucket/images --out DIR

Images that the model was trained on are found and left out; labels that it does not know, or lacks, are named.
"""

from __future__ import annotations

from collections.abc import Sequence

from pharmclf.commands.parser import OptionsParser
from pharmclf.core.console import print_line, show_loading
from pharmclf.core.errors import EXIT_OK
from pharmclf.runs.evaluation_options import EvaluationOptions

PARSER = OptionsParser("evaluate", __doc__, EvaluationOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, test -> the exit code."""
    options = PARSER.parse(arguments)
    with show_loading():  # after the flags are parsed, so that --help answers at once
        from pharmclf.runs.evaluate_model import evaluate_saved_model

    evaluate_saved_model(options, print_line)
    return EXIT_OK
