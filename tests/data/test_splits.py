import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import ConfigError
from pharmclf.data.splits import SPLITS, rare_classes, split_rows

NAMES = [f"class{number}" for number in range(10)]


@st.composite
def data_sets(draw):
    """Labels and groups: 2-6 classes of 12-60 rows, groups of 1-3 rows of one class."""
    labels, groups = [], []
    for name in NAMES[: draw(st.integers(2, 6))]:
        for size in draw(st.lists(st.integers(1, 3), min_size=12, max_size=30)):
            groups += [len(groups)] * size
            labels += [name] * size
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    return np.array(labels)[order], np.array(groups)[order]


def test_two_thousand_rows_split_exactly():
    """10 balanced classes of 200: 1280, 320 and 400, and 128, 32 and 40 in each class."""
    labels = np.repeat(NAMES, 200)
    splits = split_rows(labels, np.arange(2000), 0, 0.2, 0.2)
    assert Counter(splits.tolist()) == {"train": 1280, "validation": 320, "test": 400}
    for name in NAMES:
        assert Counter(splits[labels == name].tolist()) == {"train": 128, "validation": 32, "test": 40}


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.1, 0.2, 0.3]))
def test_every_row_has_one_split_and_no_group_is_torn(data, seed, test, validation):
    """Every row gets a split, groups stay whole, shares hold within a group's size per class, and it repeats."""
    labels, groups = data
    splits = split_rows(labels, groups, seed, test, validation)
    assert set(splits) == set(SPLITS)
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1
    for name in np.unique(labels):
        mine = splits[labels == name]
        want = round(test * len(mine))
        assert abs((mine == "test").sum() - want) <= 2
        assert abs((mine == "validation").sum() - validation * (mine != "test").sum()) <= 2.5
    assert np.array_equal(splits, split_rows(labels, groups, seed, test, validation))


def test_the_seed_decides():
    """Another seed, another split."""
    labels = np.repeat(NAMES, 30)
    one, two = (split_rows(labels, np.arange(300), seed, 0.2, 0.2) for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_a_group_across_labels_stays_whole():
    """Near copies under two labels share a split too."""
    labels = np.repeat(["a", "b"], 30)
    groups = np.arange(60)
    groups[35] = groups[3]
    for seed in range(10):
        splits = split_rows(labels, groups, seed, 0.2, 0.2)
        assert splits[35] == splits[3]


def test_three_images_are_enough_and_two_are_not():
    """A class of three gives one to each split; classes with fewer groups are named with their counts."""
    labels = ["a"] * 3 + ["b"] * 20
    assert set(split_rows(labels, np.arange(23), 0, 0.2, 0.2)[:3]) == set(SPLITS)
    with pytest.raises(ConfigError, match=r"a \(2\)"):
        split_rows(["a"] * 2 + ["b"] * 20, np.arange(22), 0, 0.2, 0.2)
    with pytest.raises(ConfigError, match=r"a \(2\)"):
        split_rows(labels, [0, 0, *range(2, 23)], 0, 0.2, 0.2)


def test_classes_of_few_different_images_are_counted_by_name():
    """Copies count once; a class whose rows are all given stays; what is left can be divided."""
    labels = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 2 + ["d"] * 9 + ["e"] * 2)
    groups = np.arange(53)
    groups[42:51] = [42, 42, 42, 43, 43, 43, 43, 43, 43]  # d: nine copies of two images
    chosen = np.array([""] * 51 + ["train", "test"])
    assert rare_classes(labels, groups, 3) == {"c": 2, "d": 2, "e": 2}
    assert rare_classes(labels, groups, 3, chosen) == {"c": 2, "d": 2}
    assert rare_classes(labels, groups, 21) == {"a": 20, "b": 20, "c": 2, "d": 2, "e": 2}
    assert rare_classes(labels, groups, 2) == {}
    kept = np.isin(labels, ["a", "b"])
    assert set(split_rows(labels[kept], groups[kept], 0, 0.2, 0.2)) == set(SPLITS)


def test_a_class_whose_images_are_copies_of_another_class_is_counted_by_what_is_its_own():
    """A group counts to the class of its first row; three groups of which one is another's are two."""
    labels = np.array(["a"] * 20 + ["b"] * 3)
    groups = np.arange(23)
    groups[20] = 4
    assert rare_classes(labels, groups, 3) == {"b": 2}


def test_splits_given_in_full_stay():
    """A list that settles every row is taken as it is, even for a class that stands in one split alone."""
    labels, chosen = ["a", "a", "a", "b"], ["train", "validation", "test", "test"]
    assert split_rows(labels, range(4), 0, 0.2, 0.2, chosen).tolist() == chosen


def test_a_test_split_given_is_complete():
    """Open rows are divided among train and validation alone, and follow the given rows of their group."""
    labels = np.repeat(["a", "b"], 50)
    chosen = np.array((["test"] * 5 + [""] * 45) * 2)
    groups = np.arange(100)
    groups[10] = groups[0]
    splits = split_rows(labels, groups, 0, 0.2, 0.2, chosen)
    assert np.flatnonzero(splits == "test").tolist() == [*range(5), 10, *range(50, 55)]
    assert (splits == "validation").sum() == 18


def test_training_rows_given_leave_the_rest_to_be_divided():
    """Rows given to train stay there; test and validation are drawn from the others, by the share of all."""
    labels = np.repeat(["a", "b"], 50)
    chosen = np.array((["train"] * 10 + [""] * 40) * 2)
    splits = split_rows(labels, np.arange(100), 0, 0.2, 0.2, chosen)
    assert (splits[chosen == "train"] == "train").all()
    assert Counter(splits.tolist()) == {"test": 20, "validation": 16, "train": 64}


def test_a_split_without_given_rows_is_drawn_from_the_train_rows_alone():
    """Copies that the list has put into test stay there, whole groups move, and a class of one group gives none."""
    labels = np.array(["a"] * 20 + ["b"] * 4)
    groups = np.array([*range(20), 20, 20, 20, 20])
    groups[10] = groups[0]  # copies, one in test and one in train
    groups[12:14] = 12
    chosen = np.array((["test"] * 10 + ["train"] * 10) + ["test", "train", "train", "train"])
    splits = split_rows(labels, groups, 0, 0.2, 0.2, chosen)
    assert (splits[chosen == "test"] == "test").all()
    assert (splits[chosen == "train"] != "test").all()
    assert (splits[10:20] == "validation").sum() == 2
    assert splits[12] == splits[13]
    assert (splits[21:] == "train").all()


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (["train", "test", "val"], "'val'"),
        (["train", "test", "validation-2"], "'validation-2'"),
        (["train", "test", "test"], "no image is given to validation, and none can be drawn from train"),
        (["validation", "test", "test"], "every image has a given split, but train has none"),
    ],
)
def test_given_splits_that_cannot_serve_are_refused(chosen, text):
    """A split of another name, or none at all for validation, is told with its remedy."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        split_rows(["a", "a", "b"], range(3), 0, 0.2, 0.2, chosen)


def test_the_splits_of_a_seed_are_those_of_earlier_versions():
    """300 classes with groups across classes, with and without given rows: digests of what they were."""
    rng = np.random.default_rng(7)
    labels = np.array([f"class_{n}" for n in rng.permutation(np.repeat(np.arange(300), 12))])
    groups = np.where(rng.random(3600) < 0.2, rng.integers(0, 3600, 3600), np.arange(3600))
    given = np.where(rng.random(3600) < 0.1, "train", "")
    for chosen, digest in ((None, "35af7cf4c95365f6"), (given, "8e0162fabff8b666")):
        text = "".join(split_rows(labels, groups, 3, 0.2, 0.15, chosen))
        assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)
