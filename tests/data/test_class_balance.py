"""What is said of classes that differ in size."""

from __future__ import annotations

from pharmclf.data.prepare import imbalance_note


def test_classes_of_very_different_size_are_named():
    """The largest and the smallest, with their counts; from three times as many images on."""
    note = imbalance_note(["b"] * 1200 + ["a"] * 400 + ["c"] * 900)
    assert note.startswith("note: unbalanced classes: 1,200 training images of b, 400 of a. ")
    assert "optimizer.class_weights auto" in note


def test_classes_of_about_the_same_size_are_not():
    """Less than three times as many, one class, no image."""
    assert imbalance_note(["b"] * 1199 + ["a"] * 400) == ""
    assert imbalance_note(["a"] * 10) == imbalance_note([]) == ""
