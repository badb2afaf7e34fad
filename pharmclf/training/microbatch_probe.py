"""Tries micro-batch sizes on a device; a program for a child process of `microbatch`, which the kernel may kill.

It talks through a `multiprocessing` connection, whose file descriptor is its argument. First comes the setup: (config,
number of classes, bytes of memory that a CPU may use from then on). The answer to the request () is a `ProbeDevice`, to
(phase, rows, share) the peak memory of the GPU in bytes, 0 without one. Any answer is None if memory runs out, and an
exception for another error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import keras
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError, format_error
from pharmclf.models.backbones import build_backbone
from pharmclf.models.devices import (
    configure_devices_for,
    device_name,
    gpu_compute_capability,
    memory_limit_mb,
    peak_memory_bytes,
    reset_peak_memory,
    resolve_precision,
)
from pharmclf.models.head import build_head
from pharmclf.monitoring import DriverNvml, NvmlUnavailableError
from pharmclf.monitoring.sampler import visible_gpu
from pharmclf.training.collectives import single_worker
from pharmclf.training.microbatch import MicrobatchSearchError, ProbeDevice, with_safety_margin
from pharmclf.training.model_step import ModelStep
from pharmclf.training.oom import is_oom_error
from pharmclf.training.phases import Phase
from pharmclf.training.train_step import synthetic_batch

_STEPS = 2  # the second one finds what the first has left
_PREFETCHED_SHARES = 2  # on the device while one is computed
_MAX_ROWS = 65536  # of a batch


def main() -> None:
    """Answer requests until the connection ends."""
    with contextlib.suppress(OSError):  # the kernel's first choice when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    pipe, probe = Connection(int(sys.argv[1])), None
    with contextlib.suppress(EOFError):
        setup = pipe.recv()
        while True:
            request = pipe.recv()
            try:
                probe = probe or _MicrobatchProbe(*setup)
                pipe.send(probe.run(*request) if request else probe.device)
            except ConfigError as error:
                pipe.send(error)
            except Exception as error:
                # oneDNN only says that it could not run, if the system refused it memory
                refused = probe is not None and not probe.device.gpu and isinstance(error, tf.errors.AbortedError)
                out_of_memory = is_oom_error(error) or refused
                pipe.send(None if out_of_memory else MicrobatchSearchError(format_error(error)))


class _MicrobatchProbe:
    """The networks of a run, without its weights, and steps with them."""

    def __init__(self, config: RunConfig, num_classes: int, cpu_memory_bytes: int) -> None:
        configure_devices_for(config)
        self._config = config
        gpu = gpu_compute_capability()
        self._precision = resolve_precision(config.precision, gpu)
        keras.config.set_dtype_policy(self._precision)
        backbone = build_backbone(config.backbone, config.image_size, "none")
        for variable in backbone.variables:  # random ones may overflow a float16, and such a step would be skipped
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self._networks = backbone, build_head(config.head, backbone.output.shape[-1], num_classes, config.seed)
        if gpu is None:
            _limit_memory(cpu_memory_bytes)
        self.device = ProbeDevice(device_name(), gpu is not None, _free_gpu_bytes() if gpu else 0)

    def run(self, phase: Phase, rows: int, share: int) -> int:
        """Take steps of a phase with a micro-batch and its safety margin -> peak memory of the GPU in bytes, else 0.

        Raises:
            ResourceExhaustedError, MemoryError: it does not fit; see `is_oom_error` for others.
        """
        reset_peak_memory()
        self._take_steps(phase, min(with_safety_margin(rows), _MAX_ROWS), share, accumulates=rows < share)
        gc.collect()  # graphs hold each other
        return peak_memory_bytes()

    def _take_steps(self, phase: Phase, microbatch: int, share: int, *, accumulates: bool) -> None:
        local = min(2 * microbatch, _MAX_ROWS) if accumulates else microbatch
        config = dataclasses.replace(self._config, batch_size=local)
        model = ModelStep(
            config, single_worker(), *self._networks, phase.unfreeze_blocks, self._precision, microbatch=microbatch
        )
        batch = synthetic_batch(config, local)
        prefetched = [synthetic_batch(config, share) for _ in range(_PREFETCHED_SHARES)]
        for _ in range(_STEPS):
            model.train_step(batch, tf.constant(0.0)).numpy()
        model.validation_step(batch).numpy()
        del prefetched


def _free_gpu_bytes() -> int:
    """Free memory of the first GPU that this process sees; 0: unknown."""
    if limit := memory_limit_mb():
        return limit << 20
    try:
        gpu = DriverNvml().read(visible_gpu() or 0)
    except NvmlUnavailableError:
        return 0
    if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
        return 0
    return int(gpu.memory_total_bytes - gpu.memory_used_bytes)


def _limit_memory(num_bytes: int) -> None:
    """Limit the memory that this process may use in addition to what it holds, where the system can."""
    with contextlib.suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        (used,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + num_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
