"""What a run continues from: one checkpoint for all workers, chosen by the chief."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping

import numpy as np

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import RunError
from pharmclf.training.checkpoint import (
    Checkpoint,
    CorruptedCheckpointError,
    check_fingerprints,
    newest_checkpoint,
    read_checkpoint,
)
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Position
from pharmclf.training.train_state import TrainState, replace_corrupted_best
from pharmclf.training.train_step import TrainStep

_STALE_VIEW_TIMEOUT_S = 90.0  # for the view of another node: NFS keeps the listing of a folder for up to 60 s
_PAUSE_S = 2.0

Tensors = dict[str, dict[str, np.ndarray]]


class WorkersDisagreeError(RunError):
    """The workers do not hold the same checkpoint, position or weights."""


def resume_training(
    job: TrainingContext, workers: Workers, progress: TrainState, say: Say
) -> tuple[Position, Tensors] | None:
    """Find where the run continues, and set its progress. (all ranks)

    The chief chooses the checkpoint; the others list nothing, they read exactly that one. Best checkpoints that are
    damaged are replaced.

    Args:
        job: what is trained.
        workers: all of them.
        progress: of a run that has not begun; changed.
        say: takes notes for the user. (chief only)

    Returns:
        The position and the tensors; None: the run begins.

    Raises:
        ConfigError: a checkpoint belongs to another run.
        WorkersDisagreeError: this worker cannot read the chief's checkpoint.
    """
    found = None
    if workers.is_chief and (found := newest_checkpoint(job.checkpoints)) is not None:
        checkpoint, _ = found
        check_fingerprints(checkpoint.fingerprints, job.fingerprints, f"checkpoint {checkpoint.location}")
        progress.load(checkpoint.state)
        replace_corrupted_best(progress, job.checkpoints, checkpoint.position.phase, say)
        say(f"resumed from {checkpoint.name}")
        found = dataclasses.replace(checkpoint, state=progress.to_dict()), found[1]
    chosen = _broadcast_checkpoint(found and found[0], job, workers)
    if chosen is None:
        return None
    progress.load(chosen.state)
    tensors = found[1] if found else _read_with_retries(chosen, ("weights", "optimizer"), workers)
    return chosen.position, tensors


def best_weights(
    job: TrainingContext, workers: Workers, progress: TrainState, phase: str, number: int, say: Say
) -> dict[str, np.ndarray]:
    """The weights of the best whole checkpoint of a phase that has ended. (all ranks)

    Args:
        job, workers, progress, say: as `resume_training`.
        phase: its name.
        number: its place among the phases.

    Raises:
        CorruptedCheckpointError: none of the phase is whole.
        WorkersDisagreeError: this worker cannot read the chief's checkpoint.
    """
    checkpoint = None
    if workers.is_chief:
        replace_corrupted_best(progress, job.checkpoints, number, say)
        if phase not in progress.best or progress.monitors[phase]["best_epoch"] < 0:
            raise CorruptedCheckpointError(f"checkpoints of {job.checkpoints}: none of {phase} is whole")
        checkpoint = read_checkpoint(storage.join(job.checkpoints, progress.best[phase]))
        checkpoint = dataclasses.replace(checkpoint, state={"best": progress.best, "monitors": progress.monitors})
    chosen = _broadcast_checkpoint(checkpoint, job, workers)
    assert chosen is not None  # noqa: S101 - the chief has one, or has raised
    progress.load(chosen.state)
    return _read_with_retries(chosen, ("weights",), workers)["weights"]


def verify_agreement(workers: Workers, position: Position, model: TrainStep) -> None:
    """Compare position and weights of all workers before the first step. (all ranks)

    Raises:
        WorkersDisagreeError: they differ; it names the ranks.
    """
    if workers.world == 1:
        return
    place = np.array(list(position.to_dict().values()), np.int64).tobytes()
    found = workers.gather(place + _digest(model))
    differing = [rank for rank, content in enumerate(found) if content != found[0]]
    if not differing:
        return

    def told(content: bytes) -> str:
        return f"{Position(*np.frombuffer(content[:24], np.int64).tolist()).label}, weights {content[24:].hex()[:12]}…"

    ranks = "; ".join(f"rank {rank}: {told(found[rank])}" for rank in differing)
    raise WorkersDisagreeError(
        f"the workers differ before the first step, expected that of rank 0: {told(found[0])}; received {ranks}. Give "
        "a --storage that all nodes see alike, and the same weights on every node"
    )


# ---------------------------------------------------------------------------------------------------------- details


def _broadcast_checkpoint(checkpoint: Checkpoint | None, job: TrainingContext, workers: Workers) -> Checkpoint | None:
    """The chief's checkpoint, without its tensors, on every worker; each reads it from its own view. (all ranks)"""
    if workers.world == 1:
        return checkpoint
    values = checkpoint and vars(checkpoint) | {"position": checkpoint.position.to_dict()}
    received = json.loads(workers.from_chief(json.dumps(values).encode()))
    if received is None or checkpoint is not None:
        return checkpoint
    location = storage.join(job.checkpoints, received["name"])
    return Checkpoint(**received | {"position": Position(**received["position"]), "location": location})


def _read_with_retries(checkpoint: Checkpoint, files: tuple[str, ...], workers: Workers) -> Tensors:
    """Tensors of the chief's checkpoint; its sha256 tells whether they are the chief's.

    Raises:
        CorruptedCheckpointError: of the chief, at once.
        WorkersDisagreeError: another worker has not read them in time.
    """
    deadline = time.monotonic() + _STALE_VIEW_TIMEOUT_S
    while True:
        try:
            return {file: checkpoint.tensors(file) for file in files}
        except CorruptedCheckpointError as error:
            if workers.is_chief:
                raise
            if time.monotonic() > deadline:
                raise WorkersDisagreeError(
                    f"rank {workers.rank} has not found within {_STALE_VIEW_TIMEOUT_S:.0f} s what rank 0 continues "
                    f"from: {error}. "
                    "Give a --storage that all nodes see alike, such as one shared mount or s3://"
                ) from error
        time.sleep(_PAUSE_S)


def _digest(model: TrainStep) -> bytes:
    """sha256 of all weights, trained and frozen, and of the optimizer."""
    found = hashlib.sha256()
    tensors: dict[str, Mapping[str, np.ndarray]] = dict(model.state_dict())
    tensors["frozen"] = {variable.path: variable.numpy() for variable in model.frozen}
    for file, arrays in sorted(tensors.items()):
        for name, array in sorted(arrays.items()):
            found.update(f"{file} {name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
    return found.digest()
