"""Devices are prepared before TensorFlow computes: behind that it changes none, with GPUs and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = "import tensorflow as tf; from pharmclf.models.devices import configure_devices; "
COMPUTE = "tf.zeros(1).numpy(); "
PREPARE = "configure_devices(deterministic=False, gpus=%s); "


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | variables)


@pytest.mark.tf
def test_a_process_that_has_computed_cannot_be_prepared_any_more():
    ended = run(COMPUTE + PREPARE % True)
    assert ended.returncode == 1
    assert "cannot be modified after being initialized" in ended.stderr


@pytest.mark.tf
def test_a_process_that_only_predicts_may_have_computed_before():
    """A notebook that has used TensorFlow opens a model."""
    ended = run(COMPUTE + "configure_devices(deterministic=False, late=True); " + COMPUTE)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.tf
def test_the_first_who_asks_decides_for_the_process():
    ended = run(PREPARE % True + COMPUTE + PREPARE % False + COMPUTE)
    assert ended.returncode == 0, ended.stderr


SETTINGS = (
    "print(keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon(), "
    "keras.config.max_steps_per_epoch()); "
)
CHANGE = (
    "keras.config.set_image_data_format('channels_first'); keras.config.set_floatx('float16'); "
    "keras.config.set_epsilon(0.1); "
)


@pytest.mark.tf
def test_settings_of_keras_that_others_have_made_change_nothing(tmp_path: Path):
    """Neither the user's keras.json and variables, nor what code sets afterwards; they do so without the package."""
    hostile = {"backend": "torch", "floatx": "float64", "epsilon": 0.01, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(hostile))
    variables = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    prepare = PREPARE % False
    ended = run("import keras; " + SETTINGS + prepare + SETTINGS + CHANGE + SETTINGS + prepare + SETTINGS, **variables)
    assert ended.returncode == 0, ended.stderr
    as_it_is = "tensorflow channels_last float32 1e-07 None"
    assert ended.stdout.splitlines() == [
        "tensorflow channels_first float64 0.01 1",
        as_it_is,
        "tensorflow channels_first float16 0.1 None",
        as_it_is,
    ]
