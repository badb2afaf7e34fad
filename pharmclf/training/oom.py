"""Tells of a device's memory that ran out, in words that help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.models.devices import device_name
from pharmclf.training.context import DeviceOutOfMemoryError
from pharmclf.training.microbatch import even_microbatch_size, is_oom_message
from pharmclf.training.phases import Phase


def is_oom_error(error: BaseException) -> bool:
    """Whether an error of TensorFlow or of Python says that memory ran out; cuDNN's and XLA's come as other kinds."""
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return True
    return isinstance(error, tf.errors.OpError) and is_oom_message(str(error))


@contextlib.contextmanager
def oom_as_user_error(config: RunConfig, phase: Phase, share: int, microbatch: int) -> Iterator[None]:
    """Within, a phase is trained. (all ranks)

    Args:
        config: of the run.
        phase: it.
        share: rows of this worker.
        microbatch: most rows that it computes at once; 0: all.

    Raises:
        DeviceOutOfMemoryError: the device's memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_oom_error(error):
            raise
        rows = even_microbatch_size(share, microbatch)
        smaller = "--batch-size auto, which computes a batch in pieces that fit and takes the same steps, "
        raise DeviceOutOfMemoryError(
            f"{phase.name}: the memory of {device_name()} does not hold {rows} images of {config.image_size} pixels at "
            f"once. Give {smaller}--microbatch {max(1, rows // 2)}, or a smaller --image-size in a run of another name"
        ) from error
