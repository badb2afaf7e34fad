"""The three commands that come next after a verdict."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.evaluation.verdict import Level, ReasonCode, Verdict

_STRONGER = "lookalikes"  # the configuration that trains most blocks in minutes
_RESOLUTION_STEP = 32  # pixels; backbones halve an image five times


@dataclass(frozen=True)
class NextStep:
    """A command, and what it is for."""

    command: str
    purpose: str


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model as commands name it."""

    model: str
    """Location of its run, or of its file."""
    data: str = "DIR"
    """Location of the images that it was trained on."""
    name: str = "NAME"
    image_size: int = 224
    """Side of its input, pixels."""

    @classmethod
    def of_run(cls, config: RunConfig, folder: str) -> TrainedModel:
        """The model of a run; the folder of a trial gives the name of its sweep."""
        *_, sweep, home, _ = ("", "", *folder.rstrip("/").split("/"))
        name = sweep if home == "trials" else config.run_name
        return cls(model=folder, data=config.data, name=name, image_size=config.image_size)


def next_steps(verdict: Verdict, trained: TrainedModel) -> tuple[NextStep, NextStep, NextStep]:
    """The commands that are sensible after a verdict.

    A good model is used; one that needs review is used with care and improved by what its reasons name; for one that is
    not usable, its images or its learning rates are examined, and it is trained again.
    """
    model, data, name = (shlex.quote(text) for text in (trained.model, trained.data, f"{trained.name}-2"))
    again = f"pharmclf train --data {data} --name {name}"
    prepare = NextStep(f"pharmclf prepare --data {data}", "count and check the images of each class")
    find_rate = NextStep(f"pharmclf train --data {data} --find-lr", "find learning rates that suit these images")
    stronger = NextStep(f"{again} --config {_STRONGER}", "train more blocks, for more epochs")
    codes = {reason.code for reason in verdict.reasons}
    if verdict.level is Level.NOT_USABLE:
        if ReasonCode.TOO_FEW_TEST_IMAGES in codes:
            compare = NextStep("pharmclf train", "compare with the demo, which has 100 images of each class")
            return prepare, NextStep(again, "train again, with more photos"), compare
        return (find_rate, stronger, prepare) if ReasonCode.DIVERGED in codes else (prepare, find_rate, stronger)
    predict = f"pharmclf predict --model {model} --input DIR --output answers.csv"
    evaluate = NextStep(f"pharmclf evaluate --model {model} --data DIR", "test it on images of another camera or place")
    if verdict.level is Level.GOOD:
        export = f"pharmclf export --model {model} --format onnx --out exported"
        return NextStep(predict, "name new images"), evaluate, NextStep(export, "use it without this package")
    improve = NextStep(prepare.command, "with more photos: count and check the images of each class")
    if ReasonCode.DIVERGED in codes:
        improve = find_rate
    elif ReasonCode.LOOK_ALIKES in codes:
        size = round(1.5 * trained.image_size / _RESOLUTION_STEP) * _RESOLUTION_STEP
        improve = NextStep(f"{stronger.command} --image-size {size}", "train on larger images")
    elif ReasonCode.WEAK in codes:
        improve = stronger
    return NextStep(predict, "propose names for new images; a person checks them"), evaluate, improve


def shown_location(location: str) -> str:
    """A location as it is typed where the command runs: relative to the working directory if it is below it."""
    path = Path(os.path.relpath(location)) if not storage.is_remote(location) else None
    return location if path is None or ".." in path.parts else str(path)


def report_link(location: str) -> str:
    """The address of a file for a browser: file:// for a local one, the URI of one in an object store."""
    return location if storage.is_remote(location) else Path(storage.absolute(location)).as_uri()
