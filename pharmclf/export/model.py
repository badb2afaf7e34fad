"""Exports a saved model: written, tried in its own runtime on real images, and handed over whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf import storage
from pharmclf.cli import Say
from pharmclf.config import ConfigError
from pharmclf.evaluation.decision import DECISION_FILE, write_decision
from pharmclf.evaluation.saved import SavedModel, find_model
from pharmclf.export import reload
from pharmclf.export.compare import Comparison, ExportRefused, check, compare
from pharmclf.export.convert import write_model
from pharmclf.export.formats import (
    FORMATS,
    ONNX_OPSET,
    TOLERANCES,
    FormatName,
    Precision,
    check_installed,
)
from pharmclf.export.images import sample_images
from pharmclf.export.portable import portable
from pharmclf.export.target import whole_folder
from pharmclf.fingerprint import sha256_file
from pharmclf.hardware.cores import usable_cores
from pharmclf.model.device import prepare_device
from pharmclf.quiet import native_chatter_muted

if TYPE_CHECKING:
    import keras

EXPORT_FILE = "export.json"
"""What was exported, and how near it is to the Keras model; written last."""
SCHEMA_VERSION = 1
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and where it goes."""

    model: str
    """A run's folder, its model folder, a folder of fetch_best.py, or a .keras file; local or s3://."""
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

    def __post_init__(self) -> None:
        if not self.format:
            raise ConfigError(f"--format: received nothing, expected one or more of {', '.join(FORMATS)}")
        if self.tflite != "float32" and "tflite" not in self.format:
            raise ConfigError(f"--tflite: received {self.tflite} without tflite. Add it: --format … tflite")
        if self.calibration and self.tflite != "int8":
            raise ConfigError(f"--calibration: received {self.calibration!r}; only --tflite int8 is calibrated")


def export_model(options: ExportOptions, say: Say) -> None:
    """Export a model.

    Args:
        options: what, and where to.
        say: takes lines for the console.

    Raises:
        ConfigError: no model, no images, a place that is taken, or a format whose packages are not installed.
        ExportRefused: a format cannot be written, cannot be run, or answers otherwise; then nothing is left behind.
        OSError: the storage does not answer, or the disk is full.
    """
    names = tuple(dict.fromkeys(options.format))
    check_installed(names)
    with whole_folder(options.out, last=EXPORT_FILE) as folder:
        found = find_model(options.model)
        images = sample_images(found, options.images, "test", "--images", say)
        calibration = None
        if options.tflite == "int8":
            calibration = sample_images(found, options.calibration, "train", "--calibration", say)
            say(f"int8 is calibrated on {len(calibration):,} images")
        model = _load(found)
        reference, written = _probabilities(model, images), portable(model)
        formats: dict[FormatName, Any] = {}
        for name in names:
            precision = options.tflite if name == "tflite" else "float32"
            path = folder / FORMATS[name].file
            with native_chatter_muted():
                write_model(written, name, path, precision, calibration)
            comparison, about = _tried(name, path, precision, images, reference, found)
            say(f"{name} {precision}, {_size_bytes(path) / 1e6:.1f} MB, in {about['runtime']}: {comparison}")
            formats[name] = about
        _describe(folder, found, formats)


def _load(found: SavedModel) -> keras.Model:
    """The Keras model, on the CPU, where every machine gives the same."""
    with native_chatter_muted(), storage.local_file(found.location) as path:
        import keras

        prepare_device(deterministic=False, gpus=False)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.output_shape[-1] != len(found.labels):
        raise ConfigError(
            f"--model {found.location}: it has {model.output_shape[-1]} outputs and {len(found.labels)} labels. "
            "Put the labels.json beside it that it was saved with"
        )
    return model


def _probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """(n, classes) float32 of the Keras model."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])
    def predict(pixels: Any) -> Any:
        return model(pixels, training=False)

    batches = (images[first : first + _BATCH].astype(np.float32) for first in range(0, len(images), _BATCH))
    return np.concatenate([predict(batch).numpy() for batch in batches])


def _tried(
    name: FormatName, path: Path, precision: Precision, images: np.ndarray, reference: np.ndarray, found: SavedModel
) -> tuple[Comparison, dict[str, Any]]:
    """Run an exported model in its own runtime, and compare.

    Raises:
        ExportRefused: it cannot be run, or is too far from the Keras model.
    """
    runtime = f"{FORMATS[name].runtime} {version(FORMATS[name].runtime)}"
    tolerance = TOLERANCES[precision]
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        np.save(Path(folder) / "images.npy", images)
        command = [sys.executable, "-P", str(reload.__file__), name, str(path), folder]
        alone = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", reload.CORES: str(usable_cores())}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportRefused(f"{name}: it cannot be run in {runtime}: {reason}")
        about = storage.read_json(f"{folder}/about.json")
        probabilities = np.load(Path(folder) / "probabilities.npy")
    try:
        comparison = compare(reference, probabilities, found.decision)
        check(comparison, tolerance)
    except ExportRefused as error:
        remedy = "; try --tflite float16" if precision == "int8" else ""
        raise ExportRefused(f"{name} {precision} in {runtime}: {error}. Nothing is written{remedy}") from error
    about |= {"precision": precision, "runtime": runtime, **({"opset": ONNX_OPSET} if name == "onnx" else {})}
    about["comparison"] = {**asdict(comparison), "equal_share": comparison.equal_share, "tolerance": asdict(tolerance)}
    return comparison, {"file": path.name, **about}


def _size_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def _describe(folder: Path, found: SavedModel, formats: dict[FormatName, Any]) -> None:
    """Write what belongs to every format: the labels, the decision, and what was exported."""
    storage.write_json(str(folder / "labels.json"), list(found.labels))
    if found.decision is not None:
        write_decision(found.decision, str(folder / DECISION_FILE))
    files = {
        str(path.relative_to(folder)): {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    packages = {"tensorflow", "keras", *(FORMATS[name].runtime for name in formats)}
    packages |= {"tf2onnx", "onnx"} if "onnx" in formats else set()
    record = {
        "schema_version": SCHEMA_VERSION,
        "model": {"location": found.location, "sha256": found.sha256, "run": found.run_folder},
        "image_size": found.image_size,
        "input": "RGB, 0-255, resized bilinearly to a square, EXIF orientation applied; scaling happens inside",
        "formats": formats,
        "files": files,
        "versions": {name: version(name) for name in sorted(packages)},
    }
    storage.write_json(str(folder / EXPORT_FILE), record)
