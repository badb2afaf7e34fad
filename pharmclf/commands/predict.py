"""Predict the images of a folder, bucket or list with a saved model, into one table.

pharmclf predict --model runs/NAME --input DIR --output FILE.parquet
pharmclf predict --model best/ --input s3://bucket/prefix --output s3://bucket/FILE.csv
pharmclf predict --model runs/NAME --input LIST.csv --output FILE.csv    a list with a column path
ray job submit -- pharmclf predict ...                                   the same on a cluster

The table has one row per image in the order of the paths, or per row of a list in the order of the list: path; label
and confidence of the answer; label_2, confidence_2, label_3, confidence_3; abstain: a person must look, since the
confidence is below the model's threshold or the image is bad; error: why an image is bad; then the other columns of the
list. Confidences are calibrated where the model has a decision.json. FILE.csv comes with FILE.csv.json, which says of
which model and images it is.
The same command resumes an interrupted job: finished parts are in FILE.parts/ and are not predicted again.
"""

from __future__ import annotations

from collections.abc import Sequence

from pharmclf.commands.parser import OptionsParser
from pharmclf.core.console import print_line, show_loading
from pharmclf.inference.options import PredictOptions

PARSER = OptionsParser("predict", __doc__, PredictOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, predict -> the exit code."""
    options = PARSER.parse(arguments)
    with show_loading():  # after the flags are parsed, so that --help answers at once
        from pharmclf.inference.job import predict_images

    return predict_images(options, print_line)
