"""The formats that a model is exported to: their files, what they need, how far they may be from the Keras model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pharmclf.core.errors import ConfigError

FormatName = Literal["savedmodel", "onnx", "tflite", "openvino"]
Precision = Literal["float32", "float16", "int8"]

INPUT, OUTPUT, STRANGENESS = "image", "probabilities", "strangeness"
"""The names that exported models have: (batch, S, S, 3) uint8 RGB in, (batch, classes) float32 out, and where the
decision of the model has a limit for it (batch,) float32.

Pixels are uint8 as image libraries give them, and not float: so a model that scales its pixels itself is never fed
with pixels that are scaled already. Every runtime refuses them by their type.
"""
ONNX_OPSET = 17
"""The first that has layer normalisation; onnxruntime takes it since 1.12 (2022)."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to hand a model over."""

    file: str
    """Its name in the folder of the export; SavedModel and OpenVINO are folders themselves."""
    runtime: str
    """The package that runs it, as pip knows it."""
    modules: tuple[str, ...] = ()
    """What writing it and trying it needs besides this package's dependencies."""
    any_batch: bool = True
    """Whether one call takes any number of images; otherwise one."""


FORMATS: dict[FormatName, Format] = {
    "savedmodel": Format(file="savedmodel", runtime="tensorflow"),
    "onnx": Format(file="model.onnx", runtime="onnxruntime", modules=("tf2onnx", "onnx", "onnxruntime")),
    # delegates for phones' GPUs and accelerators take fixed shapes only
    "tflite": Format(file="model.tflite", runtime="ai-edge-litert", modules=("ai_edge_litert",), any_batch=False),
    "openvino": Format(file="openvino", runtime="openvino", modules=("openvino",)),
}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an exported model may be from the Keras model on the images that both are shown."""

    difference: float
    """Of any probability, at most; 1 is no limit."""
    equal_share: float
    """Share of the images that must get the same class, 0..1."""
    strangeness: float | None
    """Of any strangeness, at most, in standard deviations of validation images; None: it is not limited."""
    close_share: float = 0.0
    """Share of the images whose probabilities differ by `CLOSE` at most, 0..1."""


CLOSE = 1e-4
"""Difference of probabilities from the same sums in another order."""
CROPPING = Tolerance(difference=0.05, equal_share=0.99, strangeness=None, close_share=0.8)
"""Of a model that crops, in float32."""
TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(difference=CLOSE, equal_share=0.0, strangeness=0.02),
    "float16": Tolerance(difference=0.05, equal_share=0.99, strangeness=0.5),  # weights of 11 bits: 0.01 was seen
    # 256 steps per tensor: confidences move, classes seldom
    "int8": Tolerance(difference=1.0, equal_share=0.98, strangeness=None),
}


def tolerance(precision: Precision, *, crops: bool) -> Tolerance:
    """How far an exported model may be from the Keras model.

    Args:
        crops: whether it looks for the product in each image. Places are rounded, so that most images get the same
            square in every runtime; in some the last digit decides between two squares, a thousandth of a side apart,
            or between a square and the whole image.
    """
    return CROPPING if crops and precision == "float32" else TOLERANCES[precision]


def check_installed(names: Iterable[FormatName]) -> None:
    """See whether the formats can be written here.

    Raises:
        ConfigError: what they need is not installed.
    """
    missing = [module for name in names for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"--format: {', '.join(missing)} not installed, expected for {', '.join(names)}. "
            "Install them: pip install 'pharmclf[export]'"
        )
