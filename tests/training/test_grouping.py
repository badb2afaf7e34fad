"""Which runs may train side by side: over all fields of the configuration, so that a new one cannot be forgotten."""

from __future__ import annotations

import dataclasses

import pytest
from support.config_fields import changed, leaves

from pharmclf.config import AugmentConfig, PhaseConfig, RunConfig, to_dict
from pharmclf.config.fields import select_names
from pharmclf.training.grouping import group_key

COMMON = {  # another value of each makes another group
    "data": "elsewhere", "backbone": "resnet50", "weights": "none", "seed": 1, "image_size": 96, "batch_size": 7,
    "label_level": 1, "split.ignore_folders": True, "min_images": 5, "max_invalid": "1%", "accelerator": "cpu",
    "precision": "float32", "xla": True, "deterministic": False, "feature_cache_dtype": "float32",
    "all_reduce_dtype": "bfloat16", "crop": "auto",
    "split.test": 0.3, "split.validation": 0.3, "demo.images_per_class": 10, "folds": 2,
    "labels": "corrected.csv",
    "augment.rotation_deg": 21.0, "augment.shift": 0.1, "augment.shear": 0.1, "augment.zoom": 0.1,
    "augment.horizontal_flip": False, "augment.vertical_flip": True, "augment.fill": "nearest", "augment.views": 3,
    "augment.brightness": 0.1, "augment.contrast": 0.1, "augment.color": 0.1, "augment.blur": 0.01,
    "augment.noise": 1.0, "augment.erase": 0.1,
    "head.dense": [8], "phase1.epochs": 3, "phase2.epochs": 3, "optimizer.class_weights": "auto",
}  # fmt: skip
OWN = {  # in which members of a group may differ
    "storage": "elsewhere", "name": "other", "num_workers": "2", "checkpoint_interval_s": 1.0,
    "num_checkpoints_to_keep": 5,
    "feature_cache": "always", "image_cache": "on", "max_failures": 2, "node_timeout": "1m", "step_timeout_s": 9.0,
    "allow_unauthenticated_cluster": True, "skip_checks": True, "monitor_interval_s": 0.0, "eval_data": ["x=y"],
    "unknown": ["z=y"],
    "target_error": "2%", "price_per_hour": 1.5,
    "microbatch": "3", "tensorboard": False, "mlflow": "http://127.0.0.1:1", "unfreeze_blocks": 3, "head.dropout": 0.1,
    "phase1.learning_rate": 0.1, "phase1.schedule": "cosine", "phase1.warmup": 0.3,
    "phase2.learning_rate": 0.1, "phase2.schedule": "cosine", "phase2.warmup": 0.3,
    "stopping.early_patience": 1, "stopping.plateau_patience": 1, "stopping.plateau_factor": 0.1,
    "stopping.learning_rate_floor": 0.1, "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0,
    "optimizer.label_smoothing": 0.1,
}  # fmt: skip
ALONE = {  # train on images, which are not cached, begin with heads that are not new, or have to end in time
    "phase1.image_size": "128-224", "phase2.image_size": "128-224", "init_from": "runs/other", "time_budget": "1h",
}  # fmt: skip
PHASE1 = RunConfig(augment=AugmentConfig(views=2), phase2=PhaseConfig(epochs=0))
BOTH = RunConfig(augment=AugmentConfig(views=2), unfreeze_blocks=0)


def test_every_field_of_the_configuration_is_accounted_for():
    """A new field must be put into one of the groups, and stands in no two; the code's own list is the second."""
    assert set(COMMON) | set(OWN) | set(ALONE) == leaves(to_dict(RunConfig()))
    assert not set(COMMON) & set(OWN)
    assert sorted(select_names(RunConfig, "per_head", True)) == sorted(OWN)


@pytest.mark.parametrize("path", sorted(COMMON))
def test_a_setting_that_all_share_makes_another_group(path: str):
    """Each by itself, where both phases train the head alone."""
    other = group_key(changed(BOTH, path, COMMON[path]))
    assert other is not None
    assert other != group_key(BOTH)


@pytest.mark.parametrize("path", sorted(ALONE))
def test_a_run_that_others_cannot_join_trains_alone(path: str):
    assert group_key(changed(BOTH, path, ALONE[path])) is None


@pytest.mark.parametrize("path", sorted(OWN))
def test_a_number_of_one_head_leaves_the_group(path: str):
    """Each by itself; with phase 2 left out its depth is one of them."""
    assert group_key(changed(PHASE1, path, OWN[path])) == group_key(PHASE1) is not None


def test_a_run_that_must_train_alone_has_no_group():
    """More than the head is trained, a loss scale, a new picture every epoch, or nothing may be kept."""
    alone = [
        changed(BOTH, "unfreeze_blocks", 1),
        changed(BOTH, "precision", "mixed_float16"),
        changed(BOTH, "augment.views", 0),
        changed(BOTH, "feature_cache", "never"),
    ]
    assert [group_key(config) for config in alone] == [None] * 4


def test_without_augmentation_views_of_0_are_one_that_is_kept():
    """A picture that no transform moves is the same in every epoch."""
    still = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)
    assert group_key(dataclasses.replace(BOTH, augment=still)) is not None
