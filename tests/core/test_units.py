"""Sizes, durations, ages, counts and shares are written in one way, and read back from what people write."""

from __future__ import annotations

import math
import re

import pytest

from pharmclf.config import ConfigError, RunConfig
from pharmclf.core.units import (
    format_age,
    format_count,
    format_duration,
    format_examples,
    format_memory,
    format_price,
    format_size,
    parse_duration,
    parse_share,
    parse_size,
    price_of,
)

DAY_S = 86400.0


def test_a_price_is_that_of_the_hours_with_digits_enough_to_be_seen():
    """Without a price per hour there is none."""
    assert price_of(5400, 2.0) == 3.0
    assert price_of(5400, 0.0) is None
    assert [format_price(3.0), format_price(0.0123), format_price(0.0123, largest=3.0)] == ["3.00", "0.0123", "0.01"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_940, "999.9 kB"), (999_960, "1.0 MB"), (5e7, "50.0 MB"),
        (2.04e9, "2.0 GB"), (1.5e12, "1.5 TB"),
    ],
)  # fmt: skip
def test_sizes_of_files_are_decimal(size: float, text: str):
    """With one decimal place."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 MiB"), (64 << 20, "64 MiB"), (1 << 30, "1.0 GiB"), (5 << 29, "2.5 GiB"), (80 << 30, "80.0 GiB"),
        (256 << 30, "256 GiB"), (2 << 40, "2.0 TiB"),
    ],
)  # fmt: skip
def test_sizes_of_memory_are_binary(size: float, text: str):
    """As nvidia-smi and the kernel count them."""
    assert format_memory(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"), (42.4, "0:42"), (59.6, "1:00"), (192, "3:12"), (3792, "1:03:12"), (176592, "2d 01:03:12"),
        (None, "-:--"), (math.nan, "-:--"), (math.inf, "-:--"), (-1, "-:--"),
    ],
)  # fmt: skip
def test_durations_read_like_a_clock(seconds: float | None, text: str):
    """Minutes and seconds, hours and days where needed, and dashes where unknown."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("age_s", "text"),
    [(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (90 * DAY_S, "90 d")],
)
def test_an_age_is_given_in_its_largest_unit(age_s: float, text: str):
    """Rounded down; a clock that is ahead gives 0."""
    assert format_age(age_s) == f"{text} ago"


def test_a_number_and_its_noun_agree():
    """One image, and several of everything else."""
    counts = [format_count(number, "image") for number in (0, 1, 2, 1234)]
    assert counts == ["0 images", "1 image", "2 images", "1,234 images"]
    assert format_count(3, "class") == "3 classes"


def test_of_many_names_the_first_are_given_and_the_others_counted():
    """Up to the limit all are given."""
    assert format_examples([]) == ""
    assert format_examples(["a", "b"], 2) == "a, b"
    assert format_examples(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert format_examples(["x"] * 2000, 1, "; ") == "x and 1,999 more"


DURATIONS = {
    "30d": 30 * DAY_S, "12h": 43200.0, "45min": 2700.0, "10m": 600.0, "90s": 90.0, "1.5h": 5400.0, " 2 d ": 2 * DAY_S,
    "0s": 0.0, "10 min": 600.0,
}  # fmt: skip


def test_durations_have_one_grammar():
    """Whatever setting they are given for; a number without a unit is seconds where that is allowed."""
    assert {text: parse_duration(text, "x") for text in DURATIONS} == DURATIONS
    assert {text: parse_duration(text, "x", plain_seconds=True) for text in DURATIONS} == DURATIONS
    assert {text: RunConfig(node_timeout=text).node_timeout_s for text in DURATIONS} == DURATIONS
    assert [parse_duration(text, "x", plain_seconds=True) for text in ("90", "0", "1.5")] == [90.0, 0.0, 1.5]


def test_sizes_are_read():
    """Whole numbers and others, with their unit; 0 is one."""
    sizes = {"20GB": 20e9, "500MB": 5e8, "1.5TB": 1.5e12, "64kB": 64e3, "0GB": 0.0, "2 GB": 2e9}
    assert {text: parse_size(text, "x") for text in sizes} == sizes


@pytest.mark.parametrize(
    "bad",
    [
        "", "{0}", "-3{0}", "+3{0}", "nan", "nan{0}", "inf", "inf{0}", "1e3{0}", "3{0}{0}", "3 {0} ago", ".5{0}",
        "3,5{0}", "3x", "٣{0}", "1:30", "9" * 400 + "{0}",
    ],
)  # fmt: skip
def test_other_durations_and_sizes_are_refused(bad: str):
    """With the setting, what was received, what is expected, and how to write it."""
    message = r"{}: received '.*', expected a {}: .*{}\. Write it as {}"
    for plain in (False, True):
        with pytest.raises(ConfigError, match=message.format("--age", "duration", "d, h, min, m, s", "90s, 10m")):
            parse_duration(bad.format("d"), "--age", plain_seconds=plain)
    with pytest.raises(ConfigError, match=message.format("--to", "size", "TB, GB, MB, kB", "500MB, 20GB")):
        parse_size(bad.format("GB"), "--to")


@pytest.mark.parametrize("text", ["30", "3D", "3M", "3H", "20GB", "30\nd"])
def test_units_of_durations_are_exact(text: str):
    """Neither another case, nor a size, nor a number without a unit where none is allowed."""
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_duration(text, "--age")


@pytest.mark.parametrize("text", ["20", "3Gb", "3g", "3GiB", "3d"])
def test_units_of_sizes_are_exact(text: str):
    """A gigabit is no gigabyte."""
    with pytest.raises(ConfigError, match=text):
        parse_size(text, "--to")


@pytest.mark.parametrize(
    ("text", "expected"), [("1%", 0.01), ("0.01", 0.01), ("20 %", 0.2), ("0", 0), ("100%", 1), ("1", 1), ("1e-2", 0.01)]
)
def test_shares_are_percent_or_plain(text: str, expected: float):
    """1% and 0.01 are the same."""
    assert parse_share(text, "max_invalid") == RunConfig(max_invalid=text).max_invalid_share == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "%", "x", "nan", "inf", "-1%", "101%", "1.1", "1 in 100"])
def test_other_shares_are_refused(text: str):
    """Nothing outside 0..1, and nothing that is no number."""
    with pytest.raises(ConfigError, match=r"--x: .*expected a share from 0 to 1\. Write it as 1% or 0\.01"):
        parse_share(text, "--x")
