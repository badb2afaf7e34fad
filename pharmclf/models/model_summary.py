"""Describes the model of a run: every layer with its parameters, frozen or trained in each phase."""

from __future__ import annotations

import math

import keras

from pharmclf.config import RunConfig
from pharmclf.core.tables import align_columns
from pharmclf.models.backbone_split import split_backbone, split_tensors
from pharmclf.models.backbones import build_backbone
from pharmclf.models.head import build_head


def describe_model(config: RunConfig, num_classes: int) -> str:
    """A table of the layers that have parameters, from the image to the classes, and their sums.

    Normalisation statistics are never trained: phases run normalisation in inference mode.

    Raises:
        ConfigError: more blocks to unfreeze than there are.
    """
    backbone = build_backbone(config.backbone, config.image_size, "none")
    head = build_head(config.head, backbone.output.shape[-1], num_classes, config.seed)
    of_backbone = split_backbone(backbone, config.unfreeze_blocks).trained
    trained = {id(variable) for variable in of_backbone}
    blocks = _blocks(backbone)
    rows = [("block", "layer", "output", "parameters", "phase 1", "phase 2")]
    for layer in [*backbone.layers, *head.layers]:
        if not layer.weights:
            continue
        count = layer.count_params()
        num_trained = sum(_size(variable) for variable in layer.weights if id(variable) in trained)
        in_head = layer not in backbone.layers
        first = "trained" if in_head else "frozen"
        second = (
            "trained" if in_head or num_trained == count else f"trained {num_trained:,}" if num_trained else "frozen"
        )
        shape = "x".join(str(side) for side in layer.output.shape[1:])
        rows.append((blocks.get(layer.name, "head"), layer.name, shape, f"{count:,}", first, second))
    head_size = sum(_size(variable) for variable in head.trainable_variables)
    suffix_size = sum(_size(variable) for variable in of_backbone)
    total = backbone.count_params() + head_size
    return "\n".join(
        [
            *align_columns(rows),
            f"{config.backbone}: {len(split_tensors(backbone)) - 1} blocks, of which phase 2 trains the upper "
            f"{config.unfreeze_blocks}; block 1 is the top one",
            f"phase 1: {head_size:,} parameters trained, {total - head_size:,} frozen",
            f"phase 2: {head_size + suffix_size:,} parameters trained, {total - head_size - suffix_size:,} frozen",
        ]
    )


def _blocks(backbone: keras.Model) -> dict[str, str]:
    """The block of each layer, counted from the top: the depth at which it is first trained."""
    blocks: dict[str, str] = {}
    for depth in range(1, len(split_tensors(backbone))):
        suffix = split_backbone(backbone, depth).suffix
        for layer in suffix.layers if suffix else []:
            blocks.setdefault(layer.name, str(depth))
    return blocks


def _size(variable: keras.Variable) -> int:
    return math.prod(variable.shape)
