"""Benchmark of the feature cache: the same run without it, with an empty one, and with a filled one."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.benchmark.measure import Report
from pharmclf.benchmark.pharmclf_run import feature_indexes, feature_pass_s, local_runs, run_to_end
from pharmclf.config import RunConfig, StoppingConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.distributed.cluster import connect
from pharmclf.models.devices import configure_devices_for

_BATCH_SIZE = 16  # of a timed pass through a prefix
_NUM_TRANSFERS = 3
_NUM_ROUNDS = 7
_MIN_GAIN = 1.05


def benchmark_feature_cache(config: RunConfig, say: Say) -> Report:
    """Measure runs with and without cached features, and the costs of caching at each split of the backbone.

    Args:
        config: data, backbone, epochs, `augment.views` (1 or more), unfreeze depth and learning rates of the runs.

    Returns:
        runs: for "streamed", "kept" and "again" seconds of the pass that computes the features, of the phases and in
        all, and the test accuracy; ratios of them; rows: for each split bytes and milliseconds of the features of one
        image, and `gain`, how many times as fast phase 2 would be.
    """
    never_early = StoppingConfig(early_patience=0, plateau_patience=0)
    config = dataclasses.replace(config, num_workers="0", stopping=never_early, checkpoint_interval_s=0.0)
    with suppress_native_stderr():
        configure_devices_for(config)
    connect(allow_open=config.allow_unauthenticated_cluster)
    with local_runs(config) as config:
        faster = dataclasses.replace(config.phase1, learning_rate=2 * config.phase1.learning_rate)
        runs = {
            "streamed": _run(dataclasses.replace(config, name="streamed", feature_cache="never"), say),
            "kept": _run(dataclasses.replace(config, name="kept", feature_cache="always"), say),
            "again": _run(dataclasses.replace(config, name="again", feature_cache="always", phase1=faster), say),
        }
    ratios = _ratios(runs)
    for what, value in ratios.items():
        say(f"{what}: {value:.1f}")
    rows = _measure_splits(config, say)
    return {"backbone": config.backbone, "views": config.views, "runs": runs, "ratios": ratios, "rows": rows}


def _run(config: RunConfig, say: Say) -> Report:
    before = feature_indexes(config.storage)
    began = time.perf_counter()
    folder = run_to_end(config)
    seconds = time.perf_counter() - began
    result = storage.read_json(storage.join(folder, "result.json"))
    accuracy, (low, high) = result["test_accuracy"], result["test_accuracy_interval"]
    pass_s = feature_pass_s(config.storage, before)
    phases = {phase["name"]: phase["seconds"] for phase in result["phases"]}
    times = "  ".join(f"{name} {value:6.1f} s" for name, value in {"pass": pass_s, **phases, "in all": seconds}.items())
    say(f"{config.run_name:<9} {times}  test accuracy {accuracy:.3f} ({low:.3f}-{high:.3f})")
    return {
        "pass_s": pass_s, "phases": phases, "seconds": seconds, "test_accuracy": accuracy, "interval": [low, high],
    }  # fmt: skip


def _ratios(runs: dict[str, Report]) -> dict[str, float]:
    """Times of the streamed run as multiples of those of the others."""
    streamed, kept, again = runs["streamed"], runs["kept"], runs["again"]
    ratios = {}
    for phase, seconds in streamed["phases"].items():
        name = phase.replace("phase", "phase ")
        if phase == "phase1":
            ratios["phase 1, streamed / kept, the pass included"] = seconds / (kept["phases"][phase] + kept["pass_s"])
        ratios[f"{name}, streamed / kept"] = seconds / kept["phases"][phase]
        ratios[f"{name}, streamed / kept, second run"] = seconds / again["phases"][phase]
    ratios["in all, streamed / kept"] = streamed["seconds"] / kept["seconds"]
    ratios["in all, streamed / kept, second run"] = streamed["seconds"] / again["seconds"]
    return ratios


def _measure_splits(config: RunConfig, say: Say) -> list[Report]:
    import keras
    import tensorflow as tf

    from pharmclf.models.backbone_split import split_tensors
    from pharmclf.models.backbones import build_backbone

    def trace(model: Any) -> Any:
        return tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(images)

    backbone, side = build_backbone(config.backbone, config.image_size, "none"), config.image_size
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (_BATCH_SIZE, side, side, 3)), tf.float32)
    prefixes = [trace(keras.Model(backbone.input, tensor)) for tensor in split_tensors(backbone)[:-1]]
    outputs = [_compute(prefix, images).astype(config.feature_cache_dtype) for prefix in prefixes]
    # round by round, since the splits are compared: other load of the machine must not meet one of them alone
    rounds = [[_image_ms(_compute, prefix, images) for prefix in prefixes] for _ in range(_NUM_ROUNDS)]
    times = np.minimum.accumulate(np.min(rounds, axis=0))  # fewer blocks do not take longer
    rows: list[Report] = []
    for depth, (compute_ms, values) in enumerate(zip(times.tolist(), outputs, strict=True)):
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
            path = f"{folder}/shard.npy"
            write_ms = min(_image_ms(storage.write_bytes, path, values.tobytes()) for _ in range(_NUM_TRANSFERS))
            read_ms = min(_image_ms(_read, path, values) for _ in range(_NUM_TRANSFERS))
        gain = _gain(config, times[0].item(), compute_ms, write_ms, read_ms)
        size = values[0].nbytes
        rows.append(
            {"depth": depth, "shape": list(values.shape[1:]), "bytes": size, "compute_ms": compute_ms,
             "write_ms": write_ms, "read_ms": read_ms, "gain": gain}
        )  # fmt: skip
        say(
            f"{depth:>2} blocks trained: {size / 1e3:7.1f} kB  compute {compute_ms:6.2f}  write {write_ms:5.2f}  "
            f"read {read_ms:5.2f} ms an image  {config.phase2.epochs} epochs {gain:.2f}x"
            + ("" if gain >= _MIN_GAIN else ": does not pay")
        )
    say("all blocks trained: nothing is frozen, so nothing can be cached")
    say("(a phase of so many epochs with its pass; a training step of the blocks above the split counts as 3 forward)")
    return rows


def _gain(config: RunConfig, whole_ms: float, compute_ms: float, write_ms: float, read_ms: float) -> float:
    """How many times as fast a phase is, with its pass over the images; from times of one image."""
    above_ms = 3 * max(0.0, whole_ms - compute_ms)
    epochs = config.phase2.epochs
    streamed = epochs * (compute_ms + above_ms)
    return streamed / (config.views * (compute_ms + write_ms) + epochs * max(read_ms, above_ms))


def _compute(prefix: Any, images: Any) -> np.ndarray:
    values: np.ndarray = prefix(images).numpy()
    return values


def _read(path: str, like: np.ndarray) -> np.ndarray:
    return np.memmap(path, like.dtype, mode="r", shape=like.shape).copy()


def _image_ms(work: Callable[..., object], *arguments: object) -> float:
    """Milliseconds of a call, by image of the batch."""
    began = time.perf_counter()
    work(*arguments)
    return 1e3 * (time.perf_counter() - began) / _BATCH_SIZE
