"""Which activations are the same: the parts of the key, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.hashing import fingerprint
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import MAX_VALUE

SPLITS = ("train", "validation")
"""What is kept, in this order. The test split is not: the final model is tested from images, and nothing else may."""
_VERSION = 1  # of the shards' format, and of how images become tensors


def key_parts(config: RunConfig, manifest: Manifest, depth: int, weights: str, precision: str) -> dict[str, Any]:
    """Everything that decides the activations at a cut, as plain values.

    Args:
        config: the run.
        manifest: with splits; of it the contents of the images, their row numbers and their splits count.
        depth: blocks of the backbone behind the cut.
        weights: "imagenet", "none", or the sha256 of a file of weights.
        precision: that the prefix computes in: float32, mixed_float16 or mixed_bfloat16.
    """
    sums = manifest.table["sha256"].to_numpy()
    rows = {split: manifest.rows(split) for split in SPLITS}
    augment = dataclasses.asdict(config.augment) | {"views": config.views}
    parts = {
        "version": _VERSION,
        "images": fingerprint([[rows[split].tolist(), sums[rows[split]].tolist()] for split in SPLITS]),
        "image_size": config.image_size,
        "backbone": config.backbone,
        "weights": weights,
        "cut": depth,
        "dtype": config.activations_dtype,
        "precision": precision,
        # a picture that no transform moves is the same for every seed
        "augment": augment if config.augment.is_enabled else None,
        "seed": config.seed if config.augment.is_enabled else None,
    }
    return parts if manifest.white_level == MAX_VALUE else parts | {"white_level": manifest.white_level}


def cache_location(storage_location: str, parts: dict[str, Any]) -> str:
    """Folder of the activations with these parts."""
    return storage.join(cache_root(storage_location), fingerprint(parts))


def cache_root(storage_location: str) -> str:
    """Folder of all activations in a storage."""
    return storage.join(storage.absolute(storage_location), "activations")
