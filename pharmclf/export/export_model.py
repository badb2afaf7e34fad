"""Exports a saved model: each format written, tried in its own runtime on real images, and handed over or refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError, describe_exit
from pharmclf.core.hashing import sha256_file
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_size
from pharmclf.evaluation.abstention_policy import DECISION_FILE, AbstentionPolicy, fit_policy, write_policy
from pharmclf.evaluation.saved_model import SavedModel, load_model_info
from pharmclf.export import exported_runtime
from pharmclf.export.compare import Comparison, ExportError, check_policy, check_tolerance, compare
from pharmclf.export.convert import write_model
from pharmclf.export.convertible_model import make_convertible
from pharmclf.export.formats import (
    FORMATS,
    ONNX_OPSET,
    TOLERANCES,
    FormatName,
    Precision,
    check_installed,
)
from pharmclf.export.output_dir import atomic_output_dir
from pharmclf.export.reference_images import ValidationImages, sample_images, validation_images
from pharmclf.models.devices import configure_devices
from pharmclf.monitoring.cores import usable_cores
from pharmclf.reporting import load_image_snippet

if TYPE_CHECKING:
    import keras

EXPORT_FILE = "export.json"
"""What was exported, and how near it is to the Keras model; written last."""
LOAD_FILE = "load_image.py"
"""The function that makes an image file the model's input."""
TFLITE_POLICY_FILE = "decision-tflite.json"
"""The decision of int8, where other formats have the Keras model's."""
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
    accept_loss: bool = False
    """Keep a format that answers otherwise than the Keras model, or promises less; what was measured is noted."""

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
        ExportError: a format cannot be written, cannot be run, or answers otherwise. The others are written; where
            there are none, nothing is left behind.
        OSError: the storage does not answer, or the disk is full.
    """
    names = tuple(dict.fromkeys(options.format))
    check_installed(names)
    refused: list[str] = []
    with atomic_output_dir(options.out, last=EXPORT_FILE) as folder:
        found = load_model_info(options.model)
        images = sample_images(found, options.images, "test", "--images", say)
        calibration = validation = None
        if options.tflite == "int8":
            calibration = sample_images(found, options.calibration, "train", "--calibration", say)
            say(f"int8 is calibrated on {len(calibration):,} images")
            validation = validation_images(found, say) if found.decision else None
        model = _load_keras_model(found)
        reference, written = _probabilities(model, images), make_convertible(model)
        formats: dict[FormatName, Any] = {}
        decision = found.decision  # of the TFLite file
        for name in names:
            trial = _RuntimeCheck(
                name, options.tflite if name == "tflite" else "float32", options.accept_loss, found, say
            )
            path = folder / FORMATS[name].file
            try:
                with suppress_native_stderr():
                    write_model(written, name, path, trial.precision, calibration)
                comparison, about, fitted = trial.run(path, images, reference, validation)
            except ExportError as error:
                (shutil.rmtree if path.is_dir() else _remove)(path)
                refused.append(str(error))
                say(f"refused: {error}")
                continue
            say(f"{name} {trial.precision}, {format_size(_size_bytes(path))}, in {about['runtime']}: {comparison}")
            decision = fitted if name == "tflite" else decision
            formats[name] = about
        if not formats:
            raise ExportError(f"{'; '.join(refused)}. Nothing is written")
        _describe(folder, found, formats, decision)
    if refused:
        raise ExportError(f"{', '.join(formats)} written into {options.out}, but not {'; '.join(refused)}")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _load_keras_model(found: SavedModel) -> keras.Model:
    """The Keras model, on the CPU, where every machine gives the same."""
    with suppress_native_stderr(), storage.local_file(found.location) as path:
        import keras

        configure_devices(deterministic=False, gpus=False)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.output_shape[-1] != len(found.labels):
        raise ConfigError(
            f"--model {found.location}: it has {model.output_shape[-1]} outputs and {len(found.labels)} labels. "
            "Put the labels.json that it was saved with next to it"
        )
    return model


def _probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """(n, classes) float32 of the Keras model."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])  # type: ignore[untyped-decorator]
    def predict(pixels: Any) -> Any:
        return model(pixels, training=False)

    batches = (images[first : first + _BATCH].astype(np.float32) for first in range(0, len(images), _BATCH))
    return np.concatenate([predict(batch).numpy() for batch in batches])


@dataclass(frozen=True)
class _RuntimeCheck:
    """One format, run in its own runtime."""

    name: FormatName
    precision: Precision
    accept_loss: bool
    """Whether a format is kept that answers otherwise than the Keras model."""
    found: SavedModel
    say: Say

    def run(
        self, path: Path, images: np.ndarray, reference: np.ndarray, validation: ValidationImages | None
    ) -> tuple[Comparison, dict[str, Any], AbstentionPolicy | None]:
        """Compare with the Keras model, and choose the threshold of int8.

        Args:
            path: of the exported model.
            images: (n, S, S, 3) uint8, and what the Keras model gives for them:
            reference: (n, classes) probabilities.
            validation: images to choose the threshold of int8 on.

        Returns:
            How near it is, what is noted of it, and its decision.

        Raises:
            ExportError: it cannot be run, or is too far from the Keras model.
        """
        own = validation if self.precision == "int8" else None
        shown = images if own is None else np.concatenate([images, own.images])
        probabilities, about, runtime = _predict_in_runtime(self.name, path, shown)
        decision, of_images = self.found.decision, probabilities[: len(images)]
        about |= {"precision": self.precision, "runtime": runtime}
        about |= {"opset": ONNX_OPSET} if self.name == "onnx" else {}
        usable = probabilities.shape[1:] == reference.shape[1:] and np.isfinite(probabilities).all()
        if own is not None and decision is not None and usable:
            decision = fit_policy(probabilities[len(images) :], own.truth, own.groups, decision.max_error)
        try:
            comparison = compare(reference, of_images, self.found.decision, decision)
        except ExportError as error:
            raise ExportError(f"{self.name} {self.precision} in {runtime}: {error}") from error
        losses = [
            str(error)
            for error in (self._tolerance_violation(comparison), self._check_threshold(decision, own))
            if error
        ]
        if losses:
            text = f"{self.name} {self.precision} in {runtime}: {'; '.join(losses)}"
            if not self.accept_loss or not usable:
                remedy = ". Try --tflite float16, or keep it with --accept-loss" if self.precision == "int8" else ""
                raise ExportError(text + remedy)
            self.say(f"warning: {text}; kept by --accept-loss")
            about["accepted_loss"] = losses
        measured = asdict(comparison) | {"equal_share": comparison.equal_share}
        about["comparison"] = measured | {"tolerance": asdict(TOLERANCES[self.precision])}
        return comparison, {"file": path.name, **about}, decision

    def _tolerance_violation(self, comparison: Comparison) -> ExportError | None:
        """Why the model is too far from the Keras model."""
        try:
            check_tolerance(comparison, TOLERANCES[self.precision])
        except ExportError as error:
            return error
        return None

    def _check_threshold(
        self, fitted: AbstentionPolicy | None, validation: ValidationImages | None
    ) -> ExportError | None:
        """Say which threshold int8 has; or why it can have none, or promises less with it."""
        given = self.found.decision
        if self.precision != "int8" or given is None:
            return None
        if validation is None or fitted is None:
            return ExportError(
                f"the threshold {given.threshold:.4f} of the Keras model cannot be checked, since the model lies in no "
                "run that lists its validation images; give --model RUN"
            )
        self.say(
            f"threshold of {self.name} int8 {fitted.threshold:.4f} at temperature {fitted.temperature:.4f}, chosen "
            f"with it on {fitted.num_validation_images:,} validation images, answers {fitted.coverage.value:.1%} "
            f"(Keras model: {given.threshold:.4f} at {given.temperature:.4f}, {given.coverage.value:.1%})"
        )
        try:
            check_policy(given, fitted)
        except ExportError as error:
            return error
        return None


def _predict_in_runtime(name: FormatName, path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, Any], str]:
    """Predict images by an exported model in its own runtime -> probabilities, input and output, the runtime's name.

    Raises:
        ExportError: it cannot be run.
    """
    runtime = f"{FORMATS[name].runtime} {version(FORMATS[name].runtime)}"
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        np.save(Path(folder) / "images.npy", images)
        command = [sys.executable, "-P", str(exported_runtime.__file__), name, str(path), folder]
        alone = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", exported_runtime.CORES: str(usable_cores())}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone, check=False)
        if done.returncode:
            raise ExportError(f"{name}: it cannot be run in {runtime}: {describe_exit(done.returncode, done.stderr)}")
        return np.load(Path(folder) / "probabilities.npy"), storage.read_json(f"{folder}/about.json"), runtime


def _size_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def _describe(folder: Path, found: SavedModel, formats: dict[FormatName, Any], tflite: AbstentionPolicy | None) -> None:
    """Write what belongs to every format: the labels, the decisions, how an image is loaded, and what was exported."""
    storage.write_json(str(folder / "labels.json"), list(found.labels))
    (folder / LOAD_FILE).write_text(
        f"import numpy as np\n{load_image_snippet.IMPORTS}\n\n\n"
        f"{load_image_snippet.load_image_text(found.white_level)}\n",
        encoding="utf-8",
    )
    if found.decision is not None:
        others = [name for name in formats if name != "tflite"]
        if tflite is not None and tflite != found.decision:  # int8 has its own
            file = TFLITE_POLICY_FILE if others else DECISION_FILE
            write_policy(tflite, str(folder / file))
            formats["tflite"]["decision"] = file
        if others or tflite == found.decision:
            write_policy(found.decision, str(folder / DECISION_FILE))
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
        "input": f"RGB, 0-255, as {LOAD_FILE} loads it; scaling happens inside",
        "white_level": found.white_level,
        "formats": formats,
        "files": files,
        "versions": {name: version(name) for name in sorted(packages)},
    }
    storage.write_json(str(folder / EXPORT_FILE), record)
