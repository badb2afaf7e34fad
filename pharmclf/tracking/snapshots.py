"""What is tracked of runs and sweeps, by the names under which it is shown: epochs, final numbers, files; no server."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.events import EpochRecord
from pharmclf.reporting.sweep_tables import TrialInfo
from pharmclf.schema_version import SCHEMA_KEY, load_record
from pharmclf.training.phases import number_epochs

BEST = "best_val_accuracy"
_NUMBERS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "learning_rate",
    "images_per_second",
)  # fmt: skip
_VISIBLE_SUFFIXES = (".html", ".md", ".json", ".png", ".csv", ".txt", "sweep.parquet")  # ends of the names of files
_HIDDEN = ("checkpoints", "tensorboard", "trials", "stacks", "lease.json", "status.json", "mlflow.json")
_MAX_BYTES = 50_000_000  # of a file that is shown


@dataclass(frozen=True, kw_only=True)
class EpochSnapshot:
    """An epoch that has ended."""

    at: int
    """Its number from 1, counted over both phases. A phase that stops early leaves a gap before the next one, which
    therefore begins at the same number in every run of the same settings."""
    ended_s: float
    """When it ended, seconds since 1970; of epochs before this driver made of the seconds that they took."""
    numbers: Mapping[str, float]
    """train_loss, train_accuracy, val_loss, val_accuracy, val_balanced_accuracy where classes are weighed,
    learning_rate, images_per_second, epoch_seconds, phase (1 or 2), and best_val_accuracy: the best by then. Those that
    are not finite are left out."""


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run as far as it has come: all that a place where it is tracked shall show."""

    name: str
    folder: str
    config: RunConfig
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides its numbers, by dotted names."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What else is known of it, as `run_tags` gives it."""
    epochs: Sequence[EpochSnapshot] = ()
    state: str = "running"
    """running, interrupted, failed or complete."""
    ended_s: float = 0.0
    """When it came to that, seconds since 1970."""

    def read_result(self) -> dict[str, Any]:
        """The content of result.json, which a complete run has.

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
    """A sweep as far as it has come."""

    name: str
    folder: str
    config: RunConfig
    """Of its plain run."""
    record: Mapping[str, Any]
    """The content of its sweep.json."""
    trials: Mapping[int, TrialSnapshot] = field(default_factory=dict)
    """Those that have ended, by number."""
    state: str = "running"
    """running, interrupted, failed or complete."""
    ended_s: float = 0.0
    """When it came to that, seconds since 1970."""


def metrics_by_step(
    config: RunConfig, history: Iterable[EpochRecord], *, ended_s: float | None = None, best: float = 0.0
) -> tuple[EpochSnapshot, ...]:
    """Records of epochs as they are tracked.

    Args:
        config: of the run.
        history: in order.
        ended_s: when the last of them ended, seconds since 1970; None: now.
        best: the best validation accuracy before them.
    """
    found: list[EpochSnapshot] = []
    records = number_epochs(config, history)
    left_s = sum(record.seconds for record in records.values())
    last_s = time.time() if ended_s is None else ended_s
    for at, record in records.items():
        left_s -= record.seconds
        best = max(best, record.val_accuracy)
        numbers = {name: getattr(record, name) for name in _NUMBERS} | {BEST: best, "epoch_seconds": record.seconds}
        numbers["phase"] = float(record.phase.removeprefix("phase"))
        found.append(EpochSnapshot(at=at, ended_s=last_s - left_s, numbers=_finite(numbers)))
    return tuple(found)


def _finite(numbers: Mapping[str, Any]) -> dict[str, float]:
    known = {name: float(value) for name, value in numbers.items() if isinstance(value, bool | int | float)}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of result.json by one name each, intervals as _low and _high, those of extra tests behind their name.

    The validation accuracy is that of the chosen epoch, and called by the name that the best of all epochs has. What a
    phase has come to by itself stands in its epochs.
    """
    found = _flatten_scores(result, "")
    for extra in result.get("extra_tests") or ():
        found |= _flatten_scores(extra, f"{extra['name']}_")
    return {f"best_{name}" if name.startswith("val_accuracy") else name: value for name, value in found.items()}


def _flatten_scores(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key.endswith("_interval"):
            stem = name.removesuffix("_interval")
            found |= _finite(dict(zip((f"{stem}_low", f"{stem}_high"), value or (), strict=False)))
        elif key not in (SCHEMA_KEY, "workers") and not key.endswith("images"):
            found |= _finite({name: value})
    return found


def visible_files(folder: str) -> dict[str, str]:
    """The files of a run or sweep that people look at: report, model card, numbers, pictures -> path in it: location.

    Raises:
        OSError: the storage does not answer.
    """
    found = {}
    for entry in storage.list_files(folder):
        path = entry.location[len(folder.rstrip("/")) + 1 :]
        parts = path.split("/")
        hidden = parts[0] in _HIDDEN or any(part.startswith(".") for part in parts)
        if path.endswith(_VISIBLE_SUFFIXES) and not hidden and entry.size_bytes <= _MAX_BYTES:
            found[path] = entry.location
    return found


def run_tags(folder: str, fingerprints: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run or sweep: its folder, fingerprints and versions."""
    tags = {"folder": folder} | {f"fingerprint.{name}": value for name, value in fingerprints.items()}
    return tags | {f"version.{name}": value for name, value in versions.items()}


def outcome_text(result: Mapping[str, Any], folder: str) -> str:
    """The outcome of a run in Markdown."""
    low, high = result["test_accuracy_interval"]
    return (
        f"Test accuracy **{result['test_accuracy']:.3f}** (95 % interval {low:.3f}–{high:.3f}) on "
        f"{result['test_images']:,} images. The report is among the artifacts, the model in `{folder}/model`."
    )
