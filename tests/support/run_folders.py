"""Run folders made by hand, as runs leave them: small, and without training."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from pharmclf import storage
from pharmclf.config import HeadConfig, PhaseConfig, RunConfig, to_dict
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.manifest import Manifest
from pharmclf.training.checkpoint import write_checkpoint
from pharmclf.training.phases import Position
from support.epoch_records import epoch_record

MODEL = b"a model " * 1000
Epoch = tuple[int, int, float, float]
"""Phase (1 or 2), epoch (from 0), validation accuracy, validation loss."""


def small_config(**settings: Any) -> RunConfig:
    """Of runs made here: EfficientNet at 32 pixels with a linear head."""
    small = {"image_size": 32, "head": HeadConfig(dense=()), "phase1": PhaseConfig(epochs=9)}
    return RunConfig(**small | settings)


def write_record(root: str, path: str, state: str, data: str = "images", **settings: Any) -> str:
    """A run's folder with nothing but run.json."""
    folder = storage.join(root, path)
    record = {"name": path, "state": state, "config": to_dict(small_config(**settings)), "fingerprints": {"data": data}}
    storage.write_json(storage.join(folder, "run.json"), record | {"settings": {}, "versions": {}, "seconds": 1.0})
    return folder


def _history(epochs: list[Epoch]) -> list[dict[str, Any]]:
    return [epoch_record(f"phase{p}", e, val_accuracy=a, val_loss=loss).to_dict() for p, e, a, loss in epochs]


def _best(epochs: list[Epoch]) -> dict[int, Epoch]:
    return {p: max((e for e in epochs if e[0] == p), key=lambda e: (e[2], -e[3])) for p in {e[0] for e in epochs}}


def _label(epoch: Epoch) -> str:
    return Position(epoch[0] - 1, epoch[1] + 1, 0).label


def complete_run(root: str, path: str, epochs: list[Epoch], *, test: float = 0.5, **record: Any) -> str:
    """A finished run's folder, as a run leaves it."""
    folder = write_record(root, path, "complete", **record)
    best = _label(max(_best(epochs).values(), key=lambda e: (e[2], -e[3])))
    result = {"name": path, "test_accuracy": test, "best_checkpoint": storage.join(folder, "checkpoints", best)}
    labels = json.dumps(["one", "two"]).encode()
    for file, content in (("model.keras", MODEL), ("labels.json", labels)):
        storage.write_bytes(storage.join(folder, "model", file), content)
    checksums = {"model.keras": sha256_bytes(MODEL), "labels.json": sha256_bytes(labels)}
    storage.write_json(storage.join(folder, "model/checksums.json"), checksums)
    storage.write_json(storage.join(folder, "history.json"), _history(epochs))
    storage.write_json(storage.join(folder, "result.json"), result)
    return folder


def incomplete_run(root: str, path: str, epochs: list[Epoch], *, state: str = "interrupted", **record: Any) -> str:
    """A run's folder in the middle of the first epoch after these, with weights that fit a head on EfficientNet."""
    folder = write_record(root, path, state, **record)
    table = pd.DataFrame({"path": ["/i/one/a.jpg", "/i/two/b.jpg"], "label": ["one", "two"], "size_bytes": 1})
    table[["sha256", "width", "height", "phash", "group", "split", "status"]] = ["", 8, 8, "0" * 16, 0, "train", "ok"]
    manifest = Manifest(table, ("one", "two"), "/i")
    manifest.write(storage.join(folder, "manifest.parquet"))
    best = _best(epochs)
    state_kept = {
        "history": _history(epochs),
        "monitors": {
            f"phase{p}": {"best_accuracy": e[2], "best_loss": e[3], "best_epoch": e[1]} for p, e in best.items()
        },
        "best": {f"phase{p}": _label(e) for p, e in best.items()},
        "epoch_sums": {},
    }
    phase, epoch = (epochs[-1][0] - 1, epochs[-1][1] + 1) if epochs else (0, 0)
    kernel = np.random.default_rng(0).normal(size=(1280, 2)).astype(np.float32)
    weights = {"head_logits/kernel": kernel, "head_logits/bias": np.array([1.0, -1.0], np.float32)}
    for position in (*(Position(e[0] - 1, e[1] + 1, 0) for e in best.values()), Position(phase, epoch, 3)):
        tensors = {"weights": weights, "optimizer": {"step": np.zeros(1, np.float32)}}
        checkpoints = storage.join(folder, "checkpoints")
        write_checkpoint(checkpoints, position, tensors, state_kept, {"data": manifest.fingerprint})
    return folder
