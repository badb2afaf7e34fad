"""The folds of a run: models that are each trained without one part of the images, and what they predict for it."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint
from pharmclf.core.terminal import Result
from pharmclf.core.units import format_count
from pharmclf.data.manifest import Manifest
from pharmclf.data.splits import TEST, split_rows
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import ABSTAIN, evaluate
from pharmclf.evaluation.scoring import ScoredDataset
from pharmclf.runs.record import RecordState, clear_folder, read_record, result_settings

FOLDS = "folds"
"""Folder of a run that holds the runs of its folds, and name of the images that these have held out: all."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A part of the images, and the run that is trained without it."""

    number: int
    """From 1."""
    config: RunConfig
    folder: str
    manifest: Manifest
    """The part is its test split; validation is drawn from the rest."""


def plan_folds(config: RunConfig, folder: str, manifest: Manifest) -> list[Fold]:
    """Divide all images, class by class, into as many parts as the run has folds; near duplicates stay together.

    Args:
        folder: of the run.
        manifest: of the run.

    Raises:
        ConfigError: classes with too few different images.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    labels, groups = manifest.ok["label"].to_numpy(), manifest.ok["group"].to_numpy()
    most = int(manifest.ok.groupby("label")["group"].nunique().max())
    if most < config.folds:
        raise ConfigError(f"--folds: received {config.folds}, but no class has more than {most} different images")
    parts = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    with warnings.catch_warnings():  # about classes that are not in every part
        warnings.simplefilter("ignore", UserWarning)
        held_out = [rows for _, rows in parts.split(labels, labels, groups)]
    folds = []
    for number, rows in enumerate(held_out, start=1):
        given = np.full(len(labels), "", "<U10")
        given[rows] = TEST
        splits = split_rows(labels, groups, config.seed, config.split.test, config.split.validation, given)
        name = f"{config.run_name}-fold-{number}"
        own = dataclasses.replace(config, name=name, eval_data=(), unknown=(), skip_checks=True)
        place = storage.join(folder, FOLDS, str(number))
        folds.append(Fold(number=number, config=own, folder=place, manifest=manifest.with_splits(splits)))
    return folds


def train_folds(
    config: RunConfig, folder: str, manifest: Manifest, train: Callable[[Fold, Say], None], say: Say
) -> None:
    """Train the folds of a run that are not complete; of each its predictions stay, and not its model.

    Args:
        folder: of the run.
        manifest: of the run.
        train: trains the run of a fold to its end.
        say: takes lines for the console.

    Raises:
        As `plan_folds` and `train`.
    """

    def say_steps(text: str) -> None:  # the results are those of all folds together
        if not isinstance(text, Result):
            say(text)

    for fold in plan_folds(config, folder, manifest):
        record = read_record(fold.folder)
        is_complete = record is not None and record.state is RecordState.COMPLETE
        if record and is_complete and record.fingerprints["settings"] != fingerprint(result_settings(fold.config)):
            clear_folder(fold.folder)  # the run trains for more epochs now
            is_complete = False
        if not is_complete:
            count = format_count(len(fold.manifest.rows(TEST)), "image")
            say(f"fold {fold.number} of {config.folds}: trains without {count}, and is tested on them")
            train(fold, say_steps)
        for name in ("checkpoints", "model"):
            storage.delete_folder(storage.join(fold.folder, name))


def read_folds(config: RunConfig, folder: str, manifest: Manifest) -> ScoredDataset | None:
    """The images of a run, each predicted by the model of the fold that has not seen it; None: it has no folds.

    Args:
        folder: of the run.
        manifest: of the run.
    """
    numbers = range(1, config.folds + 1)
    places = [storage.join(folder, FOLDS, str(n), "evaluation", TEST, "predictions.parquet") for n in numbers]
    if not places or not storage.is_file(places[0]):  # as in the run of a fold
        return None
    parts = [pd.read_parquet(io.BytesIO(storage.read_bytes(place))) for place in places]
    table = pd.concat(parts).sort_values("row", ignore_index=True).drop(columns=ABSTAIN)
    probabilities = np.stack(table.pop("probabilities").to_list()).astype(np.float32)
    images = EvalDataset(name=FOLDS, source=config.data, manifest=manifest, rows=table["row"].to_numpy(np.int64))
    evaluation = evaluate(table, manifest.class_names, groups=images.groups)
    return ScoredDataset(images=images, probabilities=probabilities, table=table, evaluation=evaluation)
