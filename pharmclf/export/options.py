"""Options of an export. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pharmclf.core.errors import ConfigError
from pharmclf.export.formats import FORMATS, FormatName, Precision


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and where it goes."""

    model: str
    """A run's folder, its model folder, a folder of `pharmclf fetch-best`, or a .keras file; local or s3://."""
    out: str
    """Folder or s3:// prefix for all formats; it must not be there yet, or be empty."""
    format: tuple[FormatName, ...]
    """One or more."""
    tflite: Precision = "float32"
    """Numbers of the TFLite file: float16 halves it and keeps the answers; int8 quarters it, for integer hardware."""
    images: str = ""
    """Folder of images, or a list, to compare on. Empty: the test split of the run."""
    calibration: str = ""
    """Folder of images, or a list, to find the ranges of int8 on. Empty: the train split of the run."""
    accept_loss: bool = False
    """Keep a format that answers otherwise than the Keras model, or promises less; what was measured is noted."""

    def __post_init__(self) -> None:
        if not self.format:
            raise ConfigError(f"--format: received nothing, expected one or more of {', '.join(FORMATS)}")
        if self.tflite != "float32" and "tflite" not in self.format:
            raise ConfigError(f"--tflite: received {self.tflite} without tflite. Add it: --format … tflite")
        if self.calibration and self.tflite != "int8":
            raise ConfigError(f"--calibration: received {self.calibration!r}; only --tflite int8 is calibrated")
