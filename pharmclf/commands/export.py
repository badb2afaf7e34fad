"""Export a saved model for other runtimes: SavedModel, ONNX, TFLite, OpenVINO; preprocessing inside, raw pixels in.

pharmclf export --model runs/NAME --out DIR --format onnx                    one format
pharmclf export --model runs/NAME --out s3://… --format savedmodel onnx      several, into a bucket
pharmclf export --model runs/NAME --out DIR --format tflite --tflite int8    for phones and integer hardware
pharmclf export --model model.keras --out DIR --format onnx --images DIR     a model without its run

Each format is run in its own runtime on up to 256 real images and compared with the Keras model. It is refused (exit
code 1; the other formats are written) where a probability differs by more than 0.0001 (float32) or 0.05 (float16), or
where fewer than 99 % (float16) or 98 % (int8) of the images get the same class. int8 gets a threshold of its
own, chosen with it on the run's validation images, and is refused where that promises less; --accept-loss keeps it.
Written are the models, labels.json, decision.json if the model has one (decision-tflite.json for int8 with other
formats), load_image.py, and export.json: inputs, outputs, sha256 of every file, what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from pharmclf.commands.parser import OptionsParser
from pharmclf.core.console import print_line, print_result, show_loading
from pharmclf.core.signals import exit_on_sigterm
from pharmclf.export.options import ExportOptions

PARSER = OptionsParser("export", __doc__, ExportOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, then export -> the exit code."""
    exit_on_sigterm()  # what is half written is deleted
    options = PARSER.parse(arguments)
    with show_loading():  # after the flags are parsed, so that --help answers at once
        from pharmclf.export.export_model import export_model

    export_model(options, print_line)
    print_result(f"exported: {', '.join(dict.fromkeys(options.format))} into {options.out}")
    return 0
