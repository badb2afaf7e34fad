"""Whether keeping activations pays: examples worked out by hand, and what must hold for any network and machine."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.feature_cache.cache_policy import (
    CacheDecision,
    PhaseDemand,
    ThroughputEstimate,
    bytes_per_image,
    decide_caching,
)
from pharmclf.models.backbone_split import SplitCost

# one forward pass over all images takes 12 s; 60 % of it lie before the cut of depth 1
COSTS = (SplitCost((10,), 100.0), SplitCost((10, 10), 60.0), SplitCost((100, 100, 3), 0.0))
ROWS = (100_000, 20_000)
MACHINES = ThroughputEstimate(work_per_s=1e6, decoded_per_s=1e9, bytes_per_s=1e12, free_bytes=1e12)
SMALL, LARGE = 2.4e6, 24e6  # bytes of the activations of all images at depth 0 and 1, in one view
HEAD, TOP = PhaseDemand("phase1", 0, 10), PhaseDemand("phase2", 1, 10)


def chosen(
    *phases: PhaseDemand, views: int = 1, dtype: str = "float16", kept: Any = (), **machines: float
) -> CacheDecision:
    choice = decide_caching(phases, COSTS, ROWS, views, dtype, dataclasses.replace(MACHINES, **machines), kept)
    assert "\n" not in choice.reason
    assert choice.reason.startswith("not ") == (not choice.phases)
    return choice


def test_a_wholly_trained_backbone_has_nothing_to_keep():
    """What would be kept is the images; the other phase keeps its own."""
    assert chosen(PhaseDemand("phase2", 2, 50)).phases == ()
    assert chosen(HEAD, PhaseDemand("phase2", 2, 10)).phases == ("phase1",)


def test_pictures_that_are_never_seen_again_are_not_kept():
    """Views of 0 are a new picture every epoch, however long the training and large the disk."""
    choice = chosen(PhaseDemand("phase1", 0, 1000), views=0)
    assert choice.phases == ()
    assert "augment.views is 0" in choice.reason


def test_one_epoch_is_streamed():
    """Each picture is computed once either way; the second epoch is the first that saves anything."""
    once = chosen(PhaseDemand("phase1", 0, 1))
    assert once.phases == ()
    assert "2.4 MB would not save time" in once.reason
    assert "0:12" in once.reason
    assert chosen(PhaseDemand("phase1", 0, 2)).phases == ("phase1",)


def test_more_views_than_epochs_do_not_pay():
    """Some pictures would be computed and never seen; with half as many, each is seen twice."""
    assert chosen(HEAD, views=12).phases == ()
    assert chosen(HEAD, views=5).phases == ("phase1",)


def test_two_phases_of_one_epoch_share_a_pass_over_the_images():
    """The images go through the frozen part once for both cuts."""
    assert chosen(PhaseDemand("phase1", 0, 1), PhaseDemand("phase2", 1, 1)).phases == ("phase1", "phase2")


def test_a_frozen_part_that_costs_nothing_does_not_pay():
    """Where the part that is trained takes nearly all of the time."""
    costs = (COSTS[0], SplitCost((10, 10), 5.0), COSTS[2])
    choice = decide_caching([TOP], costs, ROWS, 1, "float16", MACHINES)
    assert choice.phases == ()
    assert "24.0 MB would not save time" in choice.reason


def test_a_slow_storage_does_not_pay():
    """Reading the activations would take longer than computing them."""
    assert chosen(TOP, bytes_per_s=1e6).phases == ()
    assert chosen(TOP, bytes_per_s=1e9).phases == ("phase2",)


def test_both_phases_are_kept_where_both_pay():
    """10 epochs of 12 s and of 20 s; with activations 12 s once, nothing, and 10 of 12.8 s."""
    choice = chosen(HEAD, TOP)
    assert choice.phases == ("phase1", "phase2")
    assert all(text in choice.reason for text in ("phase1 and phase2", "26.4 MB", "2:20 instead of 5:20"))


def test_phases_with_the_same_cut_share_their_activations():
    """They are counted once, and fit where they fit once."""
    both = chosen(HEAD, dataclasses.replace(HEAD, name="phase2"), free_bytes=2 * SMALL)
    assert both.phases == ("phase1", "phase2")
    assert " 2.4 MB" in both.reason


@pytest.mark.parametrize(
    ("free_bytes", "phases"),
    [
        (2 * (SMALL + LARGE), ("phase1", "phase2")),
        (2 * (SMALL + LARGE) - 1, ("phase1",)),
        (2 * SMALL, ("phase1",)),
        (2 * SMALL - 1, ()),
        (0, ()),
    ],
)
def test_no_more_than_half_of_the_free_space_is_filled(free_bytes: float, phases: tuple[str, ...]):
    """Both phases, then the one that saves more of those that fit, then none: the reason names what was missing."""
    choice = chosen(HEAD, TOP, free_bytes=free_bytes)
    assert choice.phases == phases
    if not phases:
        assert "26.4 MB would fill more than half of the free " in choice.reason


def test_a_phase_that_fits_and_hardly_saves_is_not_kept():
    """The first phase is short beside the second, whose activations do not fit."""
    choice = chosen(HEAD, PhaseDemand("phase2", 1, 1000), free_bytes=2 * SMALL)
    assert choice.phases == ()
    assert "26.4 MB would fill more than half of the free 4.8 MB" in choice.reason


def test_more_space_may_change_one_phase_for_another():
    """Either fits and not both: the one that saves more is kept."""
    phases = PhaseDemand("phase1", 0, 20), PhaseDemand("phase2", 1, 100)
    kept = [chosen(*phases, free_bytes=2 * size).phases for size in (SMALL, LARGE, SMALL + LARGE)]
    assert kept == [("phase1",), ("phase2",), ("phase1", "phase2")]


def test_an_epoch_that_gains_nothing_weighs_against_keeping():
    """The saving is a share of the whole run: long training of the whole backbone makes it too small."""
    assert chosen(HEAD, PhaseDemand("phase2", 2, 10)).phases == ("phase1",)
    assert chosen(HEAD, PhaseDemand("phase2", 2, 1000)).phases == ()


def test_what_is_kept_already_costs_nothing_and_needs_no_space():
    """One epoch is enough then, and a full disk no reason against it."""
    once = PhaseDemand("phase1", 0, 1), PhaseDemand("phase2", 1, 1)
    assert chosen(once[0]).phases == chosen(once[1]).phases == ()
    assert chosen(*once, kept={0, 1}, free_bytes=0).phases == ("phase1", "phase2")
    assert chosen(*once, kept={1}, free_bytes=0).phases == ("phase2",)
    assert chosen(HEAD, TOP, kept={1}, free_bytes=2 * SMALL).phases == ("phase1", "phase2")


def test_float32_takes_twice_the_bytes():
    """And so the space in which float16 just fits is not enough."""
    for cost in COSTS:
        assert bytes_per_image(cost, "float32") == 2 * bytes_per_image(cost, "float16")
    assert bytes_per_image(COSTS[1], "float16") == 200
    assert " 2.4 MB:" in chosen(HEAD, free_bytes=2 * SMALL).reason
    assert "4.8 MB would fill more than half" in chosen(HEAD, dtype="float32", free_bytes=2 * SMALL).reason
    assert " 4.8 MB:" in chosen(HEAD, dtype="float32", free_bytes=4 * SMALL).reason


def test_a_validation_image_has_one_view():
    """3 views of 100,000 training images and 20,000 of validation, of 20 bytes each."""
    assert " 6.4 MB:" in chosen(HEAD, views=3).reason


@st.composite
def _cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `decide_caching` for any backbone of some blocks, two phases, and machines of any balance."""
    blocks = draw(st.integers(1, 4))
    works = sorted((draw(st.floats(1, 1e9)) for _ in range(blocks)), reverse=True)
    sizes = draw(st.lists(st.integers(1, 10**6), min_size=blocks + 1, max_size=blocks + 1))
    depths = draw(st.lists(st.integers(0, blocks), min_size=1, max_size=2))
    phases = [PhaseDemand(f"phase{n}", depth, draw(st.integers(1, 100))) for n, depth in enumerate(depths, 1)]
    return {
        "phases": phases,
        "costs": [SplitCost((size,), work) for size, work in zip(sizes, [*works, 0.0], strict=True)],
        "rows": (draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))),
        "views": draw(st.integers(1, 10)),
        "dtype": draw(st.sampled_from(["float16", "float32"])),
        "machines": ThroughputEstimate(
            work_per_s=draw(st.floats(1e6, 1e12)),
            decoded_per_s=draw(st.floats(10, 1e5)),
            bytes_per_s=draw(st.floats(1e6, 1e12)),
            free_bytes=draw(st.floats(0, 1e13)),
        ),
    }


_any_case = settings(deadline=None, max_examples=150)


@_any_case
@given(_cases(), st.sets(st.integers(0, 4)))
def test_a_choice_is_of_frozen_phases_and_fits(case: dict[str, Any], kept: set[int]):
    """What it adds fills half of the free space at most; the reason is one line and names bytes, if there are any."""
    choice = decide_caching(**case, kept=kept)
    frozen = [phase for phase in case["phases"] if case["costs"][phase.depth].work > 0]
    assert set(choice.phases) <= {phase.name for phase in frozen}
    added = {phase.depth for phase in frozen if phase.name in choice.phases} - kept
    pictures = case["rows"][0] * case["views"] + case["rows"][1]
    new_bytes = sum(bytes_per_image(case["costs"][depth], case["dtype"]) for depth in added) * pictures
    assert new_bytes <= case["machines"].free_bytes / 2
    assert "\n" not in choice.reason
    assert bool(re.search(r"\d [kMGT]?B\b", choice.reason)) == bool(frozen)


@_any_case
@given(_cases(), st.integers(2, 20))
def test_a_longer_run_is_not_kept_less(case: dict[str, Any], factor: int):
    """Where all phases are so many times as long, what paid still pays."""
    longer = [dataclasses.replace(phase, epochs=factor * phase.epochs) for phase in case["phases"]]
    assert not decide_caching(**case).phases or decide_caching(**case | {"phases": longer}).phases


@_any_case
@given(_cases(), st.floats(0, 1e13), st.sets(st.integers(0, 4)))
def test_more_space_does_not_end_the_keeping(case: dict[str, Any], more_bytes: float, kept: set[int]):
    """It may change the phase, but not from some to none."""
    larger = dataclasses.replace(case["machines"], free_bytes=case["machines"].free_bytes + more_bytes)
    assert (
        not decide_caching(**case, kept=kept).phases or decide_caching(**case | {"machines": larger}, kept=kept).phases
    )


@_any_case
@given(_cases(), st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_what_is_there_already_does_not_end_the_keeping(case: dict[str, Any], kept: set[int], more: set[int]):
    """Activations that others have left can only make it cheaper."""
    assert not decide_caching(**case, kept=kept).phases or decide_caching(**case, kept=kept | more).phases


@_any_case
@given(_cases(), st.sets(st.integers(0, 4)))
def test_float32_is_not_kept_where_float16_is_not(case: dict[str, Any], kept: set[int]):
    """Twice the bytes to write, to read and to hold."""
    half, full = (decide_caching(**case | {"dtype": dtype}, kept=kept).phases for dtype in ("float16", "float32"))
    assert half or not full


def test_a_choice_among_all_cuts_of_a_backbone_is_quick():
    """A sweep may ask for every cut: of so many the shallowest are kept that save time and fit."""
    blocks = 24
    costs = tuple(SplitCost((10 * (depth + 1),), 100.0 * (blocks - depth)) for depth in range(blocks + 1))
    phases = [PhaseDemand(f"{depth} blocks", depth, 10) for depth in range(blocks)]
    choice = decide_caching(phases, costs, ROWS, 1, "float16", MACHINES)
    assert choice.phases
    tight = dataclasses.replace(MACHINES, free_bytes=8 * SMALL)  # half of it: the cuts of 1, 2 and 3 sizes do not fit
    assert decide_caching(phases, costs, ROWS, 1, "float16", tight).phases in (
        (),
        ("0 blocks",),
        ("0 blocks", "1 blocks"),
    )
