"""The largest micro-batch that fits: which sizes are tried, and what their results mean; pure."""

from __future__ import annotations

import math
import re
import signal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from pharmclf.core.errors import RunError, describe_exit

MARGIN = 0.1
"""A probe computes more rows than the size that it tries, by this share."""
_GPU_SHARE = 0.95  # of a GPU's free memory; the rest is lost to fragmentation
_MEASURED_PARTS = (8, 4)  # the share is divided by these for the first probes where memory is measured
_DOUBT = 0.1  # a size is tried even if it exceeds the prediction by this share: the next smaller one may be half of it
_CAP_ROWS = 1024
_CAP_BATCHES = 4
_OOM = re.compile(
    r"out.of.memory|\boom\b|resource.?exhausted|bad_alloc|cannot allocate memory|failed to (re)?alloc|alloc_failed"
    r"|could not allocate|unable to allocate|memory allocation",
    re.IGNORECASE,
)


class MicrobatchSearchError(RunError):
    """The search failed for another reason than memory."""


class MicrobatchRecord(TypedDict):
    """The micro-batches of a run in `run.json`."""

    found: bool
    """Whether a search has found them."""
    memory_limit_mb: int
    """PHARMCLF_DEVICE_MEMORY_MB at the time; 0: none."""
    rows: dict[str, int]
    """By name of the phase; a phase that computes a worker's share at once is left out."""


@dataclass(frozen=True)
class ProbeDevice:
    """The device of a probe process."""

    name: str
    gpu: bool
    memory_bytes: int
    """Free memory of the GPU; 0: unknown, or no GPU."""


@dataclass(frozen=True)
class MicrobatchLimits:
    """The largest micro-batches that fit on a device."""

    device: str
    cap: int
    """Largest size that the search may try."""
    rows: dict[str, int]
    """By name of the phase; 0 where not one row fits."""


def min_over_nodes(limits: Sequence[MicrobatchLimits]) -> MicrobatchLimits:
    """What fits on every node."""
    return MicrobatchLimits(
        ", ".join(sorted({node.device for node in limits})),
        min(node.cap for node in limits),
        {phase: min(node.rows[phase] for node in limits) for phase in limits[0].rows},
    )


def even_microbatch_size(rows: int, most: int) -> int:
    """Rows of a micro-batch where a share is divided into the fewest micro-batches of about equal size.

    Args:
        rows: of the share.
        most: rows of a micro-batch; 0: no bound.
    """
    return -(-rows // -(-rows // most)) if 0 < most < rows else rows


def with_safety_margin(rows: int) -> int:
    """Rows that a probe computes to prove that a size fits."""
    return rows + -(-rows * round(MARGIN * 100) // 100)


def max_candidate_rows(share: int, batch_size: int, *, gpu: bool) -> int:
    """The largest size that is tried: beyond the share on a GPU only, where the limit is worth knowing."""
    return max(share, min(_CAP_BATCHES * batch_size, _CAP_ROWS)) if gpu else share


def candidate_sizes(share: int, cap: int) -> list[int]:
    """Sizes to choose from, ascending: even divisions of the share, then steps of a quarter of it up to the cap."""
    divisions = {-(-share // pieces) for pieces in range(1, share + 1)}
    return sorted(divisions | set(range(share, cap + 1, -(-share // 4))))


def extrapolate_max_rows(taken: Mapping[int, int], budget: int) -> int | None:
    """The most rows that should fit, on the line through the memory of the two largest sizes measured.

    Args:
        taken: size -> peak memory in bytes, of probes that fit.
        budget: free memory in bytes.

    Returns:
        0 or more; None: fewer than two sizes are measured, or the larger one took no more memory.
    """
    if len(taken) < 2:
        return None
    fewer, more = sorted(taken)[-2:]
    if taken[more] <= taken[fewer]:
        return None
    computed = with_safety_margin(more)
    bytes_per_row = (taken[more] - taken[fewer]) / (computed - with_safety_margin(fewer))
    return max(0, math.floor((computed + (_GPU_SHARE * budget - taken[more]) / bytes_per_row) / (1 + MARGIN)))


def largest_that_fits(
    share: int, cap: int, fits: Callable[[int], bool], predict: Callable[[], int | None] | None = None
) -> int:
    """The largest of `candidate_sizes` that fits, found by doubling or halving from the share, then by bisection.

    If the share does not fit, no other size that fits makes fewer micro-batches of it. With `predict`, two small parts
    of the share are measured first, and predicted sizes are tried until one fails. This saves probes that fail: on a
    GPU each takes half a minute, because TensorFlow waits for memory and the process starts again.

    Args:
        share: rows of one worker, 1 or more.
        cap: the largest size that is tried.
        fits: tries a size; whatever is smaller than one that fits is assumed to fit too.
        predict: the most rows that should fit according to the probes so far; None: unknown.

    Returns:
        A size that was tried and fits; 0: not even one row does.
    """
    sizes = candidate_sizes(share, cap)
    low, high = -1, len(sizes)  # indices of the largest size that fits and of the smallest that does not

    def narrow(index: int) -> tuple[int, int]:
        return (index, high) if fits(sizes[index]) else (low, index)

    for part in _MEASURED_PARTS if predict else (1,):
        index = bisect_left(sizes, -(-share // part))
        if low < index < high:
            low, high = narrow(index)
    while high - low > 1:
        rows = predict() if predict else None
        if rows is None:
            index = _next_index(sizes, low, high)
        else:
            index = min(high, bisect_right(sizes, rows)) - 1
            if index <= low and sizes[low + 1] > (1 + _DOUBT) * rows:
                break
            index = max(index, low + 1)
        low, high = narrow(index)
        if low != index:  # the prediction is wrong, for example because memory is fragmented
            predict = None
    return sizes[low] if low >= 0 else 0


def _next_index(sizes: Sequence[int], low: int, high: int) -> int:
    """Index of the size to try next: doubled until one fails, halved until one fits, then the middle."""
    if low < 0:
        return min(high - 1, bisect_left(sizes, -(-sizes[high] // 2)))
    if high == len(sizes):
        return max(low + 1, bisect_right(sizes, 2 * sizes[low]) - 1)
    return (low + high) // 2


def format_result(phase: str, rows: int, share: int, cap: int) -> str:
    """The result for a phase, as a line for the console.

    Args:
        rows: the largest size that fits.
        share: rows of one worker.
        cap: the largest size that could be tried.
    """
    if rows < share:
        size = even_microbatch_size(share, rows)
        split = f"{-(-share // size)} micro-batches of {size}, the optimizer steps stay the same"
        return f"{phase}: {rows} of {share} images fit on the device at once: {split}"
    more = f"; the device could hold {rows}" + (" or more" if rows >= cap - cap // 8 else "")
    return f"{phase}: {share} images fit on the device at once{more if rows > share else ''}"


def is_oom_message(text: str) -> bool:
    """Whether an error message says that memory ran out."""
    return _OOM.search(text) is not None


def classify_exit(code: int, stderr: str, *, bounded: bool = False) -> str:
    """Why a probe process died: "" if memory ran out; else a description.

    Args:
        code: its return code; -N: signal N.
        stderr: what it wrote to standard error.
        bounded: whether its memory was limited, which few libraries survive.
    """
    killed = code == -signal.SIGKILL or (bounded and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS))
    return "" if killed or is_oom_message(stderr) else describe_exit(code, stderr)
