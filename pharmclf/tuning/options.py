"""Options of a sweep, besides the plain run that its trials vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_memory

SearchName = Literal["tpe", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How many trials there are, how they are chosen, and what becomes of the best."""

    trials: int = 16
    """Trials in all; trial 0 is the plain run. A sweep with more of them continues."""
    space: str = ""
    """YAML file of what is searched. Empty: learning rates, dropout, unfreeze depth."""
    search: SearchName = "tpe"
    """tpe: learns from the trials before (Optuna); random; grid: every combination of values and points."""
    halving: bool = True
    """Stop trials early that are not among the best third of those that have come as far."""
    grace: int = 0
    """Epochs of the last phase that each trial may train before it is compared. 0: a quarter of them."""
    workers_per_trial: int = 1
    """Workers of a trial, one accelerator each; more than one train on Ray Train."""
    max_concurrent: int = 0
    """Trials at a time. 0: as many as the cluster has room for."""
    batch_heads: bool = True
    """Train trials that train the head alone side by side, as one program."""
    reuse_workers: bool = True
    """Give a worker that has ended a trial the next one, with TensorFlow and the backbone loaded."""
    winner: Literal["keep", "retrain"] = "keep"
    """keep: the best trial's model is tested as it is; retrain: its configuration is first trained again to the end."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("grace", 0), ("workers_per_trial", 1), ("max_concurrent", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag}: received {getattr(self, name)}, expected a number, {least} or more")


@dataclass(frozen=True)
class TrialResources:
    """What a cluster has for trials."""

    concurrent: int
    """Trials at a time."""
    reason: str
    """In one line."""
    cpus: float
    """That a trial's process reserves; 0 where it waits for the workers of the trial."""
    gpus: float
    """GPUs of a one-worker trial that trains more than the head."""
    head_gpus: float
    """GPUs of one that trains the head alone."""

    @property
    def share(self) -> float:
        """Of the cluster, for each trial."""
        return 1 / self.concurrent


_TRIAL_BYTES = 2e9  # of memory; 0.9-1.7 GB were measured with EfficientNet-Lite0 at 224 px
_CPUS_PER_TRIAL = 2  # one computes, one reads: a second trial on two cores takes as much from the first as it gains
_HEAD_GPU = 0.25


def plan_trial_resources(
    options: SweepOptions, cpus: float, gpus: float, memory_bytes: float, *, heads_only: bool
) -> TrialResources:
    """Divide a cluster among trials; pure.

    Args:
        cpus, gpus, memory_bytes: of the cluster.
        heads_only: every trial trains the head alone.

    Raises:
        ConfigError: it has no room for one trial.
    """
    workers = options.workers_per_trial
    if 0 < gpus < workers:
        raise ConfigError(
            f"--workers-per-trial: received {workers}, but the cluster has {gpus:g} GPUs and a worker drives one. "
            f"Give {int(gpus)} or fewer, or add nodes"
        )
    share = _HEAD_GPU if heads_only and workers == 1 else 1.0
    drivable = int(gpus / (workers * share))  # at a time; 0: no GPUs, and no such bound
    if gpus:
        most, reason = drivable, f"{gpus:g} GPUs; a trial uses {workers * share:g}"
    else:
        need = _CPUS_PER_TRIAL * workers
        most, reason = int(cpus // need), f"{cpus:g} CPUs; a trial uses {need}"
    by_memory = int(memory_bytes // (_TRIAL_BYTES * workers))
    if by_memory < most:
        most, reason = (
            by_memory,
            f"{format_memory(memory_bytes)} of memory; a trial takes {format_memory(_TRIAL_BYTES * workers)}",
        )
    # a trial of one worker reserves a hundredth of a CPU at the least, and all of them no more than half
    concurrent = max(1, most if workers > 1 else min(most, int(cpus / 2 * 100)))
    if options.max_concurrent and not 0 < drivable < options.max_concurrent:
        concurrent, reason = options.max_concurrent, "as requested"
    # half of the CPUs stay free for the images, as in a plain run
    reserved = 0.0 if workers > 1 else int(100 * min(1.0, cpus / 2 / concurrent)) / 100
    if workers == 1 and reserved <= 0:
        raise ConfigError(
            f"--max-concurrent: received {options.max_concurrent}, but the cluster has {cpus:g} CPUs. Give fewer"
        )
    one = 1.0 if gpus and workers == 1 else 0.0
    return TrialResources(concurrent, reason, reserved, one, _HEAD_GPU * one)
