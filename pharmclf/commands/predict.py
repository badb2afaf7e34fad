"""Predict the images of a folder, bucket or list with a saved model, into one table.

python jobs/predict.py --model runs/NAME --input DIR --output FILE.parquet
python jobs/predict.py --model best/ --input s3://bucket/prefix --output s3://bucket/FILE.csv
python jobs/predict.py --model runs/NAME --input LIST.csv --output FILE.csv       a list with a column path
ray job submit --working-dir . -- python jobs/predict.py ...                      the same on a cluster

The table has one row per image in the order of the paths, or per row of a list in the order of the list: path; label
and confidence of the answer; label_2, confidence_2, label_3, confidence_3; abstain: a person must look, since the
confidence is below the model's threshold or the image is bad; error: why an image is bad; then the other columns of the
list. Confidences are calibrated where the model has a decision.json. FILE.csv comes with FILE.csv.json, which says of
which model and images it is.
The same command resumes an interrupted job: finished parts are in FILE.parts/ and are not predicted again.
"""

from __future__ import annotations

from pharmclf.commands.parser import parse_options
from pharmclf.core.console import print_line
from pharmclf.inference.job import predict_images
from pharmclf.inference.options import PredictOptions


def main() -> int:
    """Parse, predict."""
    options = parse_options(__doc__ or "", PredictOptions)
    return predict_images(options, print_line)
