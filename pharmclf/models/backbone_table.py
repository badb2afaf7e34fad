"""The backbones compared: parameters, published accuracy, blocks, measured speed, where their weights come from."""

from __future__ import annotations

import gc
import time
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pharmclf.config import BackboneName, RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_rate
from pharmclf.core.usual_times import IMPORT_TENSORFLOW_S
from pharmclf.models.devices import configure_devices_for, device_name
from pharmclf.monitoring.cores import schedulable_cores
from pharmclf.progress import progress_reporter

if TYPE_CHECKING:
    from keras import Model

_BATCH, _SIDE = 16, 224  # images of a forward pass, and their side in pixels
_MEASURE_S = 2.0  # of each backbone, after the first pass
_HEADING = ("backbone", "parameters", "top-1", "at", "blocks", "images/s", "ImageNet weights")
_SOURCES = (
    "top-1: published ImageNet accuracy at that image size, from keras.io/api/applications, from its page on",
    "MobileNetV3, and from the README of EfficientNet-Lite in github.com/tensorflow/tpu",
)


def format_backbones(config: RunConfig, names: Sequence[BackboneName] = typing.get_args(BackboneName)) -> list[str]:
    """Build and time backbones with random weights; nothing is downloaded -> the lines of a table with its notes.

    Args:
        config: says which devices are used.
        names: of those that are compared.
    """
    with suppress_native_stderr(), show_activity("importing TensorFlow", IMPORT_TENSORFLOW_S):
        configure_devices_for(config)
        from pharmclf.models.backbone_split import split_tensors
        from pharmclf.models.backbones import BACKBONES, build_backbone, weights_source

    rows = [_HEADING]
    progress = progress_reporter(
        "measuring backbones", lambda done, total: " ".join((f"{done}/{total}", *names[done : done + 1]))
    )
    for done, name in enumerate(names):
        progress(done, len(names))
        with suppress_native_stderr():
            model = build_backbone(name, _SIDE, "none")
            speed = format_rate(_BATCH / _forward_seconds(model))
        size, blocks = f"{model.count_params() / 1e6:.1f} M", len(split_tensors(model)) - 1
        accuracy, side = f"{BACKBONES[name].top1:.1f} %", f"{BACKBONES[name].side} px"
        rows.append((name, size, accuracy, side, str(blocks), speed, weights_source(name)))
        del model
        gc.collect()  # a graph and its model refer to each other
    progress(len(names), len(names))
    return [
        *align_columns(rows, left=[0, -1]),
        *_SOURCES,
        f"images/s: forward pass of {_BATCH} images of {_SIDE} px, normalisation folded, fastest within "
        f"{_MEASURE_S:.0f} s, on {device_name()} with {schedulable_cores()} cores",
    ]


def _forward_seconds(model: Model) -> float:
    """Least seconds of a forward pass of a batch, in inference."""
    import tensorflow as tf

    from pharmclf.models.fold_norm import FoldedNetwork

    images = tf.random.uniform((_BATCH, _SIDE, _SIDE, 3), maxval=255.0, seed=0)
    folded = FoldedNetwork(model, frozen=True)
    forward = tf.function(lambda: folded(images), autograph=False)
    forward().numpy()  # traces
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < _MEASURE_S:
        began = time.perf_counter()
        forward().numpy()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds)
