"""What each format needs, and what an export may be asked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pharmclf.config import ConfigError
from pharmclf.export.formats import check_installed
from pharmclf.export.options import ExportOptions


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    """Only what the asked formats need: a SavedModel needs nothing more."""
    for module in ("tf2onnx", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    check_installed(["savedmodel"])
    with pytest.raises(ConfigError, match=r"--format: tf2onnx not installed.*pip install 'pharmclf\[export\]'"):
        check_installed(["savedmodel", "onnx"])
    with pytest.raises(ConfigError, match="tf2onnx, ai_edge_litert not installed"):
        check_installed(["onnx", "tflite"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": ()}, "--format: received nothing"),
        ({"format": ("onnx",), "tflite": "int8"}, "--tflite: received int8 without tflite"),
        ({"format": ("tflite",), "calibration": "images"}, "only --tflite int8 is calibrated"),
    ],
)
def test_options_that_say_nothing_together_are_refused(settings: dict[str, Any], words: str):
    """No format; a precision or a calibration that nothing is written with."""
    with pytest.raises(ConfigError, match=words):
        ExportOptions(model="model.keras", out="out", **settings)
