"""Out-of-memory errors of a device."""

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
    """Whether memory ran out; the errors of cuDNN and XLA are recognized by their message."""
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return True
    return isinstance(error, tf.errors.OpError) and is_oom_message(str(error))


@contextlib.contextmanager
def oom_as_user_error(config: RunConfig, phase: Phase, share: int, microbatch: int) -> Iterator[None]:
    """Turn an out-of-memory error of the block, which trains a phase, into an error with advice. (all ranks)

    Args:
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
        raise DeviceOutOfMemoryError(
            f"{phase.name}: the memory of {device_name()} does not hold {rows} images of {config.image_size} pixels at "
            "once. Give --batch-size auto, which splits a batch into micro-batches that fit and takes the same steps, "
            f"--microbatch {max(1, rows // 2)}, or a smaller --image-size in a run of another name"
        ) from error
