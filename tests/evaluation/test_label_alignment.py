"""Labels of a set against those of a model: equal or not, the nearest suggested."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import ConfigError
from pharmclf.evaluation.label_alignment import align_labels

KNOWN = ["Amoxil 500", "ibuprofen", "zocor", "aspirin"]


def test_labels_are_sorted_into_known_unknown_and_lacking():
    """Known and lacking ones in the model's order, unknown ones by their number of images."""
    match = align_labels({"zocor": 3, "xanax": 2, "Amoxil 500": 1, "paracetamol": 7}, KNOWN)
    assert match.known == ("Amoxil 500", "zocor")
    assert list(match.unknown.items()) == [("paracetamol", 7), ("xanax", 2)]
    assert match.lacking == ("ibuprofen", "aspirin")
    assert match.suggestions == {}
    assert match.notes() == [
        "9 images are left out: the model does not know 2 labels paracetamol (7), xanax (2)",
        "no image of 2 of the model's 4 classes: ibuprofen, aspirin",
    ]


def test_equal_labels_leave_nothing_to_say():
    """All classes of the model and no other: no note."""
    assert align_labels(dict.fromkeys(KNOWN, 1), KNOWN).notes() == []


@pytest.mark.parametrize(
    ("label", "meant"),
    [
        ("amoxil_500", "Amoxil 500"), ("AMOXIL-500", "Amoxil 500"), (" amoxil 500", "Amoxil 500"),
        ("Zocor", "zocor"), ("iboprofen", "ibuprofen"), ("asprin", "aspirin"), ("xanax", None), ("_", None),
    ],
)  # fmt: skip
def test_the_nearest_class_is_suggested_and_never_taken(label, meant):
    """Case, spaces, underscores and slips of spelling: the note asks, and the images are left out all the same."""
    match = align_labels({label: 1, "zocor": 5}, KNOWN)
    assert match.unknown == {label: 1}
    assert match.known == ("zocor",)
    assert match.suggestions == ({label: meant} if meant else {})
    note = match.notes()[0]
    assert note.startswith("1 image is left out: the model does not know the label ")
    assert ("did you mean" in note) == bool(meant)
    assert meant is None or f"did you mean {meant}?" in note


def test_no_known_label_is_refused_with_both_sides():
    """Folders named otherwise throughout: what was received and what is known stand in the message."""
    with pytest.raises(ConfigError) as caught:
        align_labels({"IBUPROFEN": 4, "xanax": 1}, KNOWN)
    message = str(caught.value)
    assert "received IBUPROFEN (4; did you mean ibuprofen?), xanax (1), expected some of the model's 4" in message
    assert "classes: Amoxil 500, ibuprofen, zocor, aspirin. Name the folders" in message
    with pytest.raises(ConfigError, match="received none"):
        align_labels({}, KNOWN)


def test_long_lists_are_cut():
    """Of a thousand labels twenty are named, and the others counted."""
    match = align_labels({f"other {number:04}": 1 for number in range(1000)} | {"zocor": 1}, KNOWN)
    note = match.notes()[0]
    assert note.startswith("1,000 images are left out: the model does not know 1,000 labels other 0000 (1), ")
    assert note.endswith(" and 980 more")
    assert "other 0019" in note
    assert "other 0020" not in note


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from([*KNOWN, "zocor ", "Zocor", "x", ""]), st.integers(0, 5)))
def test_every_image_is_scored_or_named(counts):
    """Known and unknown labels together are all with images; known and lacking ones together are the classes."""
    try:
        match = align_labels(counts, KNOWN)
    except ConfigError:
        assert not any(counts.get(name) for name in KNOWN)
        return
    assert sorted([*match.known, *match.unknown]) == sorted(label for label, count in counts.items() if count)
    assert [name for name in KNOWN if name in {*match.known, *match.lacking}] == KNOWN
    assert not {*match.known} & {*match.lacking}
    assert sum(match.unknown.values()) == sum(count for label, count in counts.items() if label not in KNOWN)
