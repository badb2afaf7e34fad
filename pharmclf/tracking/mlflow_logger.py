"""A run and a sweep as MLflow shall show them: what is a parameter, a metric, a tag and an artifact, and when it ends.

A run's metrics have the same names through both phases, over the number of the epoch; the metric `phase` steps from 1
to 2. A sweep is a run with one run below it for each trial; what it comes to stands at the sweep and at the winner.
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
"""Of runs that belong to no sweep."""
_STATUSES = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}  # of a run that may go on: running
_TRIAL_STATUSES = {"trained": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
_DESCRIPTION_TAG = "mlflow.note.content"
_WINNER_TAG = "winner"


class MlflowRunLogger:
    """A run on the server, once that answers."""

    def __init__(self, uri: str, say: Say) -> None:
        self._uri, self._say = uri, say
        self._run: MlflowRun | None = None

    def deliver(self, story: RunSnapshot) -> None:
        """Bring it up to date."""
        if self._run is None:
            runs = MlflowExperiment(self._uri, EXPERIMENT)
            self._run = runs.open(run_identity(story.folder), story.name, story.tags)
            self._say(f"MLflow: {self._run.page}")
        run = self._run
        if run.finished and story.state == "complete":
            return
        run.reopen()
        run.add_params(story.settings)
        run.add_epochs(story.epochs)
        if story.state == "complete":
            _add_result(run, story)
        if story.state in _STATUSES:
            run.end(_STATUSES[story.state])


class MlflowSweepLogger:
    """A sweep on the server, once that answers."""

    def __init__(self, uri: str, say: Say) -> None:
        self._uri, self._say = uri, say
        self._told: _MlflowSweepState | None = None

    def deliver(self, story: SweepSnapshot) -> None:
        """Bring it up to date."""
        if self._told is None:
            self._told = _MlflowSweepState(self._uri, story)
            self._say(f"MLflow: {self._told.page}")
        self._told.update(story)


class _MlflowSweepState:
    """What has been told of a sweep, by this driver and those before."""

    def __init__(self, uri: str, story: SweepSnapshot) -> None:
        self._identity = run_identity(story.folder)
        self._runs = MlflowExperiment(uri, story.name)
        tags = {"kind": "sweep", **run_tags(story.folder, story.record["fingerprints"], story.record["versions"])}
        self._sweep = self._runs.open(self._identity, story.name, tags)
        self._sweep.reopen()
        self._sweep.add_params(flatten(story.record["settings"]["plain"]))
        self._sweep.set_tags({f"sweep.{name}": value for name, value in story.record["options"].items()})
        self.page = self._sweep.page
        self._ended = {run.data.tags[ID_TAG] for run in self._below() if run.info.status != "RUNNING"}

    def update(self, story: SweepSnapshot) -> None:
        """Add what is missing."""
        for number, trial in sorted(story.trials.items()):
            if (identity := self._identity_of(number)) not in self._ended:
                self._add_trial(self._open(identity, f"trial {number}"), trial)
                self._ended.add(identity)
        if story.state == "complete":
            self._add_winner(story)
        if story.state in _STATUSES:
            self._sweep.add_text(to_yaml(story.config), "config.yaml")
            self._sweep.upload(story.folder)
            self._sweep.end(_STATUSES[story.state])

    def _add_trial(self, run: MlflowRun, trial: TrialSnapshot) -> None:
        facts = trial.facts
        run.add_params(facts.params)
        about = {"trial": facts.number, "state": facts.state, "reason": facts.reason, "folder": trial.folder}
        run.set_tags({name: value for name, value in about.items() if value != ""})
        run.add_epochs(trial.epochs)
        if trial.epochs:
            used = {"seconds": facts.seconds, "cpu_seconds": facts.cpu_s, "gpu_seconds": facts.gpu_s}
            run.add_numbers(used, trial.epochs[-1].at, trial.epochs[-1].ended_s)
        run.end(_TRIAL_STATUSES[facts.state])

    def _add_winner(self, story: SweepSnapshot) -> None:
        number, folder, result = (story.record[name] for name in ("winner", "winner_folder", "result"))
        trial = story.trials[number]
        identity, name, epochs = self._identity_of(number), f"trial {number}", trial.epochs
        if folder != trial.folder:  # its configuration was trained anew
            identity, name = f"{self._identity}-winner", "winner"
            history = storage.read_json(storage.join(folder, "history.json"))
            epochs = metrics_by_step(story.config, map(EpochRecord.from_dict, history))
        winner = self._open(identity, name)
        for other in self._below():
            if _WINNER_TAG in other.data.tags and other.info.run_id != winner.id:  # before there were more trials
                self._runs.drop_tag(other.info.run_id, _WINNER_TAG)
        winner.add_params(trial.facts.params)
        winner.add_epochs(epochs)
        winner.set_tags({_WINNER_TAG: "true", "trial": number, "folder": folder})
        config = from_dict(load_record(storage.join(folder, RUN_FILE))["config"])
        _add_result(winner, RunSnapshot(name=name, folder=folder, config=config, epochs=epochs, ended_s=story.ended_s))
        winner.end("FINISHED")
        text = f"The winner is trial {number}. {outcome_text(result, folder)}"
        self._sweep.set_tags({_WINNER_TAG: number, _DESCRIPTION_TAG: text})
        self._sweep.add_numbers(final_metrics(result), story.record["trials"], story.ended_s)

    def _below(self) -> list[Any]:
        return self._runs.find(f"tags.`{PARENT_TAG}` = '{self._sweep.id}'")

    def _open(self, identity: str, name: str) -> MlflowRun:
        return self._runs.open(identity, name, {PARENT_TAG: self._sweep.id, "kind": "trial"})

    def _identity_of(self, number: int) -> str:
        return f"{self._identity}-{number:04d}"


def _add_result(run: MlflowRun, story: RunSnapshot) -> None:
    """Final numbers, the outcome in words, the configuration, and the files that people look at."""
    last, result = story.epochs[-1], story.read_result()
    # what the epochs have told already would be a second point at the last of them
    fresh = {name: value for name, value in final_metrics(result).items() if name not in last.numbers}
    run.add_numbers(fresh, last.at, story.ended_s)
    run.set_tags({_DESCRIPTION_TAG: outcome_text(result, story.folder)})
    run.add_text(to_yaml(story.config), "config.yaml")
    run.upload(story.folder)
