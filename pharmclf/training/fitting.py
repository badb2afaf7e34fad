"""How many rows a device computes at once: the search for the most that fit, and the pieces of a share; pure."""

from __future__ import annotations

import math
import re
import signal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping

from pharmclf.core.errors import RunError, describe_exit

MARGIN = 0.1
"""A try computes this share more rows than it stands for."""
CPU_SHARE = 0.8
"""Of the free memory of a machine without a GPU, what its workers may take together; images are read there too."""
_PROBES = (8, 4)  # parts of a share, tried first where memory is measured
_DOUBT = 0.1  # how much more than likely is tried all the same: a size below may be half as large
_BUDGET_SHARE = 0.95  # of a GPU's memory; the rest lies in pieces too small for use
_CAP_ROWS = 1024
_CAP_BATCHES = 4
_MEMORY = re.compile(
    r"out.of.memory|\boom\b|resource.?exhausted|bad_alloc|cannot allocate memory|failed to (re)?alloc|alloc_failed"
    r"|could not allocate|unable to allocate|memory allocation",
    re.IGNORECASE,
)


class MicrobatchSearchError(RunError):
    """What fits could not be found out, and not for want of memory."""


def even_microbatch_size(rows: int, most: int) -> int:
    """Rows of each piece where a share is divided into as few pieces of at most so many rows as it takes.

    Args:
        rows: of the share.
        most: rows of a piece; 0: no bound.
    """
    return -(-rows // -(-rows // most)) if 0 < most < rows else rows


def with_safety_margin(rows: int) -> int:
    """Rows that a try computes for its claim that so many fit."""
    return rows + -(-rows * round(MARGIN * 100) // 100)


def max_candidate_rows(share: int, batch_size: int, *, gpu: bool) -> int:
    """The most rows that are tried: a GPU's limit is worth knowing beyond its share, a processor's is not."""
    return max(share, min(_CAP_BATCHES * batch_size, _CAP_ROWS)) if gpu else share


def candidate_sizes(share: int, cap: int) -> list[int]:
    """Sizes of which one is the answer, rising: below the share those that divide it evenly, above it its quarters."""
    below = {-(-share // pieces) for pieces in range(1, share + 1)}
    above = set(range(share, cap + 1, -(-share // 4)))
    return sorted(below | above)


def extrapolate_max_rows(taken: Mapping[int, int], budget: int) -> int | None:
    """The most rows that should fit, by the memory that some have taken: the line through the two largest numbers.

    Args:
        taken: rows -> bytes at most, of tries that fitted.
        budget: bytes that there are.

    Returns:
        0 or more; None: fewer than two are known, or the larger number took no more.
    """
    if len(taken) < 2:
        return None
    fewer, more = sorted(taken)[-2:]
    if taken[more] <= taken[fewer]:
        return None
    tried = with_safety_margin(more)
    each = (taken[more] - taken[fewer]) / (tried - with_safety_margin(fewer))
    return max(0, math.floor((tried + (_BUDGET_SHARE * budget - taken[more]) / each) / (1 + MARGIN)))


def largest_that_fits_by_memory(
    share: int, cap: int, fits: Callable[[int], bool], likely: Callable[[], int | None]
) -> int:
    """As `largest_that_fits`, where tries that fit tell of the memory that they took: fewer tries, and fewer that fail.

    On a GPU one that fails takes half a minute: TensorFlow waits for memory, and another process begins.

    Args:
        share: as there.
        cap: as there.
        fits: as there.
        likely: the most rows that should fit by the tries so far; None: not known.
    """
    sizes = candidate_sizes(share, cap)
    low, high = -1, len(sizes)
    for part in _PROBES:
        place = bisect_left(sizes, -(-share // part))
        if low < place < high:
            low, high = (place, high) if fits(sizes[place]) else (low, place)
    trusted = True
    while high - low > 1:
        place = (low + high) // 2
        if trusted and (rows := likely()) is not None:
            place = min(high, bisect_right(sizes, rows)) - 1
            if place <= low and sizes[low + 1] > (1 + _DOUBT) * rows:
                break  # what is larger should not fit
            place = max(place, low + 1)
        if fits(sizes[place]):
            low = place
        else:
            high, trusted = place, False  # memory in pieces, say
    return sizes[low] if low >= 0 else 0


def largest_that_fits(share: int, cap: int, fits: Callable[[int], bool]) -> int:
    """The largest of `candidate_sizes` that fits, found by doubling or halving from the share on, then by bisection.

    Where the share itself does not fit, no number of rows that does fit makes fewer pieces of it.

    Args:
        share: rows of one worker, 1 or more; they are tried first.
        cap: the most rows that are tried.
        fits: tries a size; whatever is smaller than one that fits is taken to fit too.

    Returns:
        A size that was tried and fits; 0: not even one row does.
    """
    sizes = candidate_sizes(share, cap)
    low, high = -1, len(sizes)  # places of what fits, and of what does not
    place = bisect_left(sizes, share)
    while low < place < high:
        if fits(sizes[place]):
            low = place
            if high == len(sizes):
                place = max(low + 1, bisect_right(sizes, 2 * sizes[low]) - 1)
        else:
            high = place
            if low < 0:
                place = min(high - 1, bisect_left(sizes, -(-sizes[high] // 2)))
    while high - low > 1:
        place = (low + high) // 2
        low, high = (place, high) if fits(sizes[place]) else (low, place)
    return sizes[low] if low >= 0 else 0


def format_result(phase: str, rows: int, share: int, cap: int) -> str:
    """What was found for a phase, in a line for the console.

    Args:
        phase: its name.
        rows: the most that fit.
        share: rows of one worker.
        cap: the most that were tried.
    """
    if rows < share:
        piece = even_microbatch_size(share, rows)
        pieces = f"{-(-share // piece)} pieces of {piece}"
        return f"{phase}: of {share} images a device holds {rows} at once: computed in {pieces}, the same steps"
    more = ""
    if rows > share:
        more = f"; the device could take {rows}" + (" or more" if rows >= cap - cap // 8 else "")
    return f"{phase}: {share} images fit the device at once{more}"


def is_oom_message(text: str) -> bool:
    """Whether an error says that memory ran out."""
    return _MEMORY.search(text) is not None


def classify_exit(code: int, errors: str, *, bounded: bool = False) -> str:
    """Why a process that tried died: "" for want of memory; else what is known of it.

    Args:
        code: that it ended with; -N: signal N.
        errors: what it wrote to standard error.
        bounded: whether the system refused it memory beyond a bound, which few libraries survive.
    """
    killed = code == -signal.SIGKILL or (bounded and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS))
    if killed or is_oom_message(errors):  # the kernel kills whom it lacks the memory for
        return ""
    return describe_exit(code, errors)


def min_over_nodes(found: list[Mapping[str, int]]) -> dict[str, int]:
    """The most rows of each phase that fit on every node."""
    return {phase: min(rows[phase] for rows in found) for phase in found[0]}
