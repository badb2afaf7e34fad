"""Finds and verifies a saved model and the files next to it, without TensorFlow."""

from __future__ import annotations

import json
import operator
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import sha256_bytes, sha256_file
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.abstention_policy import (
    DECISION_FILE,
    AbstentionPolicy,
    UnknownLimit,
    read_model_file,
    read_policy,
)
from pharmclf.evaluation.strangeness import STRANGENESS_FILE, Strangeness
from pharmclf.evaluation.verdict import Verdict
from pharmclf.training.context import MODEL_FILE, PIXELS_FILE

_LABELS, _CHECKSUMS, _FETCHED = "labels.json", "checksums.json", "metrics.json"


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A verified model: its file has the sha256 that was recorded when it was saved, if one was."""

    location: str
    """Of the `.keras` file, which maps raw 0..255 RGB to probabilities."""
    sha256: str
    """Of the file, hex."""
    labels: tuple[str, ...]
    """Class names in the order of the outputs."""
    image_size: int
    """Side of the images that are classified, pixels."""
    decision: AbstentionPolicy | None
    """Temperature and threshold; None where the model has none."""
    run_folder: str | None
    """Folder of its run; None where it was copied out of one."""
    white_level: int = MAX_VALUE
    """White level with which its images were decoded."""
    verdict: Verdict | None = None
    """What its run said of it; None where it has none."""
    locator_size: int = 0
    """Side of the images in which it looks for the product, pixels; 0: it looks at whole images."""
    strangeness: Strangeness | None = None
    """How unlike its training images an image is; None where its decision has no limit for that."""

    @property
    def input_size(self) -> int:
        """Side of square images for the whole model: its input, or, where it crops, one with pixels enough for that."""
        return max(2 * self.image_size, self.locator_size) if self.locator_size else self.image_size


def load_model_info(where: str, flag: str = "--model") -> SavedModel:
    """Find a model and verify it.

    Args:
        where: a run's folder, its `model` folder, a folder of `fetch_best`, or a `.keras` file; local or s3://.
        flag: the command-line flag that messages name.

    Raises:
        ConfigError: no model, no labels, or another sha256 than recorded.
        StorageUnavailableError: the storage does not answer.
    """
    location = storage.absolute(where).rstrip("/")
    try:
        return _resolve_model(location, flag, where)
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        raise ConfigError(f"{flag} {where}: {error}. Give a run's folder or a .keras file that can be read") from error


def _resolve_model(location: str, flag: str, where: str) -> SavedModel:
    run_folder = None
    if location.endswith(".keras"):
        model = location
    elif storage.is_file(storage.join(location, MODEL_FILE)):
        model, run_folder = storage.join(location, MODEL_FILE), location
    else:
        model = storage.join(location, "model.keras")
    if not storage.is_file(model):
        raise ConfigError(
            f"{flag} {where}: no model there. Expected the folder of a run that is complete, a folder of "
            "pharmclf fetch-best, or a .keras file"
        )
    folder, _, name = model.rpartition("/")
    if (
        run_folder is None
        and folder.endswith("/model")
        and storage.is_file(f"{folder.removesuffix('/model')}/run.json")
    ):
        run_folder = folder.removesuffix("/model")
    labels = storage.join(folder, _LABELS)
    if not storage.is_file(labels):
        raise ConfigError(f"{flag} {where}: {labels} is missing. It names the classes: put it next to the model")
    with storage.local_file(model) as path:
        sha256, (size, locator_size) = sha256_file(path), _image_sizes(path, flag, where)
    if (expected := _recorded_sha256(folder, name)) not in (None, sha256):
        raise ConfigError(f"{flag} {where}: {model} has sha256 {sha256}, expected {expected}. Fetch or train it again")
    decision, pixels = (storage.join(folder, file) for file in (DECISION_FILE, PIXELS_FILE.rpartition("/")[2]))
    policy = read_policy(decision) if storage.is_file(decision) else None
    return SavedModel(
        location=model,
        sha256=sha256,
        labels=read_model_file(labels, "a list of the model's labels", _parse_labels),
        image_size=size,
        decision=policy,
        run_folder=run_folder,
        white_level=(
            read_model_file(pixels, "a model's white level", lambda record: int(record["white_level"]))
            if storage.is_file(pixels)
            else MAX_VALUE
        ),
        verdict=_read_verdict(folder, run_folder),
        locator_size=locator_size,
        strangeness=_read_strangeness(folder, policy.unknown) if policy and policy.unknown else None,
    )


def _read_strangeness(folder: str, unknown: UnknownLimit) -> Strangeness:
    """The file that a limit of the decision is for."""
    location = storage.join(folder, STRANGENESS_FILE)
    advice = f"{DECISION_FILE} names it. Take both from the model's run again"
    try:
        content = storage.read_bytes(location)
    except FileNotFoundError as error:
        raise ConfigError(f"{location}: it is missing, and {advice}") from error
    if (sha256 := sha256_bytes(content)) != unknown.sha256:
        raise ConfigError(f"{location}: received sha256 {sha256}, expected {unknown.sha256}: {advice}")
    return Strangeness.from_bytes(content)


def _read_verdict(folder: str, run_folder: str | None) -> Verdict | None:
    """The verdict of a run, or that which was fetched with its model."""
    location = storage.join(run_folder, "result.json") if run_folder else storage.join(folder, _FETCHED)
    if not storage.is_file(location):
        return None
    return read_model_file(
        location,
        "a model's verdict",
        lambda record: Verdict.from_dict(record if run_folder else record.get("result", {})),
    )


def _parse_labels(record: Any) -> tuple[str, ...]:
    if not isinstance(record, list) or not all(isinstance(label, str) for label in record):
        raise TypeError("it is no list of texts")
    return tuple(record)


def _recorded_sha256(folder: str, name: str) -> str | None:
    """The sha256 that was recorded when a model file was saved or fetched."""
    sources = [(_CHECKSUMS, name), *([(_FETCHED, "sha256")] if name == "model.keras" else [])]
    for file, key in sources:
        if storage.is_file(location := storage.join(folder, file)):
            sha256: str | None = read_model_file(location, "the model's sha256", operator.methodcaller("get", key))
            return sha256
    return None


def _image_sizes(path: Path, flag: str, where: str) -> tuple[int, int]:
    """`image_size` and `locator_size` in the configuration of a model file."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
        inner = {layer["name"]: layer["config"] for layer in config["layers"] if "layers" in layer["config"]}
        if {"locator", "classifier"} <= inner.keys():
            return _input_side(inner["classifier"]), _input_side(inner["locator"])
        return _input_side(config), 0
    except (zipfile.BadZipFile, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{flag} {where}: not a model of this package ({error}). Expected a .keras file with square RGB input"
        ) from error


def _input_side(config: dict[str, Any]) -> int:
    shape = config["layers"][0]["config"]["batch_shape"]
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(f"input of shape {shape}")
    return int(shape[1])
