"""Checks of settings that cannot work or have little effect, before an image is read; pure."""

from __future__ import annotations

from pharmclf.config import BackboneName, RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.models.backbone_split import check_depth
from pharmclf.training.phases import build_phases

BLOCKS: dict[BackboneName, int] = {
    "efficientnet_lite0": 16, "efficientnet_lite1": 21, "efficientnet_lite2": 21, "resnet50": 17, "resnet101": 34,
    "resnet50v2": 17, "vgg16": 5, "mobilenet_v2": 17, "mobilenet_v3_small": 13, "mobilenet_v3_large": 15,
    "efficientnet_b0": 16, "efficientnet_v2_b0": 21, "efficientnet_v2_s": 40, "efficientnet_v2_m": 57,
    "densenet121": 62, "inception_v3": 13, "xception": 13, "convnext_tiny": 18, "convnext_small": 36,
    "convnext_base": 36,
}  # fmt: skip
"""Number of blocks of each backbone; checked again on the built network when its phase begins."""
MIN_SIDES: dict[BackboneName, int] = {"inception_v3": 75}
"""Minimum image size of backbones that have one."""


def check_feasible(config: RunConfig) -> list[str]:
    """Check whether a run is possible with its settings.

    Returns:
        Warnings: settings with little effect.

    Raises:
        ConfigError: more blocks than the backbone has, an image size that it cannot take, or more workers than images
            in a batch.
    """
    phases = build_phases(config)
    min_side = MIN_SIDES.get(config.backbone, 0)
    if config.image_size < min_side:
        raise ConfigError(
            f"image_size: received {config.image_size}, but {config.backbone} takes {min_side} pixels or more. "
            "Give a larger --image-size, or another --backbone"
        )
    for phase in phases:
        check_depth(config.backbone, BLOCKS[config.backbone], phase.unfreeze_blocks)
    if config.worker_range[0] > config.batch_size:
        raise ConfigError(
            f"num_workers: received {config.num_workers}, but a batch has {config.batch_size} images, and each worker "
            "needs one. Give fewer --num-workers, or a larger --batch-size"
        )
    warnings = []
    for phase in phases:
        settings = phase.settings
        if settings.learning_rate == 0:
            warnings.append(f"{phase.name}.learning_rate is 0: the phase changes no weight")
        if settings.schedule == "cosine" and settings.warmup == 1:
            warnings.append(f"{phase.name}.warmup is 1: the learning rate only rises, up to the end of the phase")
        if phase.name == "phase2" and phase.unfreeze_blocks == 0:
            warnings.append("unfreeze_blocks is 0: phase 2 trains the head alone, as phase 1 does")
    return warnings


def batch_warning(config: RunConfig, num_train: int) -> str:
    """Warning for a batch that is larger than the training split; "" if it is not."""
    if config.batch_size <= num_train:
        return ""
    return (
        f"batch_size {config.batch_size:,}: there are {num_train:,} training images, so an epoch is one step on all of "
        "them; a smaller --batch-size takes more steps"
    )
