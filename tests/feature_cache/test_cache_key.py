"""What makes activations others: over all fields of the configuration, so that a new one cannot be forgotten."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.config_fields import changed, leaves

from pharmclf.config import AugmentConfig, RunConfig, to_dict
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import cache_location, key_parts

KEYED = {  # another value of each changes the key
    "backbone": "resnet50", "image_size": 96, "seed": 1, "feature_cache_dtype": "float32",
    "augment.rotation_deg": 21.0, "augment.shift": 0.1, "augment.shear": 0.1, "augment.zoom": 0.1,
    "augment.horizontal_flip": False, "augment.vertical_flip": True, "augment.fill": "nearest", "augment.views": 3,
    "augment.brightness": 0.1, "augment.contrast": 0.1, "augment.color": 0.1, "augment.blur": 0.01,
    "augment.noise": 1.0, "augment.erase": 0.1,
}  # fmt: skip
RESOLVED = {"weights", "init_from", "precision", "unfreeze_blocks"}  # are in the key as what they come to
BY_MANIFEST = {  # change its rows
    "data", "label_level", "max_invalid", "min_images", "split.ignore_folders", "split.test", "split.validation",
    "demo.images_per_class", "crop", "folds", "labels",
}  # fmt: skip
FREE = {  # what comes behind the frozen part, and where and how the run goes on
    "storage": "elsewhere", "name": "other", "num_workers": "2", "batch_size": 7, "xla": True, "deterministic": False,
    "all_reduce_dtype": "bfloat16", "image_cache": "on",
    "checkpoint_interval_s": 1.0, "num_checkpoints_to_keep": 5, "feature_cache": "never", "max_failures": 2,
    "accelerator": "cpu", "node_timeout": "1m", "step_timeout_s": 9.0,
    "allow_unauthenticated_cluster": True, "skip_checks": True, "monitor_interval_s": 0.0, "eval_data": ["x=y"],
    "unknown": ["z=y"],
    "target_error": "2%", "time_budget": "1h", "price_per_hour": 1.5,
    "microbatch": "3", "tensorboard": False, "mlflow": "http://127.0.0.1:1", "head.dense": [8], "head.dropout": 0.1,
    "phase1.image_size": "128-224", "phase2.image_size": "128-224",
    "phase1.epochs": 3, "phase1.learning_rate": 0.1, "phase1.schedule": "cosine", "phase1.warmup": 0.3,
    "phase2.epochs": 3, "phase2.learning_rate": 0.1, "phase2.schedule": "cosine", "phase2.warmup": 0.3,
    "stopping.early_patience": 1, "stopping.plateau_patience": 1, "stopping.plateau_factor": 0.1,
    "stopping.learning_rate_floor": 0.1, "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0,
    "optimizer.label_smoothing": 0.1, "optimizer.class_weights": "auto",
}  # fmt: skip
BASE = RunConfig(augment=AugmentConfig(views=2))


def key(config: RunConfig, manifest: Manifest, depth: int = 2, weights: str = "imagenet", precision: str = "float32"):
    return cache_location("/storage", key_parts(config, manifest, depth, weights, precision))


def test_every_field_of_the_configuration_is_accounted_for():
    """A new field must be put into one of the four groups, and stands in no two."""
    groups = [set(KEYED), RESOLVED, BY_MANIFEST, set(FREE)]
    assert set().union(*groups) == leaves(to_dict(RunConfig()))
    assert sum(map(len, groups)) == len(set().union(*groups))


@pytest.mark.parametrize("path", sorted(KEYED))
def test_a_field_that_decides_the_activations_changes_the_key(path: str, drawn_manifest: Manifest):
    """Each by itself."""
    assert key(changed(BASE, path, KEYED[path]), drawn_manifest) != key(BASE, drawn_manifest)


@pytest.mark.parametrize("path", sorted(FREE))
def test_a_field_behind_the_frozen_part_leaves_the_key(path: str, drawn_manifest: Manifest):
    """So that trials of a sweep, which differ in nothing else, share the activations."""
    assert key(changed(BASE, path, FREE[path]), drawn_manifest) == key(BASE, drawn_manifest)


def test_cut_weights_and_precision_change_the_key(drawn_manifest: Manifest):
    """The three that are resolved outside the configuration."""
    keys = {
        key(BASE, drawn_manifest),
        key(BASE, drawn_manifest, depth=3),
        key(BASE, drawn_manifest, weights="0" * 64),
        key(BASE, drawn_manifest, precision="mixed_float16"),
    }
    assert len(keys) == 4


def test_what_is_seen_of_an_image_changes_the_key(drawn_manifest: Manifest):
    """Whole images, products, and other products."""
    rows = len(drawn_manifest.table)
    crops = [None, *(np.full((rows, 3), side, np.float32) for side in (0.25, 0.5))]
    assert len({key(BASE, dataclasses.replace(drawn_manifest, crops=each)) for each in crops}) == 3


def test_the_bytes_of_one_image_change_the_key(drawn_manifest: Manifest):
    """And so do a row that moves into another split, and one that is quarantined."""
    row = int(drawn_manifest.rows("train")[0])
    keys = {key(BASE, drawn_manifest)}
    for column, value in (("sha256", "0" * 64), ("split", "validation"), ("status", "cannot be read")):
        table = drawn_manifest.table.copy()
        table.loc[row, column] = value
        keys.add(key(BASE, dataclasses.replace(drawn_manifest, table=table)))
    assert len(keys) == 4


def test_a_folder_that_moved_keeps_its_activations(drawn_manifest: Manifest):
    """Paths and labels are not what an image is; the test split is not kept, and counts for nothing."""
    table = drawn_manifest.table.copy()
    table["path"] = "/elsewhere" + table["path"]
    table["label"] = "other"
    table.loc[drawn_manifest.rows("test"), "sha256"] = "0" * 64
    assert key(BASE, dataclasses.replace(drawn_manifest, table=table)) == key(BASE, drawn_manifest)


def test_without_augmentation_all_seeds_and_views_are_one(drawn_manifest: Manifest):
    """A picture that no transform moves is computed once, whatever the seed."""
    still = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)
    one = dataclasses.replace(BASE, augment=still)
    other = dataclasses.replace(one, seed=5, augment=dataclasses.replace(still, views=4))
    assert one.views == other.views == 1
    assert key(one, drawn_manifest) == key(other, drawn_manifest)
