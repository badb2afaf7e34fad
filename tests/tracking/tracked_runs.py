"""Runs and sweeps to be tracked, made by hand; and what stands in event files, read record by record."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from pharmclf import storage
from pharmclf.config import PhaseConfig, RunConfig, to_dict
from pharmclf.core.events import EpochEnd, EpochRecord, Note
from pharmclf.reporting.trial_info import TrialInfo, TrialState
from pharmclf.runs.record import RunRecord, result_settings
from pharmclf.tracking import Tracker
from pharmclf.training.checkpoint import write_checkpoint
from pharmclf.training.phases import Position

SCORES = (0.4, 0.6, 0.5, 0.8, 0.9)
ACCURACY = list(zip((1, 2, 3, 5, 6), SCORES, strict=True))
"""Of the epochs of `history`, by their numbers."""
RESULT = {
    "name": "tablets",
    "test_images": 123,
    "val_accuracy": 0.9,
    "val_accuracy_interval": [0.8, 0.95],
    "test_accuracy": 0.875,
    "test_accuracy_interval": [0.75, 0.9375],
    "test_macro_f1": 0.5,
    "test_macro_f1_interval": [0.25, 0.75],
    "threshold": None,
    "threshold_assured": True,
    "phases": [{"name": "phase1", "epochs": 3, "test_accuracy": 0.5, "test_accuracy_interval": [0.25, 0.625]}],
    "extra_tests": [{"name": "other light", "source": "/x", "accuracy": 0.25, "accuracy_interval": [0.125, 0.5]}],
}


def run_config(root: str, **settings: Any) -> RunConfig:
    """Four epochs of phase 1 at most, two of phase 2."""
    phases = {"phase1": PhaseConfig(epochs=4), "phase2": PhaseConfig(epochs=2)}
    return RunConfig(**{"storage": root, "name": "tablets"} | phases | settings)


def record_of(config: RunConfig) -> RunRecord:
    """The record of a run that begins."""
    return RunRecord(
        name=config.run_name,
        settings=result_settings(config),
        config=to_dict(config),
        fingerprints={"data": "d", "weights": "imagenet"},
        versions={"python": "3"},
    )


def epoch(phase: int, number: int, accuracy: float) -> EpochRecord:
    """A record as the loop makes it."""
    return EpochRecord(
        phase=f"phase{phase}",
        epoch=number,
        train_loss=2 - accuracy,
        train_accuracy=accuracy / 2,
        val_loss=2.5 - accuracy,
        val_accuracy=accuracy,
        learning_rate=10.0**-phase,
        seconds=3.0,
        images_per_second=64.0,
    )


def epoch_end(record: EpochRecord) -> EpochEnd:
    return EpochEnd(record=record, epochs=4, is_best=True)


def tracker_of(config: RunConfig, lost: Any = lambda: None, say: Any = print) -> tuple[Tracker, str]:
    """Of a run, with its folder."""
    folder = f"{config.storage}/{config.run_name}"
    return Tracker(config, folder, record_of(config), lost, say), folder


def tell(tracker: Tracker, records: list[EpochRecord], state: str) -> None:
    """Send epochs and other events, and the end of the run."""
    for record in records:
        tracker.on_event(Note(text="a step"))
        tracker.on_event(epoch_end(record))
    tracker.close(state)


def history() -> list[EpochRecord]:
    """Three epochs of phase 1, which stopped early, and two of phase 2: at 1, 2, 3, 5, 6."""
    places = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    return [epoch(*place, score) for place, score in zip(places, SCORES, strict=True)]


def write_progress(folder: str, records: list[EpochRecord]) -> None:
    """A checkpoint behind some epochs."""
    tensors = {"weights": {"w": np.zeros(1, np.float32)}}
    state = {"history": [record.to_dict() for record in records]}
    write_checkpoint(f"{folder}/checkpoints", Position(0, len(records), 0), tensors, state, {})


def write_end(folder: str) -> None:
    """What the end of a run leaves for people, and what is not for them."""
    storage.write_json(f"{folder}/history.json", [record.to_dict() for record in history()])
    storage.write_json(f"{folder}/result.json", RESULT)
    for path in (
        "report.html",
        "model/README.md",
        "model/model.keras",
        ".hidden.json",
        "checkpoints/a/checkpoint.json",
    ):
        storage.write_bytes(f"{folder}/{path}", b"{}")
    for path in ("learning_curves.png", "evaluation/test/confusion_matrix.png"):
        storage.write_bytes(f"{folder}/{path}", dot_png())
    for path in ("lease.json", "status.json", "mlflow.json", "trials/0000/run.json", "stacks/a.txt"):
        if not storage.is_file(f"{folder}/{path}"):
            storage.write_json(f"{folder}/{path}", {"id": "x"})


def dot_png() -> bytes:
    """A picture, three pixels wide and two high."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "png")
    return buffer.getvalue()


def trial(number: int, state: TrialState = "trained", epochs: int = 5, reason: str = "") -> TrialInfo:
    """What a ledger tells of a trial."""
    params = {"head.dropout": number / 8, "unfreeze_blocks": number}
    used = {"seconds": 15.0, "cpu_s": 30.0, "gpu_s": 0.0}
    numbered = {at: record for (at, _), record in zip(ACCURACY[:epochs], history(), strict=False)}
    return TrialInfo(number=number, params=params, state=state, reason=reason, history=numbered, **used)


def events_of(content: bytes) -> Iterator[Event]:
    """The events of a file, each checked by both sums of its record."""
    at = 0
    while at < len(content):
        size = content[at : at + 8]
        (length,), (sum_of_size,) = struct.unpack("<Q", size), struct.unpack("<I", content[at + 8 : at + 12])
        record = content[at + 12 : at + 12 + length]
        (sum_of_record,) = struct.unpack("<I", content[at + 12 + length : at + 16 + length])
        assert (masked_crc32c(size), masked_crc32c(record)) == (sum_of_size, sum_of_record)
        yield Event.FromString(record)
        at += 16 + length


def event_files(folder: str) -> list[list[Event]]:
    """The events of each file below a folder, in the order in which TensorBoard reads the files."""
    found = [entry.location for entry in storage.list_files(folder) if "tfevents" in entry.location.rsplit("/")[-1]]
    return [list(events_of(storage.read_bytes(location))) for location in sorted(found)]


def points(events: list[Event], tag: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar."""
    return [
        (event.step, round(value.simple_value, 4))
        for event in events
        for value in event.summary.value
        if value.tag == tag
    ]


def tags(events: list[Event]) -> set[str]:
    return {value.tag for event in events for value in event.summary.value}


def sweep_record(config: RunConfig, state: str, **more: Any) -> dict[str, Any]:
    plain = record_of(config).to_dict()
    options = {"trials": more.get("trials", 3), "search": "tpe"}
    return plain | {"settings": {"plain": plain["settings"]}, "options": options, "state": state} | more


def trial_home(config: RunConfig, name: str) -> str:
    folder = f"{config.storage}/search/trials/{name}"
    storage.write_json(f"{folder}/run.json", {"config": to_dict(config)})
    return folder
