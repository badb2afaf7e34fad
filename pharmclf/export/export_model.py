"""Exports a saved model: each format written, tried in its own runtime on real images, and handed over or refused."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf import storage
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import sha256_file
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_count, format_size
from pharmclf.core.usual_times import LOAD_MODEL_S, WRITE_FORMAT_S
from pharmclf.evaluation.abstention_policy import DECISION_FILE, AbstentionPolicy, write_policy
from pharmclf.evaluation.saved_model import SavedModel, load_model_info
from pharmclf.export.compare import ExportError, ModelOutputs
from pharmclf.export.convert import write_model
from pharmclf.export.convertible_model import make_convertible
from pharmclf.export.formats import FORMATS, FormatName, check_installed
from pharmclf.export.options import ExportOptions
from pharmclf.export.output_dir import atomic_output_dir
from pharmclf.export.reference_images import sample_images, validation_images
from pharmclf.export.runtime_check import RuntimeCheck
from pharmclf.export.strangeness_output import add_strangeness
from pharmclf.models.devices import configure_devices
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


def export_model(options: ExportOptions, say: Say) -> None:
    """Export a model.

    Raises:
        ConfigError: no model, no images, a place that is taken, or a format whose packages are not installed.
        ExportError: a format cannot be written, cannot be run, or answers otherwise. The others are written; where
            there are none, nothing is left behind.
        OSError: the storage does not answer, or the disk is full.
    """
    names = tuple(dict.fromkeys(options.format))
    check_installed(names)
    refused: list[str] = []
    with atomic_output_dir(options.out, last=EXPORT_FILE) as folder, show_activity("reading images") as activity:
        found = load_model_info(options.model)
        if found.verdict and found.verdict.warning:
            say(found.verdict.warning)
        images = sample_images(found, options.images, "test", "--images", say)
        calibration = validation = None
        if options.tflite == "int8":
            calibration = sample_images(found, options.calibration, "train", "--calibration", say)
            say(f"int8 is calibrated on {format_count(len(calibration), 'image')}")
            validation = validation_images(found, say) if found.decision else None
        activity.begin("loading the model", LOAD_MODEL_S)
        model = _load_keras_model(found)
        activity.begin(f"predicting {len(images):,} images with the Keras model")
        strangeness, written = found.strangeness, make_convertible(model)
        with_score = add_strangeness(written, strangeness) if strangeness else None
        reference = _outputs(model if strangeness is None else add_strangeness(model, strangeness), images)
        formats: dict[FormatName, Any] = {}
        decision = found.decision  # of the TFLite file
        for name in names:
            trial = RuntimeCheck(
                name, options.tflite if name == "tflite" else "float32", options.accept_loss, found, say
            )
            path = folder / FORMATS[name].file
            try:
                activity.begin(f"writing {name} {trial.precision}", WRITE_FORMAT_S)
                with suppress_native_stderr():
                    # 256 steps are too few for distances
                    graph = written if with_score is None or trial.precision == "int8" else with_score
                    write_model(graph, name, path, trial.precision, calibration)
                activity.begin(f"verifying {name} in {FORMATS[name].runtime}", LOAD_MODEL_S)
                comparison, about, fitted = trial.run(path, images, reference, validation)
            except ExportError as error:
                storage.delete_folder(str(path))
                storage.delete_file(str(path))
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


def _outputs(model: keras.Model, images: np.ndarray) -> ModelOutputs:
    """What the Keras model gives."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])  # type: ignore[untyped-decorator]
    def predict(pixels: Any) -> Any:
        return tf.nest.flatten(model(pixels, training=False))

    batches = (images[first : first + _BATCH].astype(np.float32) for first in range(0, len(images), _BATCH))
    found = [[part.numpy() for part in predict(batch)] for batch in batches]
    return ModelOutputs(*(np.concatenate(part) for part in zip(*found, strict=True)))


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
