"""The folds of a run hold out every image once, and are trained, resumed and scored with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.programs import SMALL, call, signal_when

from pharmclf.config import ConfigError, PhaseConfig, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import SPLITS, key_parts
from pharmclf.runs.folds import Fold, plan_folds, train_folds
from pharmclf.runs.record import RecordState, RunRecord, result_settings, run_fingerprints
from pharmclf.tuning.options import SweepOptions
from pharmclf.tuning.sweep_start import trial_config


def test_every_image_is_held_out_once_and_no_class_is_missing_in_training(drawn_manifest: Manifest):
    folds = plan_folds(RunConfig(name="pills", folds=4), "runs/pills", drawn_manifest)
    held_out = np.concatenate([fold.manifest.rows("test") for fold in folds])
    assert sorted(held_out) == drawn_manifest.ok.index.tolist()
    assert [fold.config.name for fold in folds] == [f"pills-fold-{number}" for number in (1, 2, 3, 4)]
    for fold in folds:
        assert fold.manifest.table.loc[fold.manifest.rows("test"), "label"].value_counts().between(1, 4).all()
        for split in ("train", "validation"):
            assert set(fold.manifest.table.loc[fold.manifest.rows(split), "label"]) == set(drawn_manifest.class_names)


def test_near_duplicates_are_held_out_together(drawn_manifest: Manifest):
    """Every two images of a class are copies of each other."""
    table = drawn_manifest.table.copy()
    table["group"] = table["group"] // 2 * 2
    paired = Manifest(table, drawn_manifest.class_names, drawn_manifest.root)
    for fold in plan_folds(RunConfig(folds=2), "runs/pills", paired):
        assert (fold.manifest.ok.groupby("group")["split"].nunique() == 1).all()


def test_folds_share_a_feature_cache_with_their_run(drawn_manifest: Manifest):
    """Each image is trained on in one of them and validated on in another, so that it is cached for both."""
    shared = Manifest(drawn_manifest.table, drawn_manifest.class_names, drawn_manifest.root, in_all_splits=True)
    config = RunConfig(folds=2)
    keys = [key_parts(config, fold.manifest, 2, "none", "float32") for fold in plan_folds(config, "runs/x", shared)]
    assert keys == [key_parts(config, shared, 2, "none", "float32")] * 2
    assert all(len(shared.cached_rows(split)) == len(shared.ok) for split in SPLITS)


def test_a_manifest_keeps_that_its_features_are_shared(drawn_manifest: Manifest, tmp_path: Path):
    shared = Manifest(drawn_manifest.table, drawn_manifest.class_names, drawn_manifest.root, in_all_splits=True)
    shared.write(str(tmp_path / "manifest.parquet"))
    assert Manifest.read(str(tmp_path / "manifest.parquet")).in_all_splits
    assert shared.fingerprint == drawn_manifest.fingerprint


def test_more_folds_than_different_images_are_refused(drawn_manifest: Manifest):
    with pytest.raises(ConfigError, match="received 9, but no class has more than 8"):
        plan_folds(RunConfig(folds=9), "runs/pills", drawn_manifest)


@pytest.mark.parametrize("settings", [{"folds": 1}, {"folds": 2, "time_budget": "1h"}])
def test_folds_that_cannot_be_trained_are_refused(settings: dict[str, object]):
    with pytest.raises(ConfigError, match="folds"):
        RunConfig(**settings)


def test_a_sweep_has_no_folds():
    with pytest.raises(ConfigError, match="--folds"):
        trial_config(RunConfig(folds=2), SweepOptions())


def test_a_complete_fold_is_trained_again_only_where_the_run_trains_longer(drawn_manifest: Manifest, tmp_path: Path):
    """As after the run was given more epochs."""
    trained = []

    def train(fold: Fold, _: object) -> None:
        trained.append(fold.config.phase2.epochs)
        fingerprints = run_fingerprints(fold.config, fold.manifest)
        settings = result_settings(fold.config)
        done = RunRecord(name="", settings=settings, config={}, fingerprints=fingerprints, state=RecordState.COMPLETE)
        done.write(fold.folder)

    for epochs in (2, 2, 3):
        config = RunConfig(folds=2, phase2=PhaseConfig(epochs=epochs))
        train_folds(config, str(tmp_path), drawn_manifest, train, lambda _: None)
    assert trained == [2, 2, 3, 3]


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_with_folds_is_resumed_in_the_middle_of_one(shared_ray: None, drawn_images: str, tmp_path: Path):
    """It then has predictions of all images, one model, and one feature cache for each cut."""
    cached = ["--feature-cache=always", "--augment.views=2", "--phase1.epochs=1", "--phase2.epochs=1"]
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--num-workers=0", "--weights=none"]
    flags += [*SMALL, *cached, "--folds=2"]
    run = tmp_path / "run"
    with signal_when(lambda: any((run / "folds" / "2").glob("checkpoints/*"))):
        interrupted = call(*flags)
    assert interrupted.returncode == 130, interrupted.stdout + interrupted.stderr
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    assert not (run / "model").exists()
    first = run / "folds" / "1" / "evaluation" / "test" / "predictions.parquet"
    before = first.read_bytes()
    ended = call(*flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert first.read_bytes() == before
    held_out = pd.read_parquet(run / "evaluation" / "folds" / "predictions.parquet")
    manifest = Manifest.read(str(run / "manifest.parquet"))
    assert held_out["row"].tolist() == manifest.ok.index.tolist()
    result = json.loads((run / "result.json").read_text())
    assert result["held_out_images"] == len(held_out)
    assert result["held_out_accuracy"] == pytest.approx((held_out["label"] == held_out["predicted"]).mean())
    assert "held-out accuracy" in ended.stdout
    assert [str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("model.keras")] == ["run/model"]
    assert len(list((tmp_path / "activations").iterdir())) == 2
