"""Who trains and who tests: a pure function of labels, groups and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pharmclf.config import ConfigError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
"""The names of the splits, in the order in which they are reported."""
_DRAWN = (TEST, VALIDATION)


def split_rows(
    labels: Sequence[str] | ArrayLike,
    groups: Sequence[int] | ArrayLike,
    seed: int,
    test: float,
    validation: float,
    given: Sequence[str] | ArrayLike | None = None,
) -> NDArray[np.str_]:
    """Divide rows into train, validation and test, class by class; rows of one group are never torn apart.

    In each class the test split takes round(test x rows) rows and the validation split round(validation x rest), as
    near as whole groups allow, and at least one group each. A group counts to the class of its first row.

    Args:
        labels: the class of each row, (rows,).
        groups: the group of each row, (rows,) integers; a row alone has a group of its own.
        seed: decides which groups go where; the same seed gives the same splits.
        test: share of all rows in the test split, 0..1.
        validation: share of the remaining rows in the validation split, 0..1.
        given: the split of each row where it is settled already, "" where it is not; (rows,). Rows given stay as they
            are, even where they tear a group, and decide for the open rows of their group. A test or validation split
            that has rows given is complete: no others are drawn into it.

    Returns:
        (rows,) text: "train", "validation" or "test".

    Raises:
        ConfigError: a class without enough groups for the splits, a split of an unknown name, or rows given that
            leave a split empty.
    """
    labels_array, groups_array = np.asarray(labels).astype(str), np.asarray(groups)
    num_rows = len(labels_array)
    splits = np.full(num_rows, "", dtype="<U10")
    if given is not None:
        splits[:] = np.asarray(given).astype(str)
        _check_given(splits)
        if (splits != "").all():
            _check_complete(splits)
            return splits
    _, first_rows, group_of = np.unique(groups_array, return_index=True, return_inverse=True)
    settled = np.flatnonzero(splits != "")[::-1]
    split_of_group = np.full(len(first_rows), "", dtype="<U10")
    split_of_group[group_of[settled]] = splits[settled]  # written backwards: the first row given decides
    sizes = np.bincount(group_of, minlength=len(first_rows))
    class_of_group = labels_array[first_rows]
    shares = {name: share for name, share in ((TEST, test), (VALIDATION, validation)) if not (splits == name).any()}
    _check_enough(class_of_group, split_of_group, 1 + len(shares))
    rng = np.random.default_rng(seed)
    for name in np.unique(class_of_group):
        members = rng.permutation(np.flatnonzero(class_of_group == name))
        _split_class(members, sizes, split_of_group, shares)
    open_rows = splits == ""
    splits[open_rows] = split_of_group[group_of[open_rows]]
    return splits


def _split_class(
    members: NDArray[np.intp], sizes: NDArray[np.intp], split_of_group: NDArray[np.str_], shares: dict[str, float]
) -> None:
    """Settle the open groups of one class, in place.

    Args:
        members: the groups of the class, in random order.
        sizes: rows of each group.
        split_of_group: the split of each group, "" where it is open.
        shares: the splits that are drawn, each with its share of the rows that are left.
    """
    free = [int(group) for group in members if split_of_group[group] == ""]
    left = int(sizes[members][~np.isin(split_of_group[members], _DRAWN)].sum())
    for position, (name, share) in enumerate(shares.items()):
        most = max(0, len(free) - (len(shares) - position))  # one group stays for each split that comes after
        taken, free = _take(free, sizes, round(share * left), most)
        split_of_group[taken] = name
        left -= int(sizes[taken].sum())
    split_of_group[free] = TRAIN


def _take(free: list[int], sizes: NDArray[np.intp], rows: int, most: int) -> tuple[list[int], list[int]]:
    """Walk through the groups and take those that bring the number of rows nearer to `rows`.

    Args:
        free: groups in random order.
        sizes: rows of each group.
        rows: how many rows are wanted.
        most: take at most this many groups; at least one is taken where there are any (the smallest if none fits).

    Returns:
        The groups taken, and those left, in the same order.
    """
    taken: list[int] = []
    missing = rows
    for group in free:
        if len(taken) >= most or missing <= 0:
            break
        if abs(missing - sizes[group]) < missing:
            taken.append(group)
            missing -= int(sizes[group])
    if not taken and most > 0:
        taken = [min(free, key=lambda group: int(sizes[group]))]
    chosen = set(taken)
    return taken, [group for group in free if group not in chosen]


def _check_given(splits: NDArray[np.str_]) -> None:
    unknown = sorted(set(np.unique(splits)) - {"", *SPLITS})
    if unknown:
        raise ConfigError(
            f"split: received {', '.join(map(repr, unknown))}, expected train, validation, test or nothing. "
            "Correct the list's column 'split'"
        )


def _check_complete(splits: NDArray[np.str_]) -> None:
    missing = [name for name in SPLITS if not (splits == name).any()]
    if missing and len(splits):
        raise ConfigError(
            f"split: the list gives every row a split, but {' and '.join(missing)} no row. Leave the column 'split' "
            "empty where rows may be drawn into it, for example in the rows of train"
        )


def _check_enough(class_of_group: NDArray[np.str_], split_of_group: NDArray[np.str_], num_open: int) -> None:
    """Each class with open groups needs one for each of the splits that are drawn, train among them."""
    poor = []
    for name in np.unique(class_of_group):
        splits = split_of_group[class_of_group == name]
        free = int((splits == "").sum())
        needed = num_open - bool((splits == TRAIN).any())
        if 0 < free < needed:
            poor.append(f"{name} ({free})")
    if poor:
        shown = ", ".join(poor[:10]) + (f" and {len(poor) - 10} more" if len(poor) > 10 else "")
        raise ConfigError(
            f"classes with too few different images to split: {shown}; expected {num_open} or more in each, one for "
            "each split (copies of one picture count once). Add images, or leave these classes out"
        )
