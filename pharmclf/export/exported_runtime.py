"""Runs an exported model as others will: in its own runtime, in a process that has neither Keras nor this package.

python exported_runtime.py savedmodel|onnx|tflite|openvino MODEL FOLDER

FOLDER holds images.npy, (n, S, S, 3) uint8. Written into it are probabilities.npy, (n, classes) float32, and where the
model gives it strangeness.npy, (n,) float32; and about.json: the input and the outputs as the runtime sees them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CORES = "PHARMCLF_EXPORT_CORES"
"""Variable with the cores that this process may use; without it one."""
OPENVINO_FILE = "model.xml"
"""In the folder of an OpenVINO model, with the weights in model.bin."""
_ABSENT = ("keras", "tf_keras", "pharmclf", "openvino_telemetry")
Predict = Callable[[np.ndarray], dict[str, np.ndarray]]
_BATCH = 32


def _tensor(name: str, shape: Any, dtype: str) -> dict[str, Any]:
    return {"name": name, "shape": [size if isinstance(size, int) else None for size in shape], "dtype": dtype}


def savedmodel(path: str) -> tuple[Predict, list[dict[str, Any]], int]:
    """By TensorFlow, through the signature that servers use."""
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    [(name, pixels)] = serve.structured_input_signature[1].items()
    tensors = [(name, pixels), *serve.structured_outputs.items()]
    about = [_tensor(name, tensor.shape.as_list(), tensor.dtype.name) for name, tensor in tensors]

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        return {output: value.numpy() for output, value in serve(**{name: tf.constant(images)}).items()}

    return predict, about, _BATCH


def onnx(path: str) -> tuple[Predict, list[dict[str, Any]], int]:
    """By onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [pixels], outputs = session.get_inputs(), session.get_outputs()
    dtypes = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    about = [_tensor(tensor.name, tensor.shape, dtypes[tensor.type]) for tensor in (pixels, *outputs)]
    names = [output.name for output in outputs]
    return lambda images: dict(zip(names, session.run(names, {pixels.name: images}), strict=True)), about, _BATCH


def tflite(path: str) -> tuple[Predict, list[dict[str, Any]], int]:
    """By LiteRT's interpreter, image by image."""
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(model_path=path, num_threads=int(os.environ.get(CORES, "1"))).get_signature_runner()
    [(name, pixels)] = serve.get_input_details().items()
    tensors = [(name, pixels), *sorted(serve.get_output_details().items())]
    about = [_tensor(n, details["shape"].tolist(), np.dtype(details["dtype"]).name) for n, details in tensors]
    return lambda images: serve(**{name: images}), about, 1


def openvino(path: str) -> tuple[Predict, list[dict[str, Any]], int]:
    """By OpenVINO, on the CPU, in float32: by itself it takes bfloat16 where the processor has it."""
    import openvino as runtime

    core = runtime.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": os.environ.get(CORES, "1")}
    serve = core.compile_model(core.read_model(f"{path}/{OPENVINO_FILE}"), "CPU", settings)
    outputs = sorted(serve.outputs, key=lambda output: output.any_name)
    about = []
    for tensor in (serve.input(), *outputs):
        sizes = [None if size.is_dynamic else size.get_length() for size in tensor.partial_shape]
        about.append(_tensor(tensor.any_name, sizes, np.dtype(tensor.element_type.to_dtype()).name))

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        found = serve(images)
        return {output.any_name: found[output] for output in outputs}

    return predict, about, _BATCH


def main(name: str, model: str, folder: Path) -> None:
    """Predict all images: the first alone, then batch by batch, as a model for any batch must stand."""
    for module in _ABSENT:  # TensorFlow takes Keras in by itself where it finds it
        sys.modules[module] = None  # type: ignore[assignment]
    runtimes = {"savedmodel": savedmodel, "onnx": onnx, "tflite": tflite, "openvino": openvino}
    predict, (pixels, *outputs), batch = runtimes[name](model)
    images = np.load(folder / "images.npy")
    found = [predict(images[:1])]
    found += [predict(images[first : first + batch]) for first in range(1, len(images), batch)]
    for output in found[0]:
        np.save(folder / f"{output}.npy", np.concatenate([part[output] for part in found]))
    named = {tensor["name"]: tensor for tensor in outputs}
    about = {"input": pixels, "output": named.pop("probabilities"), **named}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
