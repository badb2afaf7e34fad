"""Logs runs and sweeps to MLflow: parameters, metrics, tags, artifacts, final status.

Metrics have the same names in both phases; their step is the number of the epoch, and the metric `phase` changes from 1
to 2. A sweep is a run with a child run for each trial; its result is at the sweep and at the winner.
"""

from __future__ import annotations

from typing import Any

from pharmclf import storage
from pharmclf.config import from_dict, to_yaml
from pharmclf.core.console import Say
from pharmclf.core.events import EpochRecord
from pharmclf.runs.record import RUN_FILE, flatten
from pharmclf.schema_version import load_record
from pharmclf.tracking.mlflow_client import ID_TAG, PARENT_TAG, MlflowExperiment, MlflowRun, run_identity
from pharmclf.tracking.snapshots import (
    RunSnapshot,
    SweepSnapshot,
    TrialSnapshot,
    final_metrics,
    metrics_by_step,
    outcome_text,
    run_tags,
)

EXPERIMENT = "pharmclf"
"""Experiment of the runs that belong to no sweep."""
_STATUSES = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_TRIAL_STATUSES = {"trained": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
_DESCRIPTION_TAG = "mlflow.note.content"
_WINNER_TAG = "winner"


class MlflowRunLogger:
    """Logs a run."""

    def __init__(self, uri: str, say: Say, snapshot: RunSnapshot) -> None:
        """Find or create the run on the server, and show its URL."""
        self._run = MlflowExperiment(uri, EXPERIMENT).open(run_identity(snapshot.folder), snapshot.name, snapshot.tags)
        say(f"MLflow: {self._run.page}")

    def deliver(self, snapshot: RunSnapshot) -> None:
        """Bring the run on the server up to date."""
        run = self._run
        if run.finished and snapshot.state == "complete":
            return
        run.reopen()
        run.add_params(snapshot.settings)
        run.add_epochs(snapshot.epochs)
        if snapshot.state == "complete":
            _add_result(run, snapshot)
        if snapshot.state in _STATUSES:
            run.end(_STATUSES[snapshot.state])


class MlflowSweepLogger:
    """Logs a sweep as a run with child runs."""

    def __init__(self, uri: str, say: Say, snapshot: SweepSnapshot) -> None:
        """Find or create the run of the sweep on the server, and show its URL."""
        record = snapshot.record
        self._identity = run_identity(snapshot.folder)
        self._experiment = MlflowExperiment(uri, snapshot.name)
        tags = {"kind": "sweep", **run_tags(snapshot.folder, record["fingerprints"], record["versions"])}
        self._run = self._experiment.open(self._identity, snapshot.name, tags)
        self._run.reopen()
        self._run.add_params(flatten(record["settings"]["plain"]))
        self._run.set_tags({f"sweep.{name}": value for name, value in record["options"].items()})
        self._ended = {child.data.tags[ID_TAG] for child in self._children() if child.info.status != "RUNNING"}
        say(f"MLflow: {self._run.page}")

    def deliver(self, snapshot: SweepSnapshot) -> None:
        """Bring the sweep on the server up to date."""
        for number, trial in sorted(snapshot.trials.items()):
            if (identity := self._trial_identity(number)) not in self._ended:
                self._add_trial(self._open(identity, f"trial {number}"), trial)
                self._ended.add(identity)
        if snapshot.state == "complete":
            self._add_winner(snapshot)
        if snapshot.state in _STATUSES:
            self._run.upload(snapshot.folder, to_yaml(snapshot.config))
            self._run.end(_STATUSES[snapshot.state])

    def _add_trial(self, run: MlflowRun, trial: TrialSnapshot) -> None:
        facts = trial.facts
        run.add_params(facts.params)
        tags = {"trial": facts.number, "state": facts.state, "reason": facts.reason, "folder": trial.folder}
        run.set_tags({name: value for name, value in tags.items() if value != ""})
        run.add_epochs(trial.epochs)
        if trial.epochs:
            used = {"seconds": facts.seconds, "cpu_seconds": facts.cpu_s, "gpu_seconds": facts.gpu_s}
            run.add_numbers(used, trial.epochs[-1].at, trial.epochs[-1].ended_s)
        run.end(_TRIAL_STATUSES[facts.state])

    def _add_winner(self, snapshot: SweepSnapshot) -> None:
        number, folder, result = (snapshot.record[name] for name in ("winner", "winner_folder", "result"))
        trial = snapshot.trials[number]
        identity, name, epochs = self._trial_identity(number), f"trial {number}", trial.epochs
        if folder != trial.folder:  # its configuration was retrained
            identity, name = f"{self._identity}-winner", "winner"
            history = storage.read_json(storage.join(folder, "history.json"))
            epochs = metrics_by_step(snapshot.config, map(EpochRecord.from_dict, history))
        winner = self._open(identity, name)
        for child in self._children():
            if _WINNER_TAG in child.data.tags and child.info.run_id != winner.id:  # of the sweep with fewer trials
                self._experiment.drop_tag(child.info.run_id, _WINNER_TAG)
        winner.add_params(trial.facts.params)
        winner.add_epochs(epochs)
        winner.set_tags({_WINNER_TAG: "true", "trial": number, "folder": folder})
        config = from_dict(load_record(storage.join(folder, RUN_FILE))["config"])
        ended_s = snapshot.ended_s
        _add_result(winner, RunSnapshot(name=name, folder=folder, config=config, epochs=epochs, ended_s=ended_s))
        winner.end("FINISHED")
        text = f"The winner is trial {number}. {outcome_text(result, folder)}"
        self._run.set_tags({_WINNER_TAG: number, _DESCRIPTION_TAG: text})
        self._run.add_numbers(final_metrics(result), snapshot.record["trials"], ended_s)

    def _children(self) -> list[Any]:
        return self._experiment.find(f"tags.`{PARENT_TAG}` = '{self._run.id}'")

    def _open(self, identity: str, name: str) -> MlflowRun:
        return self._experiment.open(identity, name, {PARENT_TAG: self._run.id, "kind": "trial"})

    def _trial_identity(self, number: int) -> str:
        return f"{self._identity}-{number:04d}"


def _add_result(run: MlflowRun, snapshot: RunSnapshot) -> None:
    last, result = snapshot.epochs[-1], snapshot.read_result()
    # metrics of the last epoch would get a second point at its step
    metrics = {name: value for name, value in final_metrics(result).items() if name not in last.numbers}
    run.add_numbers(metrics, last.at, snapshot.ended_s)
    run.set_tags({_DESCRIPTION_TAG: outcome_text(result, snapshot.folder)})
    run.upload(snapshot.folder, to_yaml(snapshot.config))
