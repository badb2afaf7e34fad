"""The models that a process serves: loaded and tried before they answer, replaced when their files change."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from pharmclf import storage
from pharmclf.core.errors import ConfigError, first_line
from pharmclf.evaluation.saved_model import load_model_info
from pharmclf.inference.model import Answer, Model

MAX_BATCH = 32
"""Images of one forward pass at most. More only wait longer for each other: measured on CPUs."""
_WATCHED = ("checksums.json", "metrics.json", "decision.json", "labels.json")
_RETRY_S = (4.0, 60.0)  # after the first refusal, as of files that are being written; at most
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answers to a request, all of one model in one state."""

    model: str
    """Name of the model."""
    version: str
    """Of the model: the first 12 hexadecimal digits of its file's sha256."""
    answers: list[Answer]
    """One for each image, in their order; that of an image that cannot be used says why."""


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What a process serves under a name."""

    name: str
    version: str
    """As in `Prediction`."""
    labels: list[str]
    """Its classes."""
    image_size: int
    """Side of the images that it classifies, pixels."""
    threshold: float | None
    """Confidence below which a person must look; None: it never abstains."""
    usual_answered: float | None
    """Share of its validation images that it answers, 0..1: of images that look unlike those it answers fewer."""
    usual_unknown: float | None
    """Share of its validation images that it calls unknown, 0..1; None: it has no limit for that."""
    refused: str | None
    """Why the files at its location do not replace it; None where they are its own."""


@dataclass(frozen=True)
class ServedModel:
    """A model that has answered once."""

    name: str
    model: Model
    files: tuple[str, ...]
    """State of the files next to it."""

    @property
    def version(self) -> str:
        """As in `Prediction`."""
        return self.model.info.sha256[:12]

    def predict(self, contents: Sequence[bytes]) -> list[Answer]:
        """Answer for the contents of image files."""
        return self.model.predict(list(contents))


class _Refusal(NamedTuple):
    """Files that did not become a model."""

    reason: str
    pause_s: float
    retry_at: float


def load_served(name: str, location: str) -> ServedModel:
    """Load a model, and let it answer once for each size of a batch, which also compiles it.

    Raises:
        ConfigError: it is damaged, or has been changed since the load began.
        StorageUnavailableError: the storage does not answer.
    """
    model = Model(location)
    files = _state_of_files(model.info.location)
    black = Image.new("RGB", (model.info.input_size, model.info.input_size))
    size = MAX_BATCH
    while size:
        model.predict([black] * size)
        size //= 2
    if load_model_info(location).sha256 != model.info.sha256 or _state_of_files(model.info.location) != files:
        raise ConfigError(f"--model {location}: its files have changed while they were read. It is tried again")
    return ServedModel(name, model, files)


class ServedModels:
    """The models of a process, by name.

    A change of the files that name a model's sha256, labels or threshold loads the model again. It replaces the one
    that answers when it is verified and has answered itself; a damaged one never does.
    """

    def __init__(self, locations: Mapping[str, str]) -> None:
        """Load the models.

        Raises:
            ConfigError: as `load_served`.
        """
        self._locations = dict(locations)
        self._served = {name: load_served(name, location) for name, location in locations.items()}
        self._refused: dict[str, _Refusal] = {}

    def get(self, name: str = "") -> ServedModel | None:
        """The model of a name, the first one for no name; None where there is none."""
        return self._served.get(name or next(iter(self._served)))

    def states(self) -> list[ModelState]:
        """What is served, in the order of the models."""
        return [self._state(name, served) for name, served in self._served.items()]

    def _state(self, name: str, served: ServedModel) -> ModelState:
        decision = served.model.info.decision
        return ModelState(
            name=name,
            version=served.version,
            labels=list(served.model.labels),
            image_size=served.model.info.image_size,
            threshold=served.model.threshold,
            usual_answered=decision.coverage.value if decision else None,
            usual_unknown=decision.unknown.share.value if decision and decision.unknown else None,
            refused=self._refused[name].reason if name in self._refused else None,
        )

    def refresh(self) -> None:
        """Replace the models whose files have changed."""
        for name, served in list(self._served.items()):
            earlier = self._refused.get(name)
            if earlier and time.monotonic() < earlier.retry_at:
                continue
            try:
                if _state_of_files(served.model.info.location) == served.files:
                    self._refused.pop(name, None)
                    continue
                self._served[name] = load_served(name, self._locations[name])
                self._refused.pop(name, None)
            except (ConfigError, OSError) as error:
                pause_s = min(2 * earlier.pause_s, _RETRY_S[1]) if earlier else _RETRY_S[0]
                self._refused[name] = _Refusal(first_line(error), pause_s, time.monotonic() + pause_s)
                if earlier is None or earlier.reason != first_line(error):
                    _log.warning("model %s stays at version %s: %s", name, served.version, first_line(error))


def _state_of_files(model: str) -> tuple[str, ...]:
    """Changes with each of the small files next to a model's file."""
    folder = storage.parent(model)
    states = [storage.read_versioned(storage.join(folder, name)) for name in _WATCHED]
    return tuple(state.version if state else "" for state in states)
