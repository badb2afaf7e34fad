"""What TensorFlow finds on this machine, and whether it computes there; it may hang or crash the process."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pharmclf.core.errors import single_line

_CUDNN = re.compile(r"\S*/libcudnn\.so\S*")
_ERROR_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class VisibleGpu:
    """A GPU that TensorFlow finds."""

    name: str
    capability: tuple[int, ...]
    """Compute capability; () where TensorFlow does not say."""


@dataclass(frozen=True, kw_only=True)
class TensorflowInfo:
    """The result of the probe."""

    error: str = ""
    """Why there is no other result: TensorFlow was not imported, crashed, or took too long."""
    complaints: tuple[str, ...] = ()
    """Lines of TensorFlow's log about libraries and the driver."""
    version: str = ""
    cuda_built: str = ""
    """The CUDA that it was built with; "" where it was built without."""
    cudnn_built: str = ""
    cudnn_loaded: str = ""
    capabilities_built: tuple[str, ...] = ()
    """Compute capabilities that it has kernels for: sm_80, or compute_90 for those and all later ones."""
    gpus: tuple[VisibleGpu, ...] = ()
    precision: str = ""
    step_error: str = ""


def probe(precision: str, xla: bool, gpus: bool) -> TensorflowInfo:
    """Import TensorFlow, find GPUs, let their memory grow, and take a small step in a precision as in RunConfig."""
    import tensorflow as tf

    from pharmclf.models.devices import configure_devices, gpu_compute_capability, resolve_precision

    build = tf.sysconfig.get_build_info()
    found = tuple(_describe_gpu(tf, gpu) for gpu in tf.config.list_physical_devices("GPU"))
    configure_devices(deterministic=False, gpus=gpus)
    precision = resolve_precision(precision, gpu_compute_capability())
    return TensorflowInfo(
        version=tf.__version__,
        cuda_built=str(build.get("cuda_version", "")) if build.get("is_cuda_build") else "",
        cudnn_built=str(build.get("cudnn_version", "")),
        capabilities_built=tuple(build.get("cuda_compute_capabilities", [])),
        gpus=found,
        precision=precision,
        step_error=_run_step(tf, precision, xla, bool(found) and gpus),
        cudnn_loaded=_cudnn_loaded(),  # by the step
    )


def _describe_gpu(tf: Any, gpu: Any) -> VisibleGpu:
    details = tf.config.experimental.get_device_details(gpu)
    capability = tuple(details.get("compute_capability") or ())
    return VisibleGpu(name=str(details.get("device_name", gpu.name)), capability=capability)


def _run_step(tf: Any, precision: str, xla: bool, gpu: bool) -> str:
    """Compute the gradient of a convolution -> why that failed, or ""."""
    dtype = precision.removeprefix("mixed_")

    def gradient(images: Any, kernel: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            hidden = tf.nn.relu(tf.nn.conv2d(tf.cast(images, dtype), tf.cast(kernel, dtype), 1, "SAME"))
            loss = tf.reduce_mean(tf.cast(hidden, "float32"))
        return tape.gradient(loss, kernel)

    try:
        with tf.device("/GPU:0" if gpu else "/CPU:0"):
            compiled = tf.function(gradient, jit_compile=xla, autograph=False)
            value = compiled(tf.ones((8, 32, 32, 16)), tf.ones((3, 3, 16, 16)))
        return "" if bool(tf.reduce_all(tf.math.is_finite(value)).numpy()) else "the gradient is not finite"
    except tf.errors.OpError as error:
        return single_line(error, _ERROR_LENGTH)


def _cudnn_loaded() -> str:
    """Version of the cuDNN in the memory of this process; "" without one."""
    try:
        path = _CUDNN.search(Path("/proc/self/maps").read_text("utf-8"))
        if path is None:
            return ""
        number = int(ctypes.CDLL(path[0]).cudnnGetVersion())
    except (OSError, AttributeError):
        return ""
    # 90300 is 9.3.0, and before 9 8907 was 8.9.7
    major, minor = (10_000, 100) if number >= 90_000 else (1000, 100)
    return f"{number // major}.{number % major // minor}.{number % minor}"
