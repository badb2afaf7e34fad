"""Columns of a table stand below one another in a terminal, in any script."""

from __future__ import annotations

import pytest

from pharmclf.core.tables import align_columns, display_width

ROWS = [("name", "images", "state"), ("a", "1,000", "ok"), ("longer", "2", "")]


def test_a_column_is_as_wide_as_its_longest_text():
    """All to the left where nothing else is said; no line ends in a space."""
    assert align_columns(ROWS) == ["name    images  state", "a       1,000   ok", "longer  2"]


@pytest.mark.parametrize(
    ("left", "lines"),
    [
        ([0], ["name    images  state", "a        1,000     ok", "longer       2"]),
        ([-1], ["  name  images  state", "     a   1,000  ok", "longer       2"]),
        ([0, -1], ["name    images  state", "a        1,000  ok", "longer       2"]),
        ([], ["  name  images  state", "     a   1,000     ok", "longer       2"]),
    ],
)
def test_columns_are_aligned_to_the_side_that_is_asked_for(left: list[int], lines: list[str]):
    """Named columns to the left, the others to the right; -1 is the last one."""
    assert align_columns(ROWS, left=left) == lines


def test_a_table_without_rows_has_no_lines():
    """Whatever its alignment."""
    assert align_columns([], left=[0]) == []


def test_rows_of_different_lengths_are_refused():
    """A cell that is missing would shift the others."""
    with pytest.raises(ValueError, match="shorter"):
        align_columns([("a", "b"), ("x",)])


def test_wide_and_combining_characters_count_as_the_terminal_shows_them():
    """Chinese takes two columns a character, a combining accent none."""
    assert [display_width(text) for text in ("abc", "阿司匹林", "e\u0301")] == [3, 8, 1]
    assert align_columns([("阿司", "1"), ("e\u0301x", "2")]) == ["阿司  1", "e\u0301x    2"]
