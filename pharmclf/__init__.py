"""Trains and tests classifiers of pharmaceutical images.

run = pharmclf.train(data="photos", name="tablets")
model = pharmclf.load("runs/tablets")
model.predict(["a.jpg"])
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pharmclf.api import Run, Sweep, load, sweep, train
    from pharmclf.config import RunConfig
    from pharmclf.inference.model import Answer, Model

# Keras reads its backend once, when it is first imported; the user's own choice is for other programs
os.environ["KERAS_BACKEND"] = "tensorflow"

_HOMES = {
    "Answer": "pharmclf.inference.model",
    "Model": "pharmclf.inference.model",
    "Run": "pharmclf.api",
    "RunConfig": "pharmclf.config",
    "Sweep": "pharmclf.api",
    "load": "pharmclf.api",
    "sweep": "pharmclf.api",
    "train": "pharmclf.api",
}

__all__ = ["Answer", "Model", "Run", "RunConfig", "Sweep", "load", "sweep", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import pharmclf` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
