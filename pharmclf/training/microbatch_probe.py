"""Tries how many rows fit on a device: a program of its own, for memory that runs out may kill it.

The first line of its input is what to try with, as JSON: config, classes, memory_bytes (that a processor may take from
then on; 0: no bound). It answers with the device, and the free memory of a GPU. Then each line is a try: phase, rows,
share. The answer is fits, true or false, and the memory of a GPU that it took; or an error, and whether it is one of
the input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from pharmclf.config import RunConfig, from_dict
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
from pharmclf.training.microbatch import with_safety_margin
from pharmclf.training.oom import is_oom_error
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training.synthetic_batch import synthetic_batch
from pharmclf.training.train_step import TrainStep

_STEPS = 2  # the second one finds what the first has left
_EXTRA_STEPS = 2  # shares that lie on the device while one is computed
_MAX_ROWS = 65536  # of a batch


def main() -> None:
    """Read what to try with, and try until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    with contextlib.suppress(OSError):  # where memory runs out this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    tries = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if tries is None:
                tries = _MicrobatchProbe(from_dict(asked["config"]), asked["classes"], asked["memory_bytes"])
                gpu = gpu_compute_capability() is not None
                answer(device=device_name(), gpu=gpu, memory_bytes=_free_bytes() if gpu else 0)
            else:
                answer(fits=True, taken_bytes=tries.run(asked["phase"], asked["rows"], asked["share"]))
        except ConfigError as error:
            answer(error=str(error), input=True)
        except Exception as error:
            # oneDNN says no more than that it could not run, where the system refused it memory
            refused = tries is not None and tries.bounded and isinstance(error, tf.errors.AbortedError)
            if is_oom_error(error) or refused:
                answer(fits=False)
            else:
                answer(error=format_error(error), input=False)


class _MicrobatchProbe:
    """The networks of a run, without its weights, and steps with them."""

    def __init__(self, config: RunConfig, num_classes: int, memory_bytes: int) -> None:
        configure_devices_for(config)
        self._config = config
        self._precision = resolve_precision(config.precision, gpu_compute_capability())
        keras.config.set_dtype_policy(self._precision)
        backbone = build_backbone(config.backbone, config.image_size, "none")
        for variable in backbone.variables:  # random ones may overflow a float16, and such a step would be skipped
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self._networks = backbone, build_head(config.head, backbone.output.shape[-1], num_classes, config.seed)
        self.bounded = memory_bytes > 0 and gpu_compute_capability() is None
        """Whether the system refuses this process memory beyond a bound."""
        if self.bounded:
            _bound_memory(memory_bytes)

    def run(self, phase_name: str, rows: int, share: int) -> int:
        """Take the steps of a phase with so many rows at once, and some more for safety -> bytes of a GPU, else 0.

        Raises:
            ResourceExhaustedError, MemoryError: they do not fit; others do too that tell of memory.
        """
        (phase,) = (phase for phase in build_phases(self._config) if phase.name == phase_name)
        reset_peak_memory()
        self._steps(phase, min(with_safety_margin(rows), _MAX_ROWS), share, in_pieces=rows < share)
        gc.collect()  # graphs hold each other
        return peak_memory_bytes()

    def _steps(self, phase: Phase, piece: int, share: int, *, in_pieces: bool) -> None:
        local = min(2 * piece, _MAX_ROWS) if in_pieces else piece
        config = dataclasses.replace(self._config, batch_size=local)
        model = TrainStep(
            config, single_worker(), *self._networks, phase.unfreeze_blocks, self._precision, microbatch=piece
        )
        batch, ahead = synthetic_batch(config, local), [synthetic_batch(config, share) for _ in range(_EXTRA_STEPS)]
        for _ in range(_STEPS):
            model.train_step(batch, tf.constant(0.0)).numpy()
        model.validation_step(batch).numpy()
        del ahead


def _free_bytes() -> int:
    """Of the first GPU that this process sees; 0: not known."""
    if limit := memory_limit_mb():
        return limit << 20
    try:
        gpu = DriverNvml().read(visible_gpu() or 0)
    except NvmlUnavailableError:
        return 0
    if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
        return 0
    return int(gpu.memory_total_bytes - gpu.memory_used_bytes)


def _bound_memory(num_bytes: int) -> None:
    """Let this process take no more than so many bytes from now on; where the system cannot, nothing happens."""
    with contextlib.suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        (used,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + num_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
