"""Plain Keras does the same job as a run: what is trained, on which values, and tested on which images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf.benchmark.vs_keras import link_splits
from pharmclf.config import AugmentConfig, DemoConfig, HeadConfig, PhaseConfig, RunConfig, StoppingConfig
from pharmclf.data.manifest import Manifest

pytestmark = pytest.mark.tf
CONFIG = RunConfig(
    image_size=32,
    batch_size=8,
    weights="none",
    unfreeze_blocks=2,
    head=HeadConfig(dense=(16,), dropout=0.2),
    augment=AugmentConfig(vertical_flip=True, views=2),
    phase1=PhaseConfig(epochs=1, learning_rate=1e-3),
    phase2=PhaseConfig(epochs=1, learning_rate=1e-3, schedule="cosine"),
    stopping=StoppingConfig(early_patience=0),
)


@pytest.fixture(scope="module")
def folders(drawn_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    link_splits(drawn_manifest, folder)
    return folder


def test_each_phase_trains_the_same_number_of_parameters_as_a_run():
    from pharmclf.benchmark.keras_baseline import build_baseline, compile_phase
    from pharmclf.benchmark.timed_step import build_synthetic_step
    from pharmclf.training.phases import build_phases

    plain = build_baseline(CONFIG, 10)
    counts = []
    for phase in build_phases(CONFIG):
        compile_phase(plain, CONFIG, phase, 10)
        ours = build_synthetic_step(CONFIG, phase, "float32").model.trained
        mine = [tuple(variable.shape) for variable in plain.trainable_variables]
        assert sorted(mine) == sorted(tuple(variable.shape) for variable in ours)
        counts.append(sum(int(np.prod(shape)) for shape in mine))
    assert counts[1] > counts[0] > 0


@pytest.mark.parametrize("cached", [False, True])
def test_it_reads_the_splits_whole_and_in_the_same_range_as_a_run(
    folders: Path, drawn_manifest: Manifest, cached: bool
):
    from pharmclf.benchmark.keras_baseline import datasets

    data = datasets(dataclasses.replace(CONFIG, augment=AugmentConfig()), folders, cached=cached)
    for split in ("train", "validation", "test"):
        batches = [images.numpy() for images, _ in data[split]]
        assert sum(map(len, batches)) == len(drawn_manifest.rows(split))
        values = np.concatenate(batches)
        assert values.shape[1:] == (32, 32, 3)
        assert 0 <= values.min() < 60
        assert 190 < values.max() <= 255
    still = datasets(dataclasses.replace(CONFIG, augment=_STILL), folders, cached=cached)
    labels = {int(np.argmax(target)) for _, targets in still["train"] for target in targets.numpy()}
    assert labels == set(range(10))


_STILL = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)


def test_normalisation_stays_in_inference_mode_while_its_layers_are_trained(folders: Path):
    from pharmclf.benchmark.keras_baseline import build_baseline, datasets, predict_baseline, train_baseline

    model = build_baseline(CONFIG, 10)
    moving = {v.path: v.numpy() for v in model.backbone.variables if "moving" in v.path}
    before = [v.numpy() for v in model.backbone.variables]
    data = datasets(CONFIG, folders, cached=True)
    phases = train_baseline(model, CONFIG, data, np.full(10, 4))
    assert [phase.epochs for phase in phases.values()] == [1, 1]
    assert moving
    assert all(np.array_equal(v.numpy(), moving[v.path]) for v in model.backbone.variables if v.path in moving)
    assert any(not np.array_equal(v.numpy(), old) for v, old in zip(model.backbone.variables, before, strict=True))
    hits = predict_baseline(model, data, folders)
    assert sorted(hits) == sorted(int(path.stem) for path in (folders / "test").glob("*/*"))


@pytest.mark.ray
@pytest.mark.slow
def test_both_sides_are_measured_and_tested_on_the_same_images(tmp_path: Path):
    from pharmclf.benchmark.measure import MeasureOptions
    from pharmclf.benchmark.vs_keras import benchmark_vs_keras

    config = dataclasses.replace(CONFIG, storage=str(tmp_path), demo=DemoConfig(images_per_class=8),
                                 feature_cache="always")  # fmt: skip
    lines: list[str] = []
    report: dict[str, Any] = benchmark_vs_keras(config, MeasureOptions(sides=("plain",), seconds=0.5), lines.append)
    plain, ours = report["sides"]["plain"], report["sides"]["ours"]
    assert set(plain["phases"]) == set(ours["phases"]) == {"phase1", "phase2"}
    for side in (plain, ours):
        assert sum(side["parts_s"].values()) == pytest.approx(side["whole_s"], rel=0.05)
        assert side["interval"][0] <= side["test_accuracy"] <= side["interval"][1]
        assert side["input_per_s"] > 0
    assert set(ours["kept_per_s"]) == {"phase1", "phase2"}
    assert ours["parts_s"]["activations"] > 0
