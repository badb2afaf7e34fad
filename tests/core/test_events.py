"""Events travel between processes, and records of epochs have the keys of history.json."""

from __future__ import annotations

import pickle

import pytest
from support.epoch_records import epoch_record
from support.recorder import Recorder

from pharmclf.core.events import (
    CallbackList,
    CheckpointSaved,
    EpochEnd,
    EpochRecord,
    Event,
    FinalEvaluationStarted,
    ImagesQuarantined,
    Note,
    WorkerFailure,
)

KEYS = (
    "phase", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds",
    "images_per_second",
)  # fmt: skip


def test_the_record_of_an_epoch_keeps_its_keys_and_their_order():
    """Balanced accuracy has a key only where classes are weighted, behind the validation accuracy."""
    plain, weighted = epoch_record(), epoch_record(val_balanced_accuracy=0.25)
    assert tuple(plain.to_dict()) == KEYS
    assert tuple(weighted.to_dict()) == (*KEYS[:6], "val_balanced_accuracy", *KEYS[6:])
    for record in (plain, weighted):
        assert EpochRecord.from_dict(record.to_dict() | {"at": 1}) == record


@pytest.mark.parametrize("values", [{}, {"phase": "phase1"}, [], 1, "text"])
def test_what_is_no_record_is_refused(values: object):
    with pytest.raises(TypeError):
        EpochRecord.from_dict(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "event",
    [
        EpochEnd(record=epoch_record(), epochs=2, is_best=True),
        ImagesQuarantined(reasons={3: "changed"}),
        WorkerFailure(kind="crash", reason="it crashed", position=("phase1", 0, 4), num_failures=1, max_failures=3),
        FinalEvaluationStarted(),
    ],
)
def test_an_event_survives_pickling(event: Event):
    assert pickle.loads(pickle.dumps(event)) == event


def test_a_list_passes_each_event_to_all_in_order():
    first, second = Recorder(), Recorder()
    events = [Note(text="one"), CheckpointSaved(name="two")]
    for event in events:
        CallbackList([first, second]).on_event(event)
    assert first.events == second.events == events
