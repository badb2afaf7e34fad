"""Verifies exported files: each is run in its own runtime on real images, and compared with the Keras model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import describe_exit
from pharmclf.evaluation.abstention_policy import AbstentionPolicy, fit_policy
from pharmclf.evaluation.saved_model import SavedModel
from pharmclf.export import exported_runtime
from pharmclf.export.compare import (
    Comparison,
    ExportError,
    ModelOutputs,
    check_policy,
    check_tolerance,
    compare,
)
from pharmclf.export.formats import FORMATS, ONNX_OPSET, OUTPUT, STRANGENESS, FormatName, Precision, tolerance
from pharmclf.export.reference_images import ValidationImages
from pharmclf.monitoring.cores import usable_cores


@dataclass(frozen=True)
class RuntimeCheck:
    """One format, run in its own runtime."""

    name: FormatName
    precision: Precision
    accept_loss: bool
    """Whether a format is kept that answers otherwise than the Keras model."""
    found: SavedModel
    say: Say

    def run(
        self, path: Path, images: np.ndarray, reference: ModelOutputs, validation: ValidationImages | None
    ) -> tuple[Comparison, dict[str, Any], AbstentionPolicy | None]:
        """Compare with the Keras model, and choose the threshold of int8.

        Args:
            path: of the exported model.
            images: (n, S, S, 3) uint8.
            reference: what the Keras model gives for them.
            validation: images to choose the threshold of int8 on.

        Returns:
            How near it is, what is noted of it, and its decision.

        Raises:
            ExportError: it cannot be run, or is too far from the Keras model.
        """
        own = validation if self.precision == "int8" else None
        shown = images if own is None else np.concatenate([images, own.images])
        outputs, about, runtime = predict_in_runtime(self.name, path, shown)
        decision, probabilities = self.found.decision, outputs.probabilities
        about |= {"precision": self.precision, "runtime": runtime}
        about |= {"opset": ONNX_OPSET} if self.name == "onnx" else {}
        expected = reference.probabilities.shape[1:]
        if self.precision == "int8" and decision is not None and decision.unknown:
            self.say("int8 does not say which images are unknown: 256 steps are too few for distances")
            decision = replace(decision, unknown=None)
        usable = probabilities.shape[1:] == expected and np.isfinite(probabilities).all()
        if own is not None and decision is not None and usable:
            decision = fit_policy(probabilities[len(images) :], own.truth, own.groups, decision.max_error)
        try:
            comparison = compare(reference, outputs.first(len(images)), self.found.decision, decision)
        except ExportError as error:
            raise ExportError(f"{self.name} {self.precision} in {runtime}: {error}") from error
        allowed = tolerance(self.precision, crops=bool(self.found.locator_size))
        losses = [
            *_violation(check_tolerance, comparison, allowed),
            *self._threshold_losses(decision, own),
        ]
        if losses:
            text = f"{self.name} {self.precision} in {runtime}: {'; '.join(losses)}"
            if not self.accept_loss or not usable:
                remedy = ". Try --tflite float16, or keep it with --accept-loss" if self.precision == "int8" else ""
                raise ExportError(text + remedy)
            self.say(f"warning: {text}; kept by --accept-loss")
            about["accepted_loss"] = losses
        measured = asdict(comparison) | {"equal_share": comparison.equal_share}
        about["comparison"] = measured | {"tolerance": asdict(allowed)}
        return comparison, {"file": path.name, **about}, decision

    def _threshold_losses(self, fitted: AbstentionPolicy | None, validation: ValidationImages | None) -> list[str]:
        """Say which threshold int8 has -> why it can have none, or promises less with it."""
        given = self.found.decision
        if self.precision != "int8" or given is None:
            return []
        if validation is None or fitted is None:
            return [
                f"the threshold {given.threshold:.4f} of the Keras model cannot be checked, since the model lies in no "
                "run that lists its validation images; give --model RUN"
            ]
        self.say(
            f"threshold of {self.name} int8 {fitted.threshold:.4f} at temperature {fitted.temperature:.4f}, chosen "
            f"with it on {fitted.num_validation_images:,} validation images, answers {fitted.coverage.value:.1%} "
            f"(Keras model: {given.threshold:.4f} at {given.temperature:.4f}, {given.coverage.value:.1%})"
        )
        return _violation(check_policy, given, fitted)


def _violation(check: Callable[..., None], *arguments: object) -> list[str]:
    """Why a check refuses a model; [] where it does not."""
    try:
        check(*arguments)
    except ExportError as error:
        return [str(error)]
    return []


def predict_in_runtime(name: FormatName, path: Path, images: np.ndarray) -> tuple[ModelOutputs, dict[str, Any], str]:
    """Predict images by an exported model in its own runtime -> its outputs, what they are, the runtime's name.

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
        arrays = {part.stem: np.load(part) for part in Path(folder).glob("*.npy")}
        outputs = ModelOutputs(arrays[OUTPUT], arrays.get(STRANGENESS))
        return outputs, storage.read_json(f"{folder}/about.json"), runtime
