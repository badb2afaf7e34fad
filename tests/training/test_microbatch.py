"""The search for what fits: over all limits, shares and caps; and what is read of a process that died."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.training.microbatch import (
    MARGIN,
    MicrobatchLimits,
    candidate_sizes,
    classify_exit,
    even_microbatch_size,
    extrapolate_max_rows,
    format_result,
    is_oom_message,
    largest_that_fits,
    max_candidate_rows,
    min_over_nodes,
    with_safety_margin,
)

shares = st.integers(1, 300) | st.integers(1, 65536)


def search(share: int, cap: int, limit: int) -> tuple[int, list[int]]:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= limit

    return largest_that_fits(share, cap, fits), tried


@given(shares, st.integers(0, 3000), st.data())
def test_what_is_found_was_tried_and_fits(share: int, beyond: int, data: st.DataObject):
    """No size comes out that did not fit when it was tried, and none is tried twice or above the cap."""
    limit = data.draw(st.integers(0, share + beyond + 10))
    found, tried = search(share, share + beyond, limit)
    assert found <= limit
    assert found in tried or found == 0
    assert len(tried) == len(set(tried))
    assert max(tried) <= share + beyond
    assert tried[0] == share


@given(shares, st.data())
def test_no_other_number_of_rows_that_fits_makes_fewer_pieces(share: int, data: st.DataObject):
    """Below its share a device is given as few pieces as any piece that fits would make; 0 only where none fits."""
    limit = data.draw(st.integers(0, share))
    found, _ = search(share, share, limit)
    if limit == 0:
        assert found == 0
    else:
        assert math.ceil(share / found) == math.ceil(share / limit)


@given(st.integers(1, 500), st.integers(0, 3000), st.data())
def test_above_the_share_the_limit_is_known_to_a_quarter_of_it(share: int, beyond: int, data: st.DataObject):
    """What a device could take is at least four fifths of what it can, or the largest size below the cap."""
    cap = share + beyond
    limit = data.draw(st.integers(share, cap + 10))
    found, _ = search(share, cap, limit)
    assert found == max(size for size in candidate_sizes(share, cap) if size <= limit)
    assert found + math.ceil(share / 4) > min(limit, cap)


@given(shares, st.integers(0, 3000), st.data())
def test_the_tries_are_few(share: int, beyond: int, data: st.DataObject):
    """Their number grows with the logarithm of the largest size."""
    limit = data.draw(st.integers(0, share + beyond))
    _, tried = search(share, share + beyond, limit)
    assert len(tried) <= 2 + 2 * math.log2(share + beyond + 1)


def test_an_ordinary_batch_takes_at_most_seven_tries():
    """64 rows on one device, whatever its limit."""
    assert max(len(search(64, 64, limit)[1]) for limit in range(65)) == 7
    assert search(64, 64, 64)[1] == [64]
    assert search(64, 256, 200) == (192, [64, 128, 256, 192, 224, 208])


def measured(share: int, cap: int, limit: int, fixed: int, each: int) -> tuple[int, list[int], int]:
    """A search on a device whose memory holds so many rows -> found, tried, tries that failed."""
    taken: dict[int, int] = {}
    tried: list[int] = []
    budget = math.ceil((fixed + each * with_safety_margin(limit)) / 0.95)

    def fits(rows: int) -> bool:
        tried.append(rows)
        if rows <= limit:
            taken[rows] = fixed + each * with_safety_margin(rows)
        return rows <= limit

    found = largest_that_fits(share, cap, fits, lambda: extrapolate_max_rows(taken, budget))
    return found, tried, sum(rows > limit for rows in tried)


@given(shares, st.integers(0, 3000), st.integers(0, 10**6), st.integers(1, 10**5), st.data())
def test_measured_memory_finds_what_fits_too(share: int, beyond: int, fixed: int, each: int, data: st.DataObject):
    """What comes out was tried and fits; where the share fits, the share or more comes out, but for rounding."""
    limit = data.draw(st.integers(0, share + beyond + 10))
    found, tried, _ = measured(share, share + beyond, limit, fixed, each)
    assert found <= limit
    assert found in tried or found == 0
    assert len(tried) == len(set(tried))
    assert max(tried) <= share + beyond
    assert found > 0 or limit < max(1, math.ceil(share / 8)) or limit == 0


@given(st.integers(64, 2048), st.integers(64, 4096), st.integers(0, 10**6), st.integers(100, 10**5))
def test_measured_memory_takes_few_tries_and_fewer_that_fail(share: int, limit: int, fixed: int, each: int):
    """Memory that grows by the row: the largest size that fits, or a tenth less, in six tries, of which one fails."""
    cap = 4 * share
    found, tried, failed = measured(share, cap, limit, fixed, each)
    best = max((size for size in candidate_sizes(share, cap) if size <= limit), default=0)
    if limit >= math.ceil(share / 4):
        assert found >= 0.9 * best - 1
        assert len(tried) <= 6
        assert failed <= 1


def test_memory_that_deceives_ends_in_the_search_by_halves():
    """Two tries that took nothing more, or promise too much, cost tries and no right result."""
    assert extrapolate_max_rows({10: 110, 20: 220}, 1000) == 86  # 95 rows, of which a tenth is margin
    assert extrapolate_max_rows({8: 100, 16: 100}, 1000) is None
    assert extrapolate_max_rows({8: 100}, 1000) is None
    assert extrapolate_max_rows({8: 100, 16: 2000}, 100) == 8
    assert largest_that_fits(64, 256, lambda rows: rows <= 40, lambda: 1000) == 32


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_pieces_are_even_and_no_larger_than_allowed(rows: int, most: int):
    """As few pieces as there can be, with less padding than there are pieces."""
    piece = even_microbatch_size(rows, most)
    pieces = math.ceil(rows / piece)
    if most == 0 or most >= rows:
        assert piece == rows
    else:
        assert piece <= most
        assert pieces <= math.ceil(rows / most)
        assert pieces * piece - rows < pieces


@given(st.integers(1, 70000))
def test_a_try_computes_a_tenth_more(rows: int):
    """Rounded up, so that one row is tried with two."""
    assert rows * (1 + MARGIN) <= with_safety_margin(rows) + 1e-6 < rows * (1 + MARGIN) + 1


def test_only_a_gpu_is_asked_what_it_could_take():
    """Up to four global batches, within bounds; a processor's share is tried and no more."""
    assert max_candidate_rows(64, 64, gpu=True) == 256
    assert max_candidate_rows(128, 512, gpu=True) == 1024
    assert max_candidate_rows(2000, 2000, gpu=True) == 2000
    assert max_candidate_rows(64, 64, gpu=False) == 64


def test_what_is_found_is_said_in_one_line():
    """The whole share, the whole share and more, and micro-batches."""
    whole = format_result("phase1", 64, 64, 64)
    assert whole.startswith("phase1: 64 images")
    assert format_result("phase1", 192, 64, 256).startswith(whole)
    assert format_result("phase1", 192, 64, 256).endswith(" 192")
    assert format_result("phase1", 256, 64, 256).endswith(" 256 or more")
    line = format_result("phase2", 22, 64, 64)
    assert line.startswith("phase2: 22 of 64 images")
    assert "3 micro-batches of 22" in line


@pytest.mark.parametrize(
    "text",
    [
        "OOM when allocating tensor with shape[64,112,112,64] and type float on /job:localhost/GPU:0",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes",
        "failed to allocate 2.00GiB from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_errors_of_memory_are_known(text: str):
    """In the words of TensorFlow, of CUDA, of cuDNN, of C++ and of the system."""
    assert is_oom_message(text)
    assert classify_exit(-6, text) == ""


def test_other_deaths_are_told():
    """A process that the kernel killed lacked memory; another signal or code is an error, with its last words."""
    assert classify_exit(-9, "") == ""
    assert classify_exit(-11, "") == "signal SIGSEGV"
    assert classify_exit(-11, "", bounded=True) == classify_exit(-6, "", bounded=True) == ""
    assert classify_exit(1, "", bounded=True) == "exit code 1"
    assert classify_exit(1, "Traceback\nModuleNotFoundError: No module named 'x'\n\n") == (
        "exit code 1: ModuleNotFoundError: No module named 'x'"
    )
    assert not is_oom_message("the room is zoomed, and the loom is broken")


def test_of_several_nodes_the_smallest_decides():
    """For each phase by itself."""
    limits = [
        MicrobatchLimits("A100", 256, {"phase1": 64, "phase2": 16}),
        MicrobatchLimits("T4", 64, {"phase1": 32, "phase2": 22}),
    ]
    assert min_over_nodes(limits) == MicrobatchLimits("A100, T4", 64, {"phase1": 32, "phase2": 16})
