"""What happens in a run, as values: the driver and its workers emit them, callbacks handle them.

A worker's events reach the driver through a Ray actor, so that each of them can be pickled. Events of the hardware are
in `monitoring.events`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Numbers of one epoch, as in history.json and in checkpoints."""

    phase: str
    """phase1 or phase2."""
    epoch: int
    """Within the phase, from 0."""
    train_loss: float
    train_accuracy: float
    """0..1."""
    val_loss: float
    val_accuracy: float
    """0..1."""
    val_balanced_accuracy: float | None = None
    """Mean recall of the classes, 0..1; None where classes are not weighted."""
    learning_rate: float
    """Of the last training step."""
    seconds: float
    """Training and validation."""
    images_per_second: float
    """Of training."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `val_balanced_accuracy` is absent where it is None."""
        values = dataclasses.asdict(self)
        if self.val_balanced_accuracy is None:
            del values["val_balanced_accuracy"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochRecord:
        """Inverse of `to_dict`; other keys are ignored.

        Raises:
            TypeError: no record, or a key is missing.
        """
        return cls(**{item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values})


class Event:
    """Base class of all events."""


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A line for the console."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The run waits for nodes or for resources that others hold."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ActivityStarted(Event):
    """Something that takes a while has begun, and lasts until the next of these events or the next step."""

    text: str
    """What, as "importing TensorFlow"."""
    usual_s: float = 0.0
    """Seconds that it usually takes; 0: unknown."""


@dataclass(frozen=True, kw_only=True)
class WorkersStarted(Event):
    """All workers of an attempt have started."""

    workers: int
    nodes: tuple[str, ...]
    """Addresses of their nodes."""
    attempt: int
    """From 1."""


@dataclass(frozen=True, kw_only=True)
class WorkerFailure(Event):
    """The workers of an attempt have failed."""

    kind: str
    """crash, node or hang."""
    reason: str
    position: tuple[str, int, int] | None
    """Phase, epoch and step (both from 0) at which the loop was last seen; None: before its first step."""
    num_failures: int
    """Of this driver so far, this one included."""
    max_failures: int


@dataclass(frozen=True, kw_only=True)
class FeatureCacheReady(Event):
    """The feature caches of the coming attempt are known."""

    phases: tuple[str, ...]
    """Phases that train on cached features."""


@dataclass(frozen=True, kw_only=True)
class StepEnd(Event):
    """Progress within an epoch, sent every second."""

    phase: str
    epoch: int
    """From 0."""
    epochs: int
    """Maximum of the phase."""
    step: int
    """Training steps of the epoch that have been started."""
    steps: int
    """Training steps of an epoch."""
    loss: float
    """Mean of the epoch so far."""
    accuracy: float
    """Of the epoch so far, 0..1."""
    images_per_second: float
    """Of late."""
    eta_s: float | None
    """Seconds to the end of the phase if it does not stop early; None: not known yet."""


@dataclass(frozen=True, kw_only=True)
class EpochEnd(Event):
    """An epoch has been trained and validated."""

    record: EpochRecord
    epochs: int
    """Maximum of the phase."""
    is_best: bool
    """Whether it is the best epoch of the run so far."""


@dataclass(frozen=True, kw_only=True)
class HeadsEpochEnd(Event):
    """An epoch of several heads that are trained as one program has ended."""

    phase: str
    epoch: int
    """From 0."""
    epochs: int
    """Maximum of the phase."""
    num_active: int
    """Heads that were trained in it."""
    val_accuracy: float
    """Best of them, 0..1."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint has been written, or waits for its upload."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ImagesQuarantined(Event):
    """Images are excluded because their files no longer match the manifest. (all ranks)"""

    reasons: Mapping[int, str]
    """By row of the manifest."""


@dataclass(frozen=True, kw_only=True)
class FinalEvaluationStarted(Event):
    """The model is trained; its test begins."""


@dataclass(frozen=True, kw_only=True)
class RunEnd(Event):
    """The run has ended."""

    state: str
    """complete, interrupted or failed."""
    reason: str = ""
    """Why it failed."""


class Callback(Protocol):
    """Handles the events of a run."""

    def on_event(self, event: Event, /) -> None:
        """Handle an event. (chief only; `ImagesQuarantined` and events of the hardware: all ranks, any thread)"""


class RunCallback(Callback, Protocol):
    """Handles the events of a run, and may stop it."""

    def should_stop(self) -> bool:
        """Whether the run must write a checkpoint and end. (chief only)"""


class CallbackList:
    """Passes each event to several callbacks, in order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        for callback in self._callbacks:
            callback.on_event(event)
