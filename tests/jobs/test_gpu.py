"""Runs on GPUs: on a Ray that counts some where there are none, and on a real one where there is one."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from support import programs
from support.programs import SMALL

FAST = [*SMALL, "--phase1.epochs=1", "--phase2.epochs=1", "--augment.views=2", "--feature-cache=always"]
finish = partial(programs.finish, timeout=800)
real = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU here")


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_reserves_the_gpus_that_ray_counts_and_goes_to_its_end(drawn_images: str, tmp_path: Path):
    """Ray's own checks of what holds a GPU need no GPU; TensorFlow computes on the processors."""
    counted = json.dumps({"CPU": os.cpu_count(), "GPU": 1})
    ended = finish(
        f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--skip-checks", *FAST,
        RAY_OVERRIDE_RESOURCES=counted,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["activations"] == ["phase1", "phase2"]
    assert "test_accuracy" in json.loads((tmp_path / "run" / "result.json").read_text())


@real
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_trains_on_the_gpu(drawn_images: str, tmp_path: Path, workers: str):
    ended = finish(f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", f"--num-workers={workers}", *FAST)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "hardware: 1 GPU" in ended.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"].startswith("mixed_")


@real
@pytest.mark.slow
def test_a_batch_beyond_the_memory_of_the_gpu_is_computed_in_micro_batches(drawn_images: str, tmp_path: Path):
    ended = finish(
        f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--microbatch=auto",
        *FAST, "--image-size=128", "--batch-size=64",
        PHARMCLF_DEVICE_MEMORY_MB="700",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "micro-batches of" in ended.stdout


@real
@pytest.mark.slow
def test_the_doctor_and_the_benchmark_find_the_gpu(tmp_path: Path):
    examined = finish(f"--storage={tmp_path}", program="jobs/doctor.py")
    assert examined.returncode == 0, examined.stdout
    assert "on the GPU" in examined.stdout
    measured = finish("devices", "--quick", f"--storage={tmp_path}", program="jobs/benchmark.py")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    rows = json.loads((tmp_path / "benchmark-devices.json").read_text())["rows"]
    assert any(row["gpu"] == 0 and row["ratio"] and row["ratio"] > 1 for row in rows)
