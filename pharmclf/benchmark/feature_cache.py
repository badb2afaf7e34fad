"""What kept activations gain: the same run without them, with them from nothing, and once more with another rate."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pharmclf import pipeline, storage
from pharmclf.config import RunConfig, StoppingConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.prepare import data_location
from pharmclf.distributed.cluster import connect
from pharmclf.feature_cache.shards import INDEX_FILE
from pharmclf.models.devices import configure_devices_for

_BATCH = 16  # pictures of a timed pass through a prefix
_TIMES = 3
_ROUNDS = 7
_MIN_GAIN = 1.05


def benchmark_feature_cache(config: RunConfig, say: Say) -> dict[str, Any]:
    """Measure whole runs with and without kept activations, and what each cut of the backbone costs to keep.

    Args:
        config: data, backbone, epochs, `augment.views` (1 or more), unfreeze depth and rates of the runs.
        say: takes lines for the console.

    Returns:
        runs: for "streamed", "kept" and "again": seconds of the phases, of the pass over the images, and of the whole
        run, and the test accuracy with its interval; ratios of them; cuts: bytes, milliseconds to compute and to read
        one picture's activations, and how many times as fast the second phase would be (below 1.05: it does not pay).
    """
    never_early = StoppingConfig(early_patience=0, plateau_patience=0)
    config = dataclasses.replace(config, workers="0", stopping=never_early, checkpoint_every_s=0.0)
    with suppress_native_stderr():
        configure_devices_for(config)
    connect(allow_open=config.allow_open_cluster)
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        data = storage.absolute(data_location(dataclasses.replace(config, storage=folder)))
        config = dataclasses.replace(config, data=data, storage=folder)
        faster = dataclasses.replace(config.phase1, learning_rate=2 * config.phase1.learning_rate)
        runs = {
            "streamed": _run(dataclasses.replace(config, name="streamed", activations="never"), say),
            "kept": _run(dataclasses.replace(config, name="kept", activations="always"), say),
            "again": _run(dataclasses.replace(config, name="again", activations="always", phase1=faster), say),
        }
    ratios = _ratios(runs)
    for what, value in ratios.items():
        say(f"{what}: {value:.1f}")
    cuts = _cuts(config, say)
    return {"backbone": config.backbone, "views": config.views, "runs": runs, "ratios": ratios, "rows": cuts}


def _run(config: RunConfig, say: Say) -> dict[str, Any]:
    """A whole run, from the manifest to the tested model -> its times and its test accuracy."""
    before = set(_indexes(config.storage))
    began = time.perf_counter()
    pipeline.run(config, lambda _: None)
    seconds = time.perf_counter() - began
    computed = [storage.read_json(path) for path in _indexes(config.storage) if path not in before]
    pass_s = max((index["seconds"] for index in computed), default=0.0)  # one pass writes them all
    result = storage.read_json(storage.join(config.storage, config.run_name, "result.json"))
    phases = {phase["name"]: phase["seconds"] for phase in result["phases"]}
    low, high = result["test_accuracy_interval"]
    say(
        f"{config.run_name:<9} pass {pass_s:6.1f} s  "
        + "  ".join(f"{name} {value:6.1f} s" for name, value in phases.items())
        + f"  whole run {seconds:6.1f} s  test accuracy {result['test_accuracy']:.3f} ({low:.3f}-{high:.3f})"
    )
    return {
        "pass_s": pass_s, "phases": phases, "seconds": seconds, "test_accuracy": result["test_accuracy"],
        "interval": [low, high],
    }  # fmt: skip


def _indexes(place: str) -> list[str]:
    return [str(path) for path in Path(place).glob(f"activations/*/{INDEX_FILE}")]


def _ratios(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Times of the streamed run as multiples of the others'."""
    streamed, kept, again = runs["streamed"], runs["kept"], runs["again"]
    ratios = {}
    for phase, seconds in streamed["phases"].items():
        if phase == "phase1":
            ratios["phase 1, streamed / kept, the pass included"] = seconds / (kept["phases"][phase] + kept["pass_s"])
        ratios[f"{phase.replace('phase', 'phase ')}, streamed / kept"] = seconds / kept["phases"][phase]
        ratios[f"{phase.replace('phase', 'phase ')}, streamed / kept, second run"] = seconds / again["phases"][phase]
    ratios["whole run, streamed / kept"] = streamed["seconds"] / kept["seconds"]
    ratios["whole run, streamed / kept, second run"] = streamed["seconds"] / again["seconds"]
    return ratios


def _cuts(config: RunConfig, say: Say) -> list[dict[str, Any]]:
    """For every cut: bytes, time to compute and to read back one picture, and what a second phase gains there."""
    import keras
    import tensorflow as tf

    from pharmclf.models.backbone_split import split_tensors
    from pharmclf.models.backbones import build_backbone

    backbone = build_backbone(config.backbone, config.image_size, "none")
    side = config.image_size
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (_BATCH, side, side, 3)), tf.float32)
    forwards = [_prefix(keras.Model(backbone.input, tensor), images) for tensor in split_tensors(backbone)[:-1]]
    outputs = [_forward(forward, images).astype(config.activations_dtype) for forward in forwards]
    # round by round, for the cuts are compared: what else the machine does must not fall on one of them alone
    rounds = [[_ms(_forward, forward, images) for forward in forwards] for _ in range(_ROUNDS)]
    times = np.minimum.accumulate(np.min(rounds, axis=0))  # fewer blocks do not take longer
    rows: list[dict[str, Any]] = []
    for depth, (compute_ms, values) in enumerate(zip(times.tolist(), outputs, strict=True)):
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
            path = f"{folder}/shard.npy"
            write_ms = min(_ms(storage.write_bytes, path, values.tobytes()) for _ in range(_TIMES))
            read_ms = min(_ms(_read, path, values) for _ in range(_TIMES))
        gain = _gain(config, times[0].item(), compute_ms, write_ms, read_ms)
        rows.append(
            {"depth": depth, "shape": list(values.shape[1:]), "bytes": values[0].nbytes, "compute_ms": compute_ms,
             "write_ms": write_ms, "read_ms": read_ms, "gain": gain}
        )  # fmt: skip
        verdict = f"{gain:.2f}x" if gain >= _MIN_GAIN else f"{gain:.2f}x: does not pay"
        say(
            f"{depth:>2} blocks trained: {values[0].nbytes / 1e3:7.1f} kB  compute {compute_ms:6.2f}  "
            f"write {write_ms:5.2f}  read {read_ms:5.2f} ms a picture  {config.phase2.epochs} epochs {verdict}"
        )
    say("all blocks trained: nothing is frozen, so nothing can be kept")
    say("(a phase of so many epochs with its own pass, a training step of the blocks above the cut taken as 3 forward)")
    return rows


def _gain(config: RunConfig, whole_ms: float, compute_ms: float, write_ms: float, read_ms: float) -> float:
    """How many times as fast a phase is, its pass over the images included; from times of one picture."""
    above_ms = 3 * max(0.0, whole_ms - compute_ms)
    epochs = config.phase2.epochs
    streamed = epochs * (compute_ms + above_ms)
    return streamed / (config.views * (compute_ms + write_ms) + epochs * max(read_ms, above_ms))


def _prefix(model: Any, images: Any) -> Any:
    """A graph, traced by now."""
    import tensorflow as tf

    return tf.function(lambda images: model(images, training=False)).get_concrete_function(images)


def _forward(forward: Any, images: Any) -> np.ndarray:
    return forward(images).numpy()


def _read(path: str, like: np.ndarray) -> np.ndarray:
    return np.memmap(path, like.dtype, mode="r", shape=like.shape).copy()


def _ms(work: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds a picture."""
    began = time.perf_counter()
    work(*arguments)
    return 1e3 * (time.perf_counter() - began) / _BATCH
