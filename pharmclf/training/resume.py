"""Resumes a run: all workers load the same checkpoint, which the chief chooses."""

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
from pharmclf.training.model_step import ModelStep
from pharmclf.training.phases import Phase, Position
from pharmclf.training.train_state import TrainState, replace_corrupted_best
from pharmclf.training.train_step import Tensors

_STALE_VIEW_TIMEOUT_S = 90.0  # of another node's view of the storage: NFS caches folder listings for up to 60 s
_PAUSE_S = 2.0


class WorkersDisagreeError(RunError):
    """The workers do not hold the same checkpoint, position or weights."""


def resume_training(
    job: TrainingContext, workers: Workers, state: TrainState, say: Say
) -> tuple[Position, Tensors] | None:
    """Find the newest checkpoint of a run, and load its state. (all ranks)

    The chief chooses the checkpoint. The others list nothing, they read exactly that one. Damaged best checkpoints are
    replaced.

    Args:
        state: of a run that has not begun; changed.
        say: takes notes for the user. (chief only)

    Returns:
        The position and the tensors; None: there is no checkpoint.

    Raises:
        ConfigError: a checkpoint belongs to another run.
        WorkersDisagreeError: this worker cannot read the chief's checkpoint.
    """
    newest = None
    if workers.is_chief and (newest := newest_checkpoint(job.checkpoints)) is not None:
        checkpoint, _ = newest
        check_fingerprints(checkpoint.fingerprints, job.fingerprints, f"checkpoint {checkpoint.location}")
        state.load_state_dict(checkpoint.state)
        replace_corrupted_best(state, job.checkpoints, checkpoint.position.phase, say)
        say(f"resumed from {checkpoint.name}")
        newest = dataclasses.replace(checkpoint, state=state.state_dict()), newest[1]
    chosen = _broadcast_checkpoint(newest and newest[0], job, workers)
    if chosen is None:
        return None
    state.load_state_dict(chosen.state)
    tensors = newest[1] if newest else _read_with_retries(chosen, ("weights", "optimizer"), workers)
    return chosen.position, tensors


def best_weights(
    job: TrainingContext, workers: Workers, state: TrainState, phase: Phase, say: Say
) -> dict[str, np.ndarray]:
    """The weights of the best intact checkpoint of a phase that has ended. (all ranks)

    Args:
        job, workers, state, say: as `resume_training`.

    Raises:
        CorruptedCheckpointError: none of the phase is intact.
        WorkersDisagreeError: this worker cannot read the chief's checkpoint.
    """
    checkpoint = None
    if workers.is_chief:
        replace_corrupted_best(state, job.checkpoints, phase.number, say)
        if phase.name not in state.best or state.monitors[phase.name].best_epoch < 0:
            raise CorruptedCheckpointError(f"checkpoints of {job.checkpoints}: none of {phase.name} is intact")
        checkpoint = read_checkpoint(storage.join(job.checkpoints, state.best[phase.name]))
        checkpoint = dataclasses.replace(checkpoint, state=state.state_dict())
    chosen = _broadcast_checkpoint(checkpoint, job, workers)
    assert chosen is not None  # noqa: S101 - the chief has one, or has raised
    state.load_state_dict(chosen.state)
    return _read_with_retries(chosen, ("weights",), workers)["weights"]


def verify_agreement(workers: Workers, position: Position, step: ModelStep) -> None:
    """Compare position and weights of all workers before the first step. (all ranks)

    Raises:
        WorkersDisagreeError: they differ; the message names the ranks.
    """
    if workers.world == 1:
        return
    where = np.array(list(position.to_dict().values()), np.int64).tobytes()
    received = workers.gather(where + _digest(step))
    differing = [rank for rank, content in enumerate(received) if content != received[0]]
    if not differing:
        return

    def describe(content: bytes) -> str:
        return f"{Position(*np.frombuffer(content[:24], np.int64).tolist()).label}, weights {content[24:].hex()[:12]}…"

    ranks = "; ".join(f"rank {rank}: {describe(received[rank])}" for rank in differing)
    raise WorkersDisagreeError(
        f"the workers differ before the first step, expected that of rank 0: {describe(received[0])}; received "
        f"{ranks}. Give a --storage that all nodes see alike, and the same weights on every node"
    )


# ---------------------------------------------------------------------------------------------------------- details


def _broadcast_checkpoint(checkpoint: Checkpoint | None, job: TrainingContext, workers: Workers) -> Checkpoint | None:
    """The chief's checkpoint, without its tensors, on every worker. (all ranks)"""
    if workers.world == 1:
        return checkpoint
    values = checkpoint and vars(checkpoint) | {"position": checkpoint.position.to_dict()}
    received = json.loads(workers.from_chief(json.dumps(values).encode()))
    if received is None or checkpoint is not None:
        return checkpoint
    location = storage.join(job.checkpoints, received["name"])
    return Checkpoint(**received | {"position": Position(**received["position"]), "location": location})


def _read_with_retries(checkpoint: Checkpoint, files: tuple[str, ...], workers: Workers) -> Tensors:
    """Tensors of the chief's checkpoint, verified by its sha256.

    Raises:
        CorruptedCheckpointError: on the chief, at once.
        WorkersDisagreeError: on another worker, after a timeout.
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


def _digest(step: ModelStep) -> bytes:
    """sha256 of all weights, trained and frozen, and of the optimizer."""
    digest = hashlib.sha256()
    tensors: dict[str, Mapping[str, np.ndarray]] = dict(step.state_dict())
    tensors["frozen"] = {variable.path: variable.numpy() for variable in step.frozen}
    for file, arrays in sorted(tensors.items()):
        for name, array in sorted(arrays.items()):
            digest.update(f"{file} {name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
