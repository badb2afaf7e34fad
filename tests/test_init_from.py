"""A run goes on from the model of another one: its backbone, and its head for the labels that both know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pharmclf
from pharmclf.commands.registry import load_command
from pharmclf.config import ConfigError, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.label_alignment import compare_labels
from pharmclf.feature_cache.cache_key import cache_location, key_parts
from pharmclf.runs.record import resolve_weights_path

SMALL = {
    "image_size": 64, "batch_size": 10, "unfreeze_blocks": 1, "head": {"dense": []}, "num_workers": "0",
    "skip_checks": True, "quiet": True,
}  # fmt: skip
STILL = {"phase1": {"epochs": 1, "learning_rate": 1e-12}, "phase2": {"epochs": 0}}


def link_classes(images: str, folder: Path, first: int, last: int) -> Path:
    """A data set of some of the classes."""
    folder.mkdir()
    for source in sorted(Path(images).iterdir())[first:last]:
        (folder / source.name).symlink_to(source)
    return folder


@pytest.mark.ray
@pytest.mark.tf
def test_labels_that_both_know_keep_their_answers(shared_ray: None, drawn_images: str, tmp_path: Path):
    """Two products are added and one is gone; without training, the logits of the others are those of the first run.

    The features that `pharmclf prepare` caches for such a run are those that it uses: it keeps the same splits.
    """
    import keras

    old = link_classes(drawn_images, tmp_path / "old", 0, 8)
    phases = {"phase1": {"epochs": 3, "learning_rate": 3e-3}, "phase2": {"epochs": 1, "learning_rate": 1e-3}}
    first = pharmclf.train(old, name="first", storage=tmp_path, **phases, **SMALL)
    new = link_classes(drawn_images, tmp_path / "new", 1, 10)
    second = pharmclf.train(new, name="second", storage=tmp_path, init_from=first.folder, seed=1, **STILL, **SMALL)
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype(np.float32)
    answers = []
    for run in (first, second):
        model = keras.saving.load_model(run.model.info.location, compile=False)
        shared = [run.model.labels.index(label) for label in sorted(set(first.model.labels) & set(second.model.labels))]
        shares = np.asarray(model(images, training=False))[:, shared]
        answers.append(shares / shares.sum(axis=1, keepdims=True))
    assert answers[0].shape == (8, 7)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    assert np.ptp(answers[0], axis=1).min() > 0.01
    keys, flags = [], [f"--data={new}", f"--storage={tmp_path}", "--seed=1"]
    for name, more in (("second", None), ("known", [f"--init-from={first.folder}"]), ("not-known", [])):
        if more is not None:  # by pharmclf prepare
            assert load_command("prepare").main([*flags, f"--name={name}", *more]) == 0
        manifest = Manifest.read(f"{tmp_path}/{name}/manifest.parquet")
        keys.append(cache_location("", key_parts(RunConfig(), manifest, 1, "their weights", "float32")))
    assert keys[0] == keys[1] != keys[2]


def test_what_is_new_and_what_is_gone_is_said():
    assert compare_labels(list("abc"), list("bcde")) == (
        "starts from a model that knows 2 of 4 classes; new: d, e; it also knows a"
    )
    assert compare_labels(["a", "b"], ["b", "a"]) == "starts from a model that knows 2 of 2 classes"


def test_one_source_of_weights_is_enough(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"received 'none' with --init-from .* Give one of them"):
        resolve_weights_path(RunConfig(weights="none", init_from=str(tmp_path)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--init-from .*: no model there"):
        resolve_weights_path(RunConfig(init_from=str(tmp_path)))
