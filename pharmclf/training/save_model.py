"""Saves the trained model: the best checkpoint's weights in a `.keras` that loads without this package."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import keras

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.models.backbone_split import split_backbone
from pharmclf.models.backbones import CLASSIFIER, build_backbone, cached_backbone
from pharmclf.models.head import build_head, build_inference_model
from pharmclf.models.product_locator import build_cropping_model, build_locator
from pharmclf.training.checkpoint import Checkpoint, read_checkpoint
from pharmclf.training.context import CHECKSUMS_FILE, LABELS_FILE, MODEL_FILE, PIXELS_FILE, phase_model_file
from pharmclf.training.lr_schedule import best_phase
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training.train_state import TrainState
from pharmclf.training.train_step import load_variables


def save_final_models(
    config: RunConfig,
    folder: str,
    class_names: tuple[str, ...],
    state: TrainState,
    white_level: int = MAX_VALUE,
    *,
    crops: bool = False,
) -> None:
    """Save the best model of the run, and that of each other phase. (chief only)

    Args:
        state: of the run; only phases with a best checkpoint are saved.
        white_level: with which the images were decoded.
        crops: whether the run looked at the product in each image; the models find it by themselves.
    """
    chosen = best_phase(state.monitors)
    written = {LABELS_FILE: (json.dumps(list(class_names), indent=2) + "\n").encode()}
    if white_level != MAX_VALUE:
        written[PIXELS_FILE] = (json.dumps({"white_level": white_level}) + "\n").encode()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # weights are float32 in any precision, and the file must run anywhere
    try:
        source = config.backbone, config.image_size, config.weights
        is_named = config.weights in ("imagenet", "none")  # a file may have changed; training has built the others
        backbone = cached_backbone(*source, config.weights) if is_named else build_backbone(*source)
        locator = build_locator(config.backbone, config.weights) if crops else None
        for phase in (phase for phase in build_phases(config) if phase.name in state.best):
            checkpoint = read_checkpoint(storage.join(folder, "checkpoints", state.best[phase.name]))
            # one backbone for all: each phase also trains what the phases before have trained
            model = _restore_onto(config, phase, len(class_names), checkpoint, backbone, locator)
            file = MODEL_FILE if phase.name == chosen else phase_model_file(phase.name)
            written[file] = serialize_model(model)
    finally:
        keras.config.set_dtype_policy(policy)
    for file, content in written.items():
        storage.write_bytes(storage.join(folder, file), content)
    checksums = {file.rsplit("/", 1)[-1]: sha256_bytes(content) for file, content in written.items()}
    storage.write_json(storage.join(folder, CHECKSUMS_FILE), checksums)


def restore_model(
    config: RunConfig, phase: Phase, num_classes: int, checkpoint: Checkpoint, *, crops: bool = False
) -> keras.Model:
    """The model with the weights of a checkpoint; `crops` as for `save_final_models`.

    Raises:
        CorruptedCheckpointError: a file of it is damaged.
    """
    backbone = build_backbone(config.backbone, config.image_size, config.weights)
    locator = build_locator(config.backbone, config.weights) if crops else None
    return _restore_onto(config, phase, num_classes, checkpoint, backbone, locator)


def _restore_onto(
    config: RunConfig,
    phase: Phase,
    num_classes: int,
    checkpoint: Checkpoint,
    backbone: keras.Model,
    locator: keras.Model | None,
) -> keras.Model:
    """As `restore_model`, on a backbone with its pretrained weights below what the phase has trained."""
    head = build_head(config.head, backbone.output.shape[-1], num_classes, config.seed)
    trained = [*split_backbone(backbone, phase.unfreeze_blocks).trained, *head.trainable_variables]
    load_variables({variable.path: variable for variable in trained}, checkpoint.tensors("weights"))
    if locator is None:
        return build_inference_model(backbone, head)
    return build_cropping_model(locator, build_inference_model(backbone, head, CLASSIFIER))


def serialize_model(model: keras.Model) -> bytes:
    """The content of a model's `.keras` file."""
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()
