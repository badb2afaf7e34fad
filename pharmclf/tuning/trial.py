"""A trial in its worker: the loop of a run, or several heads as one program, without a test and without saved models.

A worker that has ended one trial is given the next: TensorFlow and the backbone stay loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import psutil
import ray
from ray import tune

from pharmclf import storage
from pharmclf.config import RunConfig, from_dict
from pharmclf.core.errors import first_line, format_error
from pharmclf.core.events import EpochEnd, Event, HeadsEpochEnd, ImagesQuarantined, Note
from pharmclf.core.signals import StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError, delete_corrupted
from pharmclf.runs.record import RunRecord
from pharmclf.storage.lease import EXPIRES_S, Lease, LeaseHeldError
from pharmclf.training.context import TrainingContext, TrainingDivergedError
from pharmclf.training.phases import build_phases
from pharmclf.training.train_state import TrainStatus
from pharmclf.training_run import build_training_context, feature_request, quarantine_reporter, train_with_feature_cache

QUARANTINED = "quarantined"
"""In a report: row and reason of each image that no longer matches the manifest."""
_LEASE_RETRY_S = 2.0
_STOP_POLL_INTERVAL_S = 0.5
_FINAL_CHECKPOINT_TIMEOUT_S = 120  # for the checkpoint of a trial that is stopped, before its worker is given the next


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What all trials of a sweep are given, once for each worker."""

    manifest: Manifest
    share: float
    """Of the cluster, for each trial."""
    threads: int
    """Threads of TensorFlow's kernels in a worker; 0: all cores."""
    stop: Any = None
    """Handle of a `StopFlag`."""


class StopFlag:
    """Actor that signals the end of the sweep to the workers of all trials, also in the middle of an epoch."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def set(self) -> None:
        """Signal the end."""
        self._event.set()

    async def wait(self) -> None:
        """Return when the sweep ends."""
        await self._event.wait()


def train_group(group: dict[str, Any], shared: TrialContext) -> None:
    """Train one trial, or several heads that are one program, and report to Ray Tune.

    A report holds `epoch`: number of the trial, record of the epoch, and what has been used by then; the last one
    `ended`: for each trial number, state, reason, history (None: as reported) and what was used. An epoch also reports
    the images that differ from the manifest, row and reason. An error of a trial is in its report, so that the sweep
    continues.

    Args:
        group: `trials`: for each trial number, config, folder, record (of its run.json) and fingerprints; `depths`:
            those with cached features; `gpus`: that it holds.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_FINAL_CHECKPOINT_TIMEOUT_S)
    if shared.threads:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(shared.threads))
    process, began, parts = psutil.Process(), time.monotonic(), len(group["trials"])
    before = sum(process.cpu_times()[:2])

    def used() -> dict[str, float]:
        seconds, cpu_s = time.monotonic() - began, sum(process.cpu_times()[:2]) - before
        return {"seconds": seconds / parts, "cpu_s": cpu_s / parts, "gpu_s": group["gpus"] * seconds / parts}

    with _hold_leases([trial["folder"] for trial in group["trials"]]):
        outcomes = (_train_one if parts == 1 else _train_heads)(group, shared, used)
    gc.collect()  # the graphs of a trial reference each other; free them before the next one
    numbers = [trial["number"] for trial in group["trials"]]
    tune.report({"ended": [[number, outcome | used()] for number, outcome in zip(numbers, outcomes, strict=True)]})


def _train_one(
    group: Mapping[str, Any], shared: TrialContext, used: Callable[[], dict[str, float]]
) -> list[dict[str, Any]]:
    (trial,) = group["trials"]
    config = from_dict(trial["config"])
    observer = _TrialCallback(trial["number"], used, shared.stop)
    names = [phase.name for phase in build_phases(config) if phase.unfreeze_blocks in group["depths"]]
    try:
        job = _trial_context(config, trial, shared)
        record = RunRecord.from_dict(trial["record"])
        record.resolved = replace(record.resolved, cached_phases=tuple(names))
        outcome = train_with_feature_cache(job, shared.manifest, observer, record, share=shared.share)
    except TrainingDivergedError as error:
        return [{"state": "diverged", "reason": str(error), "history": None}]
    except StopRequested:  # by the sweep; what is read of it is in its checkpoints
        observer.leave()
    except Exception as error:
        return [_trial_failure(error)]
    return [{"state": "trained", "reason": "", "history": [record.to_dict() for record in outcome.history]}]


def _train_heads(
    group: Mapping[str, Any], shared: TrialContext, used: Callable[[], dict[str, float]]
) -> list[dict[str, Any]]:
    """Train the heads of several trials as one program."""
    with suppress_native_stderr():
        from pharmclf.models.devices import configure_devices_for
        from pharmclf.training import collectives
        from pharmclf.training.vectorized_heads import HeadSpec, train_heads

    trials = group["trials"]
    configs = [from_dict(trial["config"]) for trial in trials]
    observer = _TrialCallback(None, used, shared.stop)
    try:
        configure_devices_for(configs[0])
        job = _trial_context(configs[0], trials[0], shared)
        wish = feature_request(
            job, shared.manifest, 0, observer.say, observer.should_stop, quarantine_reporter(observer)
        )
        names = [phase.name for phase in build_phases(configs[0])]
        heads = [
            HeadSpec(config=config, folder=trial["folder"], fingerprints=trial["fingerprints"])
            for config, trial in zip(configs, trials, strict=True)
        ]
        try:
            kept = get_or_compute(wish, earlier=names)
            outcomes = train_heads(replace(job, activations=kept), heads, collectives.single_worker(), observer)
        except FeatureCacheCorruptedError:
            delete_corrupted(kept.values())
            kept = get_or_compute(wish, earlier=names)
            outcomes = train_heads(replace(job, activations=kept), heads, collectives.single_worker(), observer)
        if any(outcome.status is TrainStatus.STOPPED for outcome in outcomes):
            raise StopRequested
    except StopRequested:
        observer.leave()
    except Exception as error:
        return [_trial_failure(error) for _ in trials]
    states = {TrainStatus.COMPLETE: "trained", TrainStatus.DIVERGED: "diverged"}
    return [
        {
            "state": states[outcome.status],
            "reason": outcome.reason,
            # of the time that all took together, each has its part
            "history": [record.to_dict() | {"seconds": record.seconds / len(trials)} for record in outcome.history],
        }
        for outcome in outcomes
    ]


def _trial_context(config: RunConfig, trial: Mapping[str, Any], shared: TrialContext) -> TrainingContext:
    job = build_training_context(config, trial["folder"], shared.manifest, trial["fingerprints"])
    return replace(job, saves_models=False)


def _trial_failure(error: Exception) -> dict[str, Any]:
    away = isinstance(error, storage.StorageUnavailableError)  # no other trial would fare better
    reason = first_line(error) if away else format_error(error)
    return {"state": "failed", "reason": reason, "history": None, "away": away}


@contextlib.contextmanager
def _hold_leases(folders: list[str]) -> Iterator[None]:
    """Hold the leases of trials; the worker of a driver that was killed may still be writing, and is waited for."""
    deadline = time.monotonic() + 2 * EXPIRES_S
    with contextlib.ExitStack() as stack:
        for folder in folders:
            while True:
                try:
                    stack.enter_context(Lease.acquire(folder))
                    break
                except LeaseHeldError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_LEASE_RETRY_S)
        yield


class _TrialCallback:
    """Passes epochs on to the sweep, which may end the trial at each."""

    def __init__(self, number: int | None, used: Callable[[], dict[str, float]], stop: Any) -> None:
        self._number, self._used, self._stopped = number, used, False
        self._lost: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # they come from threads
        self._sweep_ends, self._asked_at, self._ends = stop and stop.wait.remote(), 0.0, False

    def say(self, text: str) -> None:
        """Of what a trial says, the sweep shows what has gone wrong."""
        if text.startswith("warning"):
            self._report({"note": text})

    def on_event(self, event: Event, /) -> None:
        """Report an epoch. (chief only)"""
        match event:
            case ImagesQuarantined():
                for lost in event.reasons.items():
                    self._lost.put(lost)
            case Note():
                self.say(event.text)
            case EpochEnd() if self._number is not None:
                self._report({"epoch": [self._number, event.record.to_dict(), self._used()]})
            case HeadsEpochEnd():
                self._report({"heads": asdict(event)})

    def should_stop(self) -> bool:
        """Whether the sweep has ended the trial, at an epoch, or ends itself."""
        if (
            not self._ends
            and self._sweep_ends is not None
            and time.monotonic() - self._asked_at > _STOP_POLL_INTERVAL_S
        ):
            self._asked_at = time.monotonic()
            self._ends = bool(ray.wait([self._sweep_ends], timeout=0)[0])
        return self._stopped or self._ends

    def leave(self) -> NoReturn:
        """End the worker's function, in Ray Tune's own way: it answers the last report of a sweep that ends so."""
        self._report({"stopped": True})
        sys.exit(0)

    def _report(self, values: dict[str, Any]) -> None:
        if self._stopped:
            return
        lost = [self._lost.get() for _ in range(self._lost.qsize())]
        try:
            tune.report(values | ({QUARANTINED: lost} if lost else {}))
        except SystemExit:  # Ray Tune ends a trial in this way; the loop must end by itself
            self._stopped = True
