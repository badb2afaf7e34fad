"""What TensorFlow finds on this machine, and whether it computes there: a program of its own, for it may hang or crash.

It prints one JSON object on its last line; what TensorFlow itself says on standard error is for the caller to read.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

from pharmclf.core.errors import single_line

_CUDNN = re.compile(r"\S*/libcudnn\.so\S*")
_ERROR_LENGTH = 300


def probe(precision: str, xla: bool, gpus: bool) -> dict[str, Any]:
    """Import TensorFlow, look for GPUs, let their memory grow, and take a small training step in a precision.

    Args:
        precision: as in RunConfig.
        xla: compile the step with XLA.
        gpus: whether they may be used.

    Returns:
        As the fields of `tensorflow_check.TensorflowInfo`.
    """
    import tensorflow as tf

    from pharmclf.models.devices import configure_devices, gpu_compute_capability, resolve_precision

    build = tf.sysconfig.get_build_info()
    found: dict[str, Any] = {
        "version": tf.__version__,
        "cuda_built": str(build.get("cuda_version", "")) if build.get("is_cuda_build") else "",
        "cudnn_built": str(build.get("cudnn_version", "")),
        "capabilities_built": list(build.get("cuda_compute_capabilities", [])),
    }
    found["gpus"] = [_describe_gpu(tf, gpu) for gpu in tf.config.list_physical_devices("GPU")]
    configure_devices(deterministic=False, gpus=gpus)
    found["precision"] = resolve_precision(precision, gpu_compute_capability())
    found["step_error"] = _run_step(tf, found["precision"], xla, bool(found["gpus"]) and gpus)
    found["cudnn_loaded"] = _cudnn_loaded()
    return found


def _describe_gpu(tf: Any, gpu: Any) -> dict[str, Any]:
    details = tf.config.experimental.get_device_details(gpu)
    return {
        "name": str(details.get("device_name", gpu.name)),
        "capability": list(details.get("compute_capability") or []),
    }


def _run_step(tf: Any, precision: str, xla: bool, gpu: bool) -> str:
    """A convolution with its gradient -> what went wrong, or ""."""
    dtype = precision.removeprefix("mixed_")

    @tf.function(jit_compile=xla, autograph=False)
    def gradient(images: Any, kernel: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            hidden = tf.nn.relu(tf.nn.conv2d(tf.cast(images, dtype), tf.cast(kernel, dtype), 1, "SAME"))
            loss = tf.reduce_mean(tf.cast(hidden, "float32"))
        return tape.gradient(loss, kernel)

    try:
        with tf.device("/GPU:0" if gpu else "/CPU:0"):
            value = gradient(tf.ones((8, 32, 32, 16)), tf.ones((3, 3, 16, 16)))
        return "" if bool(tf.reduce_all(tf.math.is_finite(value)).numpy()) else "the gradient is not finite"
    except tf.errors.OpError as error:
        return single_line(error, _ERROR_LENGTH)


def _cudnn_loaded() -> str:
    """The version of the cuDNN that lies in the memory of this process; "" where there is none."""
    try:
        path = _CUDNN.search(Path("/proc/self/maps").read_text("utf-8"))
        if path is None:
            return ""
        number = int(ctypes.CDLL(path[0]).cudnnGetVersion())
    except (OSError, AttributeError):
        return ""
    # 90300 is 9.3.0, and before 9 8907 was 8.9.7
    thousand, hundred = (10_000, 100) if number >= 90_000 else (1000, 100)
    return f"{number // thousand}.{number % thousand // hundred}.{number % hundred}"


if __name__ == "__main__":
    wanted_precision, wanted_xla, wanted_gpus = sys.argv[1:4]
    print(json.dumps(probe(wanted_precision, wanted_xla == "1", wanted_gpus == "1")), flush=True)  # noqa: T201
