"""Stratified, group-aware split into train, validation and test. Pure."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_examples

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
"""The names of the splits, in the order of reports."""
_DRAWN_SPLITS = (TEST, VALIDATION)


def split_rows(
    labels: ArrayLike, groups: ArrayLike, seed: int, test: float, validation: float, given: ArrayLike | None = None
) -> NDArray[np.str_]:
    """Divide rows into train, validation and test, class by class; rows of one group stay together.

    In each class the test split takes round(test x rows) rows and the validation split round(validation x rest), as
    near as whole groups allow, and at least one group each. A group counts to the class of its first row.

    Args:
        labels: the class of each row, (rows,).
        groups: the group of each row, (rows,) integers; a row without copies has a unique one.
        seed: decides which groups go where; the same seed gives the same splits.
        test: share of all rows in the test split, 0..1.
        validation: share of the remaining rows in the validation split, 0..1.
        given: the given split of each row, or ""; (rows,). Given rows keep their split, even where that divides a
            group, and decide for the open rows of their group. A test or validation split with given rows is complete:
            no others are drawn into it. Where every row is given and none to test or none to validation, that split is
            drawn from the rows of train, without classes whose train rows are one group.

    Returns:
        (rows,) text: "train", "validation" or "test".

    Raises:
        ConfigError: a class without enough groups for the splits, a split of an unknown name, or given rows that
            leave a split empty.
    """
    labels_array, groups_array = np.asarray(labels).astype(str), np.asarray(groups)
    num_rows = len(labels_array)
    splits = _given_splits(num_rows, given)
    shares = {name: share for name, share in ((TEST, test), (VALIDATION, validation)) if not (splits == name).any()}
    if num_rows and (splits != "").all():
        train = np.flatnonzero(splits == TRAIN)
        splits[train] = _draw_splits(
            labels_array[train], groups_array[train], np.full(len(train), "", "<U10"), seed, shares
        )
        _check_complete(splits)
        return splits
    class_of_group, split_of_group = _group_splits(labels_array, groups_array, splits)
    _check_num_groups(class_of_group, split_of_group, 1 + len(shares))
    return _draw_splits(labels_array, groups_array, splits, seed, shares)


def rare_classes(
    labels: ArrayLike, groups: ArrayLike, min_images: int, given: ArrayLike | None = None
) -> dict[str, int]:
    """Classes with too few different images, where copies of one image count once, to be divided.

    Args:
        labels, groups, given: of each row, as in `split_rows`. A class whose rows are all given is not divided.
        min_images: fewer different images are too few.

    Returns:
        The number of different images of each such class, by name.
    """
    labels_array, groups_array = np.asarray(labels).astype(str), np.asarray(groups)
    splits = _given_splits(len(labels_array), given)
    open_classes = np.unique(labels_array[splits == ""])
    num_different = pd.Series(groups_array).groupby(labels_array).nunique()
    num_groups = Counter(_group_splits(labels_array, groups_array, splits)[0].tolist())  # of two classes: of one only
    needed = 1 + sum(not (splits == name).any() for name in _DRAWN_SPLITS)
    counts = {}
    for name in open_classes.tolist():
        counts[name] = int(num_different[name])
        if 0 < num_groups[name] < needed <= min_images:
            counts[name] = min(counts[name], num_groups[name])
    return {name: count for name, count in counts.items() if count < min_images}


def _given_splits(num_rows: int, given: ArrayLike | None) -> NDArray[np.str_]:
    splits = np.broadcast_to(np.asarray("" if given is None else given).astype(str), num_rows)
    if unknown := sorted(set(np.unique(splits)) - {"", *SPLITS}):
        raise ConfigError(
            f"split: received {', '.join(map(repr, unknown))}, expected train, validation, test or nothing. "
            "Correct the list's column 'split'"
        )
    return splits.astype("<U10")


def _group_splits(
    labels: NDArray[np.str_], groups: NDArray[np.integer], splits: NDArray[np.str_]
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """The class of each group, sorted by its number, and its split, "" where it is open."""
    _, first_rows, group_of = np.unique(groups, return_index=True, return_inverse=True)
    given = np.flatnonzero(splits != "")[::-1]
    split_of_group = np.full(len(first_rows), "", dtype="<U10")
    split_of_group[group_of[given]] = splits[given]  # assigned backwards: the first given row decides
    return labels[first_rows], split_of_group


def _groups_by_class(class_of_group: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    """The groups of each class, ascending; classes in the order of their names."""
    names, codes = np.unique(class_of_group, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))[:-1]
    return dict(zip(names.tolist(), np.split(order, ends), strict=False))  # no class: one empty part


def _draw_splits(
    labels: NDArray[np.str_],
    groups: NDArray[np.integer],
    splits: NDArray[np.str_],
    seed: int,
    shares: dict[str, float],
) -> NDArray[np.str_]:
    """Draw the splits of open rows, in which `splits` is "", by groups and class by class -> splits of all rows."""
    class_of_group, split_of_group = _group_splits(labels, groups, splits)
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of, minlength=len(split_of_group))
    rng = np.random.default_rng(seed)
    for groups_of_class in _groups_by_class(class_of_group).values():
        _split_class(rng.permutation(groups_of_class), sizes, split_of_group, shares)
    return np.where(splits == "", split_of_group[group_of], splits)


def _split_class(
    class_groups: NDArray[np.intp], sizes: NDArray[np.intp], split_of_group: NDArray[np.str_], shares: dict[str, float]
) -> None:
    """Assign the open groups of one class, in place; `shares` are of the rows that are left."""
    free = [int(group) for group in class_groups if split_of_group[group] == ""]
    left = int(sizes[class_groups][~np.isin(split_of_group[class_groups], _DRAWN_SPLITS)].sum())
    for position, (name, share) in enumerate(shares.items()):
        most = max(0, len(free) - (len(shares) - position))  # one group stays for each split that comes after
        taken, free = _assign(free, sizes, round(share * left), most)
        split_of_group[taken] = name
        left -= int(sizes[taken].sum())
    split_of_group[free] = TRAIN


def _assign(free: list[int], sizes: NDArray[np.intp], rows: int, most: int) -> tuple[list[int], list[int]]:
    """Take the groups that bring the number of rows nearer to `rows`, at most `most` of them -> taken, left.

    At least one is taken, the smallest if none fits.
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


def _check_complete(splits: NDArray[np.str_]) -> None:
    missing = [name for name in SPLITS if not (splits == name).any()]
    if TRAIN in missing:
        raise ConfigError(
            f"split: every image has a given split, but {' and '.join(missing)} has none. Give train the images to "
            "learn from, or leave the list's column 'split' empty where images may be divided"
        )
    if missing:
        raise ConfigError(
            f"split: no image is given to {' and '.join(missing)}, and none can be drawn from train, since the train "
            "images of each class are copies of one image. Give some images that split"
        )


def _check_num_groups(class_of_group: NDArray[np.str_], split_of_group: NDArray[np.str_], num_open: int) -> None:
    """Refuse classes with fewer open groups than splits to draw, including train."""
    poor = []
    for name, groups_of_class in _groups_by_class(class_of_group).items():
        splits = split_of_group[groups_of_class]
        free = int((splits == "").sum())
        needed = num_open - bool((splits == TRAIN).any())
        if 0 < free < needed:
            poor.append(f"{name} ({free})")
    if poor:
        shown = format_examples(poor, 10)
        raise ConfigError(
            f"classes with too few different images to split: {shown}; expected {num_open} or more in each, one for "
            f"each split (copies of one image count once). Add images, leave these classes out with --min-images "
            f"{num_open}, or give a list whose column split says where each row belongs"
        )
