"""Writes a Keras model in another format, with its preprocessing inside: raw pixels in, probabilities out."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf.core.errors import single_line
from pharmclf.export.compare import ExportError
from pharmclf.export.exported_runtime import OPENVINO_FILE
from pharmclf.export.formats import INPUT, ONNX_OPSET, OUTPUT, STRANGENESS, FormatName, Precision

if TYPE_CHECKING:
    import keras


def write_model(
    model: keras.Model, name: FormatName, path: Path, precision: Precision = "float32", calibration: Any = None
) -> None:
    """Write a model.

    Args:
        model: (n, S, S, 3) float RGB in 0..255, or of any height and width where it crops -> (n, classes)
            probabilities, and perhaps (n,) strangeness.
        name: the format.
        path: of the file, or of the folder of SavedModel and OpenVINO.
        precision: of a TFLite file; of the others float32 only.
        calibration: (n, S, S, 3) uint8, images of the kind that the model was trained on; for int8.

    Raises:
        ExportError: the converter cannot do it.
    """
    try:
        if name == "savedmodel":
            _write_savedmodel(model, path, batch=None)
        elif name == "onnx":
            _write_onnx(model, path)
        elif name == "openvino":
            _write_openvino(model, path)
        else:
            _write_tflite(model, path, precision, calibration)
    except OSError:
        raise
    except Exception as error:  # converters raise nearly anything
        reason = single_line(error, 300)
        raise ExportError(f"{name}: it cannot be written: {reason}") from error


def _serving_model(model: keras.Model, batch: int | None) -> Any:
    """The function that is exported."""
    import tensorflow as tf

    pixels = tf.TensorSpec((batch, *model.inputs[0].shape[1:]), tf.uint8, name=INPUT)

    @tf.function(input_signature=[pixels], autograph=False)  # type: ignore[untyped-decorator]
    def serve(image: Any) -> dict[str, Any]:
        outputs = tf.nest.flatten(model(tf.cast(image, tf.float32), training=False))
        return dict(zip((OUTPUT, STRANGENESS), outputs, strict=False))

    return serve


def _write_savedmodel(model: keras.Model, path: Path, batch: int | None) -> None:
    import keras

    serve = _serving_model(model, batch)
    serve.get_concrete_function()
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", serve)
    archive.write_out(str(path), verbose=False)


def _write_onnx(model: keras.Model, path: Path) -> None:
    import onnx
    import tf2onnx

    serve = _serving_model(model, None)
    proto, _ = tf2onnx.convert.from_function(serve, serve.input_signature, opset=ONNX_OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # tf2onnx leaves another number there
    if model.inputs[0].shape[1] is None:
        for place, name in ((1, "height"), (2, "width")):
            proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _write_openvino(model: keras.Model, path: Path) -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports each import to its makers
    import openvino

    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        _write_savedmodel(model, Path(folder) / "model", batch=None)
        converted = openvino.Core().read_model(Path(folder) / "model")
        openvino.save_model(converted, path / OPENVINO_FILE, compress_to_fp16=False)


def _write_tflite(model: keras.Model, path: Path, precision: Precision, calibration: np.ndarray | None) -> None:
    import tensorflow as tf

    def representative() -> Iterator[list[np.ndarray]]:
        for image in calibration if calibration is not None else ():
            yield [image[None]]

    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        _write_savedmodel(model, Path(folder) / "model", batch=1)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "model"))
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision != "int8":
            path.write_bytes(converter.convert())
            return
        converter.representative_dataset = representative
        # the softmax stays float: in 256 steps no confidence above 0.996 exists, and no threshold between two steps
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=["SOFTMAX"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")  # it makes one
            debugger = tf.lite.experimental.QuantizationDebugger(
                converter=converter, debug_dataset=representative, debug_options=options
            )
            path.write_bytes(debugger.get_nondebug_quantized_model())
