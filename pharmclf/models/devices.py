"""The devices of a process: their memory, their settings, and the precision for them.

TensorFlow is imported where it is needed; choosing a precision does not need it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.monitoring.cores import schedulable_cores, usable_cores

MEMORY_VARIABLE = "PHARMCLF_DEVICE_MEMORY_MB"

# compute capability from which a GPU has fast units for a type
_BFLOAT16_CAPABILITY = (8, 0)
_FLOAT16_CAPABILITY = (7, 0)

_configured = False  # for this process


def resolve_precision(requested: str, capability: tuple[int, int] | None) -> str:
    """The precision of a run. Pure.

    Args:
        requested: auto, float32, mixed_float16 or mixed_bfloat16.
        capability: compute capability of the GPU, None where there is none.
    """
    if requested != "auto":
        return requested
    if capability is None:
        return "float32"
    if capability >= _BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= _FLOAT16_CAPABILITY else "float32"


def min_compute_capability(capabilities: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The lowest of several GPUs; None where there is none, or one of them is unknown. Pure."""
    known = [capability for capability in capabilities if capability is not None]
    return min(known) if known and len(known) == len(capabilities) else None


def with_precision(config: RunConfig, precision: str) -> RunConfig:
    """A configuration with the resolved precision."""
    return dataclasses.replace(config, precision=precision)  # type: ignore[arg-type]


def gpu_compute_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU that this process sees, None where there is none."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return None
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
    return (int(capability[0]), int(capability[1])) if capability else (0, 0)


def driver_compute_capability() -> tuple[int, int] | None:
    """Lowest compute capability of this node's GPUs, from NVIDIA's tool.

    Without the tool, that of the first GPU of TensorFlow.
    """
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        return min((int(major), int(minor)) for major, minor in (line.split(".") for line in lines))
    except (OSError, subprocess.SubprocessError, ValueError):
        return gpu_compute_capability()


def count_local_gpus() -> int:
    """NVIDIA GPUs of this machine that this process may see, without TensorFlow."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())  # not the parts of one, by MIG
    return found if visible is None else min(found, sum(name.strip() not in ("", "-1") for name in visible.split(",")))


def memory_limit_mb() -> int:
    """Megabytes of a device's memory that PHARMCLF_DEVICE_MEMORY_MB allows; 0: all.

    Raises:
        ConfigError: it is not a whole number above 0.
    """
    text = os.environ.get(MEMORY_VARIABLE, "")
    if text and not re.fullmatch(r"[1-9]\d*", text):
        raise ConfigError(f"{MEMORY_VARIABLE}: received {text!r}, expected a whole number of megabytes above 0")
    return int(text or 0)


def configure_devices_for(config: RunConfig) -> None:
    """As `configure_devices`, with the settings of a run. (all ranks)"""
    configure_devices(deterministic=config.deterministic, gpus=config.accelerator != "cpu")


def configure_devices(*, deterministic: bool, gpus: bool = True, late: bool = False) -> None:
    """Set GPU memory growth or limit, the number of threads, deterministic kernels, and Keras's defaults. (all ranks)

    The first call in a process decides, and must precede TensorFlow's first operation.

    Args:
        deterministic: equal steps to the last bit in every run.
        gpus: whether to use them.
        late: whether a process in which TensorFlow is already in use may keep its devices as they are.

    Raises:
        RuntimeError: TensorFlow has been in use before the first call, and `late` is False.
        ConfigError: Keras runs on another backend in this process.
    """
    global _configured
    import tensorflow as tf

    if not _configured:
        with contextlib.suppress(RuntimeError) if late else contextlib.nullcontext():
            _set_devices(gpus)
        _configured = True
    reset_keras_settings()
    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced again, as those of the next run are
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def _set_devices(gpus: bool) -> None:
    import tensorflow as tf

    # one logical CPU is the default; as a setting it makes TensorFlow refuse late calls also without GPUs
    for processor in tf.config.list_physical_devices("CPU"):
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()])
    _configure_gpus(gpus)
    if (cores := usable_cores()) < schedulable_cores():  # the number that TensorFlow uses
        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(cores)


def is_tensorflow_in_use() -> bool:
    """Whether other code of this process has imported TensorFlow or Keras, so that `configure_devices` may fail."""
    return not _configured and not sys.modules.keys().isdisjoint({"tensorflow", "keras"})


def keep_devices() -> None:
    """Make later calls of `configure_devices` leave the devices as they are, in a process that already computes."""
    global _configured
    _configured = True


def reset_keras_settings() -> None:
    """Set Keras's defaults, whatever `keras.json` in KERAS_HOME, the environment or other code has set.

    Raises:
        ConfigError: another program has imported Keras in this process, with another backend.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"keras: received the backend {keras.backend.backend()!r}, expected 'tensorflow'. Keras was imported "
            "before pharmclf: import pharmclf first, or set KERAS_BACKEND=tensorflow before Python starts"
        )
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def _configure_gpus(allowed: bool) -> None:
    import tensorflow as tf

    if not allowed:
        tf.config.set_visible_devices([], "GPU")
    for gpu in tf.config.get_visible_devices("GPU"):
        if limit := memory_limit_mb():
            tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)])
        else:
            tf.config.experimental.set_memory_growth(gpu, True)


def reset_peak_memory() -> None:
    """Reset `peak_memory_bytes`, if there is a GPU."""
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")


def peak_memory_bytes() -> int:
    """Peak memory of TensorFlow on the first GPU since `reset_peak_memory`; 0 without a GPU."""
    import tensorflow as tf

    if not tf.config.get_visible_devices("GPU"):
        return 0
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def device_name() -> str:
    """Name of the device of a worker, for the run's record."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))
