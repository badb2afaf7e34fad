"""The key of a feature cache: what decides the values of cached features, and the folder that follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any, NotRequired, TypedDict

from pharmclf import storage
from pharmclf.config import PIXEL_CHANGES, RunConfig
from pharmclf.core.hashing import fingerprint
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import MAX_VALUE

SPLITS = ("train", "validation")
"""The splits that are cached, in this order. The final model is tested on images, so the test split is not cached."""
_VERSION = 1  # of the shards' format, and of how images become tensors


class KeyParts(TypedDict):
    """What decides the features at a cut, as values for JSON."""

    version: int
    images: str
    image_size: int
    backbone: str
    weights: str
    cut: int
    """Blocks of the backbone above the cut."""
    dtype: str
    precision: str
    augment: dict[str, Any] | None
    """The settings of the augmentation; None where it changes no pixel, since all seeds then give the same images."""
    seed: int | None
    white_level: NotRequired[int]
    crops: NotRequired[str]


def key_parts(config: RunConfig, manifest: Manifest, depth: int, weights: str, precision: str) -> KeyParts:
    """Collect what decides the features at a cut.

    Args:
        manifest: with splits; the contents of the cached images, their row numbers and their splits count.
        depth: blocks of the backbone above the cut.
        weights: "imagenet", "none", or the sha256 of a file of weights.
        precision: of the prefix: float32, mixed_float16 or mixed_bfloat16.
    """
    sums = manifest.table["sha256"].to_numpy()
    rows = {split: manifest.cached_rows(split) for split in SPLITS}
    is_augmented = config.augment.is_enabled
    parts: KeyParts = {
        "version": _VERSION,
        "images": fingerprint([[rows[split].tolist(), sums[rows[split]].tolist()] for split in SPLITS]),
        "image_size": config.image_size,
        "backbone": config.backbone,
        "weights": weights,
        "cut": depth,
        "dtype": config.feature_cache_dtype,
        "precision": precision,
        "augment": _augmentation(config) if is_augmented else None,
        "seed": config.seed if is_augmented else None,
    }
    if manifest.white_level != MAX_VALUE:
        parts["white_level"] = manifest.white_level
    if manifest.crops is not None:
        parts["crops"] = fingerprint([manifest.crops[rows[split]].tobytes().hex() for split in SPLITS])
    return parts


def _augmentation(config: RunConfig) -> dict[str, Any]:
    """The settings, without those that earlier versions did not have where they change nothing."""
    settings = dataclasses.asdict(config.augment) | {"views": config.views}
    return {name: value for name, value in settings.items() if value or name not in PIXEL_CHANGES}


def cache_location(storage_location: str, parts: KeyParts) -> str:
    """Folder of the cache with this key."""
    return storage.join(cache_root(storage_location), fingerprint(parts))


def cache_root(storage_location: str) -> str:
    """Folder of all feature caches in a storage."""
    return storage.join(storage.absolute(storage_location), "activations")
