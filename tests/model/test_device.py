"""Devices are prepared before TensorFlow computes: behind that it changes none, with GPUs and without."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = "import tensorflow as tf; from pharmclf.model.device import prepare_device; "
COMPUTE = "tf.zeros(1).numpy(); "
PREPARE = "prepare_device(deterministic=False, gpus=%s); "


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=300)


@pytest.mark.tf
def test_a_process_that_has_computed_cannot_be_prepared_any_more():
    ended = run(COMPUTE + PREPARE % True)
    assert ended.returncode == 1
    assert "cannot be modified after being initialized" in ended.stderr


@pytest.mark.tf
def test_the_first_who_asks_decides_for_the_process():
    ended = run(PREPARE % True + COMPUTE + PREPARE % False + COMPUTE)
    assert ended.returncode == 0, ended.stderr
