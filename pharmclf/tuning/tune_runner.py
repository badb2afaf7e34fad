"""Lets Ray Tune train the trials of a store: Ray Tune has the workers, the store decides what to train and to stop.

The files of Ray Tune are temporary: a resumed sweep needs only the store.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pharmclf.core.background import run_in_thread
from pharmclf.core.console import Say, is_live, show_activity
from pharmclf.core.events import EpochRecord
from pharmclf.core.rate import RateEstimator
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.terminal import Activity, Progress
from pharmclf.core.units import format_duration
from pharmclf.core.usual_times import START_WORKERS_S
from pharmclf.data.quarantine import OnLost
from pharmclf.reporting.sweep_tables import live_table
from pharmclf.reporting.trial_info import short_names
from pharmclf.tuning.options import TrialResources
from pharmclf.tuning.trial import QUARANTINED, StopFlag, TrialContext, train_group
from pharmclf.tuning.trial_store import Trial, TrialStore

_MAX_WORKER_FAILURES = 3  # of one trial, after which it counts as failed
_TABLE_INTERVAL_S = 30.0
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Ray's own notes are not what a sweep is resumed from
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TuneRunner:
    """Connects the store with Ray Tune; called by the threads of Ray Tune and of the driver."""

    def __init__(
        self,
        store: TrialStore,
        room: TrialResources,
        stop_requested: Callable[[], bool],
        say: Say,
        *,
        ended: Callable[[Trial], None],
        lost: OnLost,
        reuse_workers: bool = True,
    ) -> None:
        """Nothing is started yet.

        Args:
            lost: takes the images that a trial has found to be other than the manifest says.
        """
        self.store, self.room, self.say, self._reuse = store, room, say, reuse_workers
        self._ended, self._lost = ended, lost
        self._stop_requested = stop_requested
        self._lock = threading.Lock()
        self._running: dict[str, list[Trial]] = {}
        self._flag: Any = None
        self._told = False  # the workers, that the sweep ends
        self._shown = time.monotonic()
        self._rate = RateEstimator()

    def run(self, shared: TrialContext) -> None:
        """Train all trials, or until a stop is requested; interrupted ones resume the next time."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        own = tempfile.mkdtemp(prefix="pharmclf-ray-tune-")
        self._flag = ray.remote(num_cpus=0)(StopFlag).remote()
        shared = dataclasses.replace(shared, stop=self._flag)
        trainable = tune.with_resources(tune.with_parameters(train_group, shared=shared), _resources)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_LedgerSearcher(self),
                scheduler=_LedgerScheduler(self),
                num_samples=-1,
                reuse_actors=self._reuse,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=own,
                failure_config=tune.FailureConfig(max_failures=_MAX_WORKER_FAILURES),
                verbose=0,
            ),
        )
        try:
            with suppress_native_stderr(), show_activity("starting the trials", START_WORKERS_S) as activity:
                run_in_thread(tuner.fit, lambda: self._on_poll(activity))
        finally:
            ray.kill(self._flag)
            shutil.rmtree(own, ignore_errors=True)

    # ------------------------------------------------------------------ asked by Ray Tune

    def suggest(self, tune_id: str) -> dict[str, Any] | str | None:
        """What a worker trains next; None: all resources are used; FINISHED: nothing is left."""
        with self._lock:
            if self._stop_requested() or self.store.all_chosen:
                return str(Searcher.FINISHED)
            if len(self._running) >= self.room.concurrent:
                return None
            trials = self.store.next_group()
            if not trials:
                return None
            self._running[tune_id] = trials
            config = trials[0].config
            heads = self.store.trains_head_only(trials[0])
            return {
                "trials": self.store.start(trials),
                "depths": list(self.store.cached_depths(config)),
                "cpus": self.room.cpus,
                "gpus": self.room.head_gpus if heads else self.room.gpus,
            }

    def on_result(self, result: Mapping[str, Any]) -> bool:
        """Handle the report of a worker -> whether it continues."""
        with self._lock:
            if "note" in result:
                self.say(result["note"])
            if QUARANTINED in result:
                self._lost(dict(result[QUARANTINED]))
            for number, outcome in result.get("ended", ()):
                self._print_trial(self.store.end(number, outcome))
            goes_on = True
            if "epoch" in result:
                number, record, used = result["epoch"]
                goes_on = self.store.add_epoch(number, EpochRecord.from_dict(record), used)
                if not goes_on:
                    self._print_trial(self.store.trials[number])
            return goes_on and not self._stop_requested()

    def on_trial_end(self, tune_id: str, *, error: bool) -> None:
        """A worker has ended what it was given."""
        with self._lock:
            for trial in self._running.pop(tune_id, ()):
                if error and not trial.ended:
                    self._print_trial(
                        self.store.fail(trial.number, f"its worker died {_MAX_WORKER_FAILURES + 1} times")
                    )

    # ------------------------------------------------------------------ console

    def _on_poll(self, activity: Activity) -> None:
        if self._stop_requested() and not self._told:
            self._told = True
            self._flag.set.remote()
        with self._lock:
            if progress := self._progress():
                activity.progress("trials", progress)
            if not is_live() and time.monotonic() - self._shown > _TABLE_INTERVAL_S:
                self._shown = time.monotonic()
                self.say(live_table(self.store.trial_infos(), self._eta(), num_trials=self.store.plan.total))

    def _print_trial(self, trial: Trial) -> None:
        if trial.state == "running":
            return
        self._ended(trial)
        names = short_names(trial.values)
        about = ", ".join(f"{names[name]} {_text(value)}" for name, value in trial.values.items())
        score = f" {trial.score:.4f}" if trial.score is not None else ""
        reason = f" ({trial.reason})" if trial.reason else ""
        seconds = trial.used.get("seconds", 0.0)
        self.say(f"trial {trial.number}: {trial.state}{score} in {seconds:.0f} s{reason}: {about}")
        self._shown = time.monotonic()

    def _progress(self) -> Progress | None:
        """How far the sweep is; None before the first epoch. A trial counts by its epochs until it has ended."""
        trials, total, base = self.store.trials.values(), self.store.plan.total, self.store.plan.base
        epochs = base.phase1.epochs + base.phase2.epochs
        done = sum(1.0 if trial.ended else min(1.0, len(trial.history) / epochs) for trial in trials)
        if not done:
            return None
        self._rate.update(done, time.monotonic())
        ended, running = sum(trial.ended for trial in trials), sum(trial.state == "running" for trial in trials)
        scores = [trial.score for trial in trials if trial.score is not None]
        details = [f"{running} running", *([f"best {max(scores):.3f}"] if scores else [])]
        return Progress(done / total, f"{ended}/{total}", details, self._rate.eta_s(total - done))

    def _eta(self) -> str:
        progress = self._progress()
        return "not known yet" if progress is None or progress.eta_s is None else format_duration(progress.eta_s)


def _resources(group: Mapping[str, Any]) -> dict[str, float]:
    """What the worker of a trial reserves."""
    gpus = {"gpu": group["gpus"]} if group["gpus"] else {}
    # a process that only waits takes nothing from the workers of its trial, but Ray Tune must be given something
    return {"cpu": group["cpus"], **gpus} if group["cpus"] else {"cpu": 0, "memory": 1}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _LedgerSearcher(Searcher):
    """Gives Ray Tune what to train."""

    def __init__(self, conductor: TuneRunner) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        return self._conductor.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
        self._conductor.on_trial_end(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store has it."""

    def __getstate__(self) -> dict[str, Any]:  # Ray Tune pickles what it is given
        return {}


class _LedgerScheduler(FIFOScheduler):
    """Reports to Ray Tune which trials continue."""

    def __init__(self, conductor: TuneRunner) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:  # noqa: ARG002
        return str(self.CONTINUE if self._conductor.on_result(result) else self.STOP)

    def __getstate__(self) -> dict[str, Any]:
        return {}
