"""Snapshots of runs and sweeps, with the names of metrics, tags and files that the tracking backends show."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.events import EpochRecord
from pharmclf.reporting.trial_info import TrialInfo
from pharmclf.schema_version import SCHEMA_KEY, load_record
from pharmclf.training.phases import number_epochs

BEST = "best_val_accuracy"
_METRICS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "learning_rate",
    "images_per_second",
)  # fmt: skip
_VISIBLE_SUFFIXES = (".html", ".md", ".json", ".png", ".csv", ".txt", "sweep.parquet")
_HIDDEN = ("checkpoints", "tensorboard", "trials", "stacks", "lease.json", "status.json", "mlflow.json")
_MAX_BYTES = 50_000_000  # of a visible file


@dataclass(frozen=True, kw_only=True)
class EpochSnapshot:
    """A complete epoch."""

    at: int
    """Number from 1, counted over both phases. Early stopping leaves a gap, so that a phase begins at the same number
    in every run of the same settings."""
    ended_s: float
    """Seconds since 1970; of epochs before this driver, estimated from their durations."""
    numbers: Mapping[str, float]
    """Finite values of train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, images_per_second,
    epoch_seconds, phase (1 or 2), best_val_accuracy (so far), and val_balanced_accuracy where classes are weighted."""


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run so far."""

    name: str
    folder: str
    config: RunConfig
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that decide the result, by dotted names."""
    tags: Mapping[str, str] = field(default_factory=dict)
    epochs: Sequence[EpochSnapshot] = ()
    state: str = "running"
    """running, interrupted, failed or complete."""
    ended_s: float = 0.0
    """Seconds since 1970."""

    def read_result(self) -> dict[str, Any]:
        """Read result.json of a complete run.

        Raises:
            OSError: the storage does not answer.
        """
        return dict(load_record(storage.join(self.folder, "result.json")))


@dataclass(frozen=True, kw_only=True)
class TrialSnapshot:
    """A trial that has ended."""

    facts: TrialInfo
    folder: str
    epochs: Sequence[EpochSnapshot]


@dataclass(frozen=True, kw_only=True)
class SweepSnapshot:
    """A sweep so far."""

    name: str
    folder: str
    config: RunConfig
    """Of the plain run."""
    record: Mapping[str, Any]
    """Content of sweep.json."""
    trials: Mapping[int, TrialSnapshot] = field(default_factory=dict)
    """Those that have ended, by number."""
    state: str = "running"
    """running, interrupted, failed or complete."""
    ended_s: float = 0.0
    """Seconds since 1970."""


def metrics_by_step(
    config: RunConfig, history: Iterable[EpochRecord], *, ended_s: float | None = None, best: float = 0.0
) -> tuple[EpochSnapshot, ...]:
    """Convert records of epochs, in order, to snapshots.

    Args:
        ended_s: end of the last epoch, seconds since 1970; None: now.
        best: best validation accuracy of the epochs before.
    """
    snapshots: list[EpochSnapshot] = []
    records = number_epochs(config, history)
    end_s = (time.time() if ended_s is None else ended_s) - sum(record.seconds for record in records.values())
    for at, record in records.items():
        end_s += record.seconds
        best = max(best, record.val_accuracy)
        numbers = {name: getattr(record, name) for name in _METRICS} | {BEST: best, "epoch_seconds": record.seconds}
        numbers["phase"] = float(record.phase.removeprefix("phase"))
        snapshots.append(EpochSnapshot(at=at, ended_s=end_s, numbers=_finite(numbers)))
    return tuple(snapshots)


def _finite(numbers: Mapping[str, object]) -> dict[str, float]:
    floats = {name: float(value) for name, value in numbers.items() if isinstance(value, bool | int | float)}
    return {name: value for name, value in floats.items() if math.isfinite(value)}


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Name the scores of result.json: intervals end in _low and _high, extra tests prefix their name.

    The validation accuracy is that of the chosen epoch, so that it has the name of the best of all epochs. Scores of
    single phases are left out.
    """
    scores = _flatten_scores(result, "")
    for extra in result.get("extra_tests") or ():
        scores |= _flatten_scores(extra, f"{extra['name']}_")
    return {f"best_{name}" if name.startswith("val_accuracy") else name: value for name, value in scores.items()}


def _flatten_scores(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key.endswith("_interval"):
            stem = name.removesuffix("_interval")
            scores |= _finite(dict(zip((f"{stem}_low", f"{stem}_high"), value or (), strict=False)))
        elif key not in (SCHEMA_KEY, "workers") and not key.endswith("images"):
            scores |= _finite({name: value})
    return scores


def visible_files(folder: str) -> dict[str, str]:
    """Find the report, model card, numbers and plots of a run or sweep -> path in its folder: location.

    Raises:
        OSError: the storage does not answer.
    """
    files = {}
    for entry in storage.list_files(folder):
        path = entry.location[len(folder.rstrip("/")) + 1 :]
        parts = path.split("/")
        is_hidden = parts[0] in _HIDDEN or any(part.startswith(".") for part in parts)
        if path.endswith(_VISIBLE_SUFFIXES) and not is_hidden and entry.size_bytes <= _MAX_BYTES:
            files[path] = entry.location
    return files


def run_tags(folder: str, fingerprints: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run or sweep: its folder, fingerprints and versions."""
    tags = {"folder": folder} | {f"fingerprint.{name}": value for name, value in fingerprints.items()}
    return tags | {f"version.{name}": value for name, value in versions.items()}


def outcome_text(result: Mapping[str, Any], folder: str) -> str:
    """Describe the result of a run in Markdown."""
    low, high = result["test_accuracy_interval"]
    verdict = f"Verdict: **{result['verdict']}**. " if "verdict" in result else ""
    return (
        f"{verdict}Test accuracy **{result['test_accuracy']:.3f}** (95 % interval {low:.3f}–{high:.3f}) on "
        f"{result['test_images']:,} images. The report is among the artifacts, the model in `{folder}/model`."
    )
