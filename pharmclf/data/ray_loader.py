"""Streams a worker's rows, in the order of its plan, through Ray Data: read, decode and resize in Ray tasks.

A pipeline serves many epochs, because Ray Data needs seconds to its first batch, but not a phase of any length, because
it prepares all blocks before the first. The tasks work out their rows from the plan themselves, so nothing but step
numbers travels to them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
import ray.data

from pharmclf import storage
from pharmclf.core.compat.ray import call_at_each_step, mute_progress_notice, set_data_poll_interval
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.image_decoding import InvalidImageError
from pharmclf.data.image_set import ImageSet

Block = dict[str, np.ndarray]
"""Columns of equal length, as Ray Data gives them to its tasks."""
_BLOCK_BYTES = 16 << 20  # pixels decoded by one Ray task: 111 images of 224 px
_AHEAD_BYTES = 512 << 20  # decoded pixels that may wait for one worker; without a bound Ray decodes a phase ahead
_SECTION_BLOCKS = 1000  # of one pipeline; Ray needs a millisecond for each before the first block comes
_OVERLAP_BLOCKS = 250  # that a pipeline still has when the next one is begun: a few seconds, or the stream would pause
_REMOTE_READS = 16  # concurrent reads of one task from an object store


def load_images(files: ImageSet, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read, verify, decode and resize images.

    Args:
        files: n files.
        image_size: S, side in pixels.

    Returns:
        (n, S, S, 3) uint8, black where an image cannot be used; and (n,) text: why it cannot, "" where it can.

    Raises:
        PermissionError, StorageUnavailableError: the storage gives nothing at all.
    """

    images = np.zeros((len(files), image_size, image_size, 3), np.uint8)
    bad = [""] * len(files)

    def load(place: int, path: str) -> None:
        if not path:
            return
        try:
            images[place] = files.decode(place, image_size)
        except InvalidImageError as error:
            bad[place] = str(error)

    paths = files.paths.to_pylist()
    if any(storage.is_remote(path) for path in paths):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            list(pool.map(load, range(len(paths)), paths))
    else:
        for place, path in enumerate(paths):
            load(place, path)
    return images, np.array(bad, str)


def load_block(files: ImageSet, image_size: int) -> Block:
    """As `load_images`, for a Ray task: columns `image`, `bad`, and `error`, so that it travels to its place.

    Left to itself, Ray Data ends the whole pipeline at once, and keeps of the error only its text.
    """
    try:
        (images, bad), error = load_images(files, image_size), ""
    except OSError as failure:
        images = np.zeros((len(files), image_size, image_size, 3), np.uint8)
        bad, error = np.full(len(files), ""), encode_error(failure)
    return {"image": images, "bad": bad, "error": np.full(len(files), error)}


def encode_error(error: Exception) -> str:
    """An error as it stands in a block's column `error`."""
    return f"{type(error).__name__}: {error}"


def raise_block_error(batch: Block, *kinds: type[Exception]) -> Block:
    """A block, or the error that stands in its column `error`.

    Args:
        batch: of `load_block`, or of what was made of it.
        kinds: errors that may stand there beside those of `load_images`.

    Raises:
        PermissionError, StorageUnavailableError: as `load_images`; `kinds`; and ValueError for any other.
    """
    every: tuple[type[Exception], ...] = (PermissionError, storage.StorageUnavailableError, *kinds)
    known = {kind.__name__: kind for kind in every}
    for error in batch["error"]:
        if error:
            kind, _, text = str(error).partition(": ")
            raise known.get(kind, ValueError)(text)
    return batch


def load_batches(
    plan: BatchPlan, images: ImageSet, image_size: int, *, first: int = 0, num_cpus: float = 1.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images of every step of a plan, in order.

    Args:
        plan: the worker's plan.
        images: of every row of the manifest.
        image_size: S, side in pixels.
        first: index of the first step.
        num_cpus: CPUs that this pipeline may use at a time.

    Yields:
        What `load_images` gives for the rows of the step: black where it is padded.

    Raises:
        PermissionError, StorageUnavailableError: as `load_images`, at the step that lacks its images.
    """
    steps_per_block = max(1, _BLOCK_BYTES // (plan.local_batch * image_size * image_size * 3))
    shared = ray.put((plan, images))

    def batches(steps: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def decode_steps(block: Block) -> Block:
            plan, images = ray.get(shared)
            rows = np.concatenate([plan.step(steps[index]).rows for index in block["id"]])
            return load_block(images.select(rows), image_size)

        blocks = -(-len(steps) // steps_per_block)
        dataset = configure_dataset(ray.data.range(len(steps), override_num_blocks=blocks), num_cpus)
        decoded = dataset.map_batches(decode_steps, batch_size=None)
        for batch in decoded.iter_batches(batch_size=plan.local_batch, batch_format="numpy", prefetch_batches=2):
            yield raise_block_error(batch)["image"], batch["bad"]

    steps = range(first, plan.num_steps)
    size = steps_per_block * _SECTION_BLOCKS
    sections = [steps[start : start + size] for start in range(0, len(steps), size)]
    yield from chain_prefetched(
        [(batches(section), len(section)) for section in sections], steps_per_block * _OVERLAP_BLOCKS
    )


def chain_prefetched(parts: Sequence[tuple[Iterator[Any], int]], overlap: int) -> Iterator[Any]:
    """The items of one iterator after the other, each begun before the one ahead of it has ended.

    Args:
        parts: each with the number of its items.
        overlap: items that are left of a part when the next one is begun, in a thread.
    """
    following: Prefetcher | None = None
    for number, (items, count) in enumerate(parts):
        current, following = following or items, None
        for index, item in enumerate(current):
            if following is None and count - index <= overlap and number + 1 < len(parts):
                following = prefetch(parts[number + 1][0], lambda item: item)
                following.start()
            yield item


_WAIT_S = 0.02
"""How long Ray Data's control loop waits for all running tasks to end before it looks which have.

Its own 0.1 s are made for longer tasks: a CPU whose task has ended in 0.15 s stands idle until the loop has looked.
Decoding on two cores gave 1,230 images/s with it and 1,360 with this, for a twentieth of a core.
"""


class _IdleThrottle:
    """Lets the pipeline's control loop rest while it has nothing to do.

    With decoded blocks waiting for a slower consumer, Ray Data's loop does not block but spins: measured at 0.7 of a
    core, in the process that trains. A step of the loop that waited for a task takes longer than `_SPIN_S`.
    """

    _SPIN_S, _PAUSE_S, _MAX_PAUSE_S = _WAIT_S / 2, 0.005, 0.1

    def __init__(self) -> None:
        self._last, self._spins = 0.0, 0

    def __call__(self) -> None:
        """Rest the longer, the more steps in a row were spins; a busy pipeline spins but once or twice."""
        self._spins = self._spins + 1 if time.perf_counter() - self._last < self._SPIN_S else 0
        time.sleep(min(self._MAX_PAUSE_S, self._PAUSE_S * self._spins))
        self._last = time.perf_counter()


def configure_dataset(dataset: Any, num_cpus: float | None) -> Any:
    """Let a new Ray Data pipeline keep its order, within a share of the CPUs, without bars and chatter.

    Args:
        dataset: one that has just been made; its settings are its own.
        num_cpus: CPUs that it may use at a time; None: all.
    """
    limits = ray.data.ExecutionResources(cpu=num_cpus, object_store_memory=_AHEAD_BYTES)
    settings = dataset.context
    settings.execution_options = ray.data.ExecutionOptions(preserve_order=True, resource_limits=limits)
    settings.enable_progress_bars = settings.print_on_execution_start = False
    call_at_each_step(settings, _IdleThrottle)
    set_data_poll_interval(_WAIT_S)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    mute_progress_notice()
    return dataset


class Prefetcher(Iterator[Any]):
    """Items converted ahead of their use, so that the device does not wait for the copy.

    The thread that does so begins with the first item; an error of it comes out at the item it concerns. `close` ends
    the thread, and so does dropping the iterator.
    """

    def __init__(self, items: Iterator[Any], convert: Callable[[Any], Any], depth: int) -> None:
        self._queue: queue.Queue[_Entry] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        work = (items, convert, self._queue, self._closed)  # not this object, which could never be dropped then
        self._thread = threading.Thread(target=_convert_ahead, args=work, name="prefetch", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the next item is there, and `suggest` does not wait."""
        return not self._queue.empty()

    def start(self) -> None:
        """Begin before the first item is asked for."""
        if not self._thread.ident:
            self._thread.start()

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        self.start()
        item, error, last = self._queue.get()
        if error is not None or last:
            self.close()
            raise error or StopIteration
        return item

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.ident:
            self._thread.join(timeout=10)

    def __del__(self) -> None:
        self.close()


_Entry = tuple[Any, BaseException | None, bool]
"""An item, or an error, or the end."""


def _convert_ahead(
    items: Iterator[Any], convert: Callable[[Any], Any], ahead: queue.Queue[_Entry], closed: threading.Event
) -> None:
    def put(entry: _Entry) -> None:
        while not closed.is_set():
            try:
                ahead.put(entry, timeout=0.2)
                return
            except queue.Full:
                continue

    try:
        for item in items:
            if closed.is_set():
                return
            put((convert(item), None, False))
        put((None, None, True))
    except BaseException as error:
        put((None, error, True))


def prefetch(items: Iterator[Any], convert: Callable[[Any], Any], depth: int = 2) -> Prefetcher:
    """Convert items ahead of their use, `depth` of them at most."""
    return Prefetcher(items, convert, depth)
