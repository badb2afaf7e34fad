"""Event files: their records, as TensorFlow reads them, and how a file grows."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracked_runs import dot_png, events_of, points, tags

from pharmclf import storage
from pharmclf.tracking.event_files import EventFile, EventRecords


def some_events() -> EventRecords:
    events = EventRecords(1000.0)
    events.restart(1, 1000.0)
    events.scalars({"loss/train": 0.5, "loss/validation": 0.25}, 1, 1001.0)
    events.text("config", "a: 1", 1, 1001.0)
    events.image("dot", dot_png(), 2, 1002.0)
    events.hyperparameters({"rate": 0.1, "name": "x", "layers": [1, 2], "flip": True}, 1000.0)
    events.charts({"loss": ("loss/train", "loss/validation")}, 1000.0)
    return events


def test_a_file_holds_what_was_added() -> None:
    """In order, with step and time, behind the record that tells the version."""
    found = list(events_of(bytes(some_events().content)))
    assert found[0].file_version == "brain.Event:2"
    assert (found[1].session_log.status, found[1].step) == (1, 1)
    assert points(found, "loss/validation") == [(1, 0.25)]
    assert found[2].wall_time == 1001.0
    (image,) = [value.image for event in found for value in event.summary.value if value.tag == "dot"]
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, dot_png())
    assert {"config/text_summary", "_hparams_/session_start_info", "custom_scalars__config__"} < tags(found)
    assert "_hparams_/experiment" not in tags(found)  # it would fix the columns of the table for all runs


@pytest.mark.tf
def test_tensorflow_reads_the_file(tmp_path: Path) -> None:
    """Its own reader checks every record, and finds the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf

        path = tmp_path / "events.out.tfevents.1"
        path.write_bytes(some_events().content)
        found = list(tf.compat.v1.train.summary_iterator(str(path)))
    assert [event.SerializeToString() for event in found] == [
        event.SerializeToString() for event in events_of(path.read_bytes())
    ]


@settings(max_examples=20, deadline=None)
@given(content=st.binary(min_size=3, max_size=60), ends=st.lists(st.integers(0, 60), max_size=5), part=st.binary())
def test_a_file_on_disk_is_whole_whatever_broke_off(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ends: list[int], part: bytes
) -> None:
    """A part of a record that a full disk took is cut off by the next call; a file that was deleted comes back."""
    path = tmp_path_factory.mktemp("events") / "run" / "file"
    file = EventFile(str(path))
    for end in sorted(ends):
        file.write(content[:end])
        if path.exists():
            path.write_bytes(path.read_bytes() + part)
    file.write(content + b"!")
    assert path.read_bytes() == content + b"!"
    path.unlink()
    file.write(content + b"!?")
    assert path.read_bytes() == content + b"!?"


def test_a_file_on_disk_stays_the_same_file(tmp_path: Path) -> None:
    """TensorBoard reads on in the file that it has opened."""
    file = EventFile(str(tmp_path / "file"))
    file.write(b"one")
    with open(file.location, "rb") as reader:
        assert reader.read() == b"one"
        file.write(b"one two")
        assert reader.read() == b" two"


@pytest.mark.s3
def test_a_file_in_a_bucket_is_replaced_whole(bucket: str) -> None:
    """At each call all of it, so that a reader finds whole records at any time."""
    file = EventFile(f"{bucket}/run/file")
    for content in (b"one", b"one two"):
        file.write(content)
        assert storage.read_bytes(file.location) == content
