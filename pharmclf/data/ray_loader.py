"""Streams a worker's images through Ray Data, in the order of its plan: Ray tasks read, decode and resize them.

A pipeline serves many epochs, because Ray Data needs seconds to its first batch. A long phase has several pipelines,
because Ray Data prepares all blocks before the first. Blocks are bounded by their bytes and not by steps, so that the
images of one large step are decoded on all cores.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data

from pharmclf import storage
from pharmclf.core.compat.ray import call_at_each_step, mute_progress_notice, set_data_poll_interval
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.image_cache import ImageCache
from pharmclf.data.image_decoding import InvalidImageError
from pharmclf.data.image_set import ImageSet
from pharmclf.data.prefetch import chain_prefetched

Block = dict[str, np.ndarray]
"""Columns of equal length, as Ray Data gives them to its tasks."""
_BLOCK_BYTES = 16 << 20  # pixels decoded by one Ray task: 111 images of 224 px
_AHEAD_BYTES = 512 << 20  # decoded pixels that may wait for one worker; without a bound Ray would decode a phase ahead
_BLOCKS_PER_CPU = 4  # that may wait, where that is more: one that is decoded, others until their turn has come
_SECTION_BLOCKS = 1000  # of one pipeline; Ray needs a millisecond for each before the first block comes
_OVERLAP_BLOCKS = 250  # left in a pipeline when the next one starts: a few seconds, or the stream would pause


def load_images(files: ImageSet, image_size: int, cache: ImageCache | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read, verify, decode and resize images.

    Args:
        files: n files.
        image_size: S, side in pixels.
        cache: of decoded images on this node.

    Returns:
        (n, S, S, 3) uint8, black where an image cannot be used; and (n,) text: the reason, or "".

    Raises:
        PermissionError, StorageUnavailableError: the storage cannot be read.
    """
    images = np.zeros((len(files), image_size, image_size, 3), np.uint8)
    bad = [""] * len(files)

    paths = files.paths.to_pylist()

    def load(place: int) -> None:
        if not paths[place]:
            return
        try:
            images[place] = cache.decode(files, place, image_size) if cache else files.decode(place, image_size)
        except InvalidImageError as error:
            bad[place] = str(error)

    files.map(load)
    return images, np.array(bad, str)


def load_block(files: ImageSet, image_size: int, cache: ImageCache | None = None) -> Block:
    """As `load_images`, for a Ray task: columns `image`, `bad` and `error`.

    With an exception, Ray Data would end the pipeline at once, and keep only its text.
    """
    try:
        (images, bad), error = load_images(files, image_size, cache), ""
    except OSError as failure:
        images = np.zeros((len(files), image_size, image_size, 3), np.uint8)
        bad, error = np.full(len(files), ""), encode_error(failure)
    return {"image": images, "bad": bad, "error": np.full(len(files), error)}


def encode_error(error: Exception) -> str:
    """An error as text for the column `error` of a block."""
    return f"{type(error).__name__}: {error}"


def raise_block_error(batch: Block, *kinds: type[Exception]) -> Block:
    """Return a block, or raise the error in its column `error`.

    Args:
        batch: of `load_block`, or made from one.
        kinds: further errors that it may contain.

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
    plan: BatchPlan,
    images: ImageSet,
    image_size: int,
    *,
    first: int = 0,
    num_cpus: float = 1.0,
    cache: ImageCache | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the images of every step of a plan, in order.

    Args:
        plan: the worker's plan.
        images: of every row of the manifest.
        image_size: S, side in pixels.
        first: index of the first step.
        num_cpus: CPUs that this pipeline may use at a time.
        cache: of decoded images on each node.
        say: takes one line where it cannot be written to any more.

    Yields:
        The result of `load_images` for the rows of the step, black where it is padded.

    Raises:
        PermissionError, StorageUnavailableError: as `load_images`, at the step that lacks its images.
    """
    block_rows = max(1, _BLOCK_BYTES // (image_size * image_size * 3))
    shared = ray.put(images)
    notes = {""}

    def batches(steps: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = plan.rows(steps)
        shared_rows = ray.put(rows)

        def decode_block(block: Block) -> Block:
            first = int(block["id"][0]) * block_rows
            files = ray.get(shared).select(ray.get(shared_rows)[first : first + block_rows])
            decoded = load_block(files, image_size, cache)
            return decoded | {"note": np.full(len(files), cache.failure if cache else "")}

        blocks = -(-len(rows) // block_rows)
        dataset = configure_dataset(ray.data.range(blocks, override_num_blocks=blocks), num_cpus)
        decoded = dataset.map_batches(decode_block, batch_size=None)
        decoded_blocks = decoded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        for batch in assemble_steps(decoded_blocks, plan.local_batch):
            for note in set(batch["note"]) - notes:
                notes.add(note)
                say(str(note))
            yield raise_block_error(batch)["image"], batch["bad"]

    steps = range(first, plan.num_steps)
    size = max(1, _SECTION_BLOCKS * block_rows // plan.local_batch)
    overlap = max(1, _OVERLAP_BLOCKS * block_rows // plan.local_batch)
    sections = [steps[start : start + size] for start in range(0, len(steps), size)]
    yield from chain_prefetched([(batches(section), len(section)) for section in sections], overlap)


def assemble_steps(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """Join and cut consecutive blocks to blocks of `rows` rows each; the last is shorter where rows are left."""
    parts: list[Block] = []
    missing = rows
    for block in blocks:
        first, count = 0, len(block["bad"])
        while first < count:
            last = min(count, first + missing)
            parts.append({name: column[first:last] for name, column in block.items()})
            first, missing = last, missing - (last - first)
            if missing == 0:
                yield _join(parts)
                parts, missing = [], rows
    if parts:
        yield _join(parts)


def _join(parts: Sequence[Block]) -> Block:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_WAIT_S = 0.02
"""How long Ray Data's control loop waits for all running tasks to end before it checks which have ended.

Its default of 0.1 s fits longer tasks: a CPU whose task has ended after 0.15 s is idle until the next check.
Decoding on two cores gave 1,230 images/s with it and 1,360 with this, for a twentieth of a core.
"""


class _IdleThrottle:
    """Lets the control loop of a pipeline sleep while it has nothing to do.

    With decoded blocks waiting for a slower consumer, Ray Data's loop does not block but spins: measured at 0.7 of a
    core, in the process that trains. A step of the loop that waited for a task takes longer than `_SPIN_S`.
    """

    _SPIN_S, _PAUSE_S, _MAX_PAUSE_S = _WAIT_S / 2, 0.005, 0.1

    def __init__(self) -> None:
        self._last, self._spins = 0.0, 0

    def __call__(self) -> None:
        """Sleep the longer, the more steps in a row were spins; a busy pipeline spins only once or twice."""
        self._spins = self._spins + 1 if time.perf_counter() - self._last < self._SPIN_S else 0
        time.sleep(min(self._MAX_PAUSE_S, self._PAUSE_S * self._spins))
        self._last = time.perf_counter()


def configure_dataset(dataset: Any, num_cpus: float | None) -> Any:
    """Configure a new Ray Data pipeline: ordered, with a share of the CPUs, without progress bars and messages.

    Args:
        dataset: new, with separate settings.
        num_cpus: CPUs that it may use at a time; None: all.
    """
    ahead = max(_AHEAD_BYTES, _BLOCKS_PER_CPU * _BLOCK_BYTES * math.ceil(num_cpus or 0))
    limits = ray.data.ExecutionResources(cpu=num_cpus, object_store_memory=ahead)
    settings = dataset.context
    settings.execution_options = ray.data.ExecutionOptions(preserve_order=True, resource_limits=limits)
    settings.enable_progress_bars = settings.print_on_execution_start = False
    call_at_each_step(settings, _IdleThrottle)
    set_data_poll_interval(_WAIT_S)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    mute_progress_notice()
    return dataset
