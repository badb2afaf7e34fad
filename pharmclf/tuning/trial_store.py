"""The trials of a sweep in storage: finished ones stay finished, interrupted ones resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig, to_dict, to_record
from pharmclf.core.events import EpochRecord
from pharmclf.core.hashing import fingerprint
from pharmclf.models.devices import with_precision
from pharmclf.reporting.trial_info import TrialInfo, TrialState
from pharmclf.runs.record import RUN_FILE, result_settings, versions
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, load_record
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.grouping import group_key
from pharmclf.training.lr_schedule import selection_score
from pharmclf.training.phases import number_epochs
from pharmclf.tuning.asha import rung_that_stops
from pharmclf.tuning.search import ObservedTrial, SweepSpec
from pharmclf.tuning.space import Value

HISTORY_FILE = "history.json"
_MAX_HEADS = 32  # of one program
# a failure says nothing of a trial's values
_SCORED_STATES: tuple[TrialState, ...] = ("trained", "stopped", "diverged")
_MAX_PROPOSED_AHEAD = 8  # heads that are chosen together where the choice could learn from each


@dataclass
class Trial:
    """One trial, and what is known of it by now."""

    number: int
    values: dict[str, Value]
    """Of the parameters that count in it."""
    config: RunConfig
    folder: str
    state: TrialState | None = None
    """None: it has not begun."""
    reason: str = ""
    history: dict[int, EpochRecord] = field(default_factory=dict)
    """Records of its epochs, by their number counted over both phases."""
    used: dict[str, float] = field(default_factory=dict)
    """seconds, cpu_s, gpu_s, of all processes that trained it."""
    before: dict[str, float] = field(default_factory=dict)
    """Of `used`, what the processes before the present one had used."""
    told: dict[str, float] = field(default_factory=dict)
    """The last report of the present process."""
    fingerprints: dict[str, Any] = field(default_factory=dict)
    """What its checkpoints hold, of a trial that has begun; an earlier version may have had other settings."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is trained of it."""
        return self.state not in (None, "running")

    @property
    def epochs(self) -> dict[int, EpochRecord]:
        """`history` in order."""
        return dict(sorted(self.history.items()))

    @property
    def score(self) -> float | None:
        """The best of what its epochs are chosen by; 0 where it diverged; None where there is none."""
        if self.state == "diverged":
            return 0.0
        return max(map(selection_score, self.history.values()), default=None)

    def add_used(self, used: Mapping[str, float]) -> None:
        """Take what the present process has used so far."""
        if any(value < self.told.get(name, 0.0) for name, value in used.items()):
            # it is another: the one before it has died
            self.before = dict(self.used)
        self.told = dict(used)
        self.used = {name: self.before.get(name, 0.0) + value for name, value in used.items()}


class TrialStore:
    """All trials of a sweep."""

    def __init__(self, plan: SweepSpec) -> None:
        """Read the trials in the folder of the sweep.

        Raises:
            OSError: the storage does not answer.
        """
        self.plan = plan
        self.trials: dict[int, Trial] = {}
        self._versions = versions()  # once, because it takes a while, and every trial is written twice
        self.fatal = ""
        """Why no trial can continue; "": they can."""
        home = storage.join(plan.folder, "trials")
        for name in storage.list_folders(home):
            location = storage.join(home, name, RUN_FILE)
            if name.isdigit() and storage.is_file(location):
                record = load_record(location)
                about = record["trial"]
                trial = self._trial(int(name), about["values"])
                self._restore_trial(trial, about)
                trial.fingerprints = dict(record.get("fingerprints", {}))
                self.trials[trial.number] = trial
        self.broken_off = [trial.number for trial in self.trials.values() if not trial.ended]
        """Numbers of those that were running when the sweep ended last."""

    # ------------------------------------------------------------------ choice

    def next_group(self) -> list[Trial]:
        """The trials to train next, as one program if they are several; []: there are none."""
        if self.fatal:
            return []
        if self.broken_off:  # they resume from their own checkpoints, one by one
            return [self.trials[self.broken_off.pop(0)]]
        self._choose()
        waiting = [trial for trial in self.trials.values() if trial.state is None]
        if not waiting:
            return []
        first = waiting[0]
        key = self._group_key(first)
        if key is None:
            return [first]
        alike = [trial for trial in waiting if trial is first or self._group_key(trial) == key]
        return alike[:_MAX_HEADS]

    @property
    def all_chosen(self) -> bool:
        """Whether no trial is left to begin."""
        begun = {trial.number for trial in self.trials.values() if trial.state is not None}
        return bool(self.fatal) or (begun.issuperset(range(self.plan.total)) and not self.broken_off)

    def _choose(self) -> None:
        """Choose parameters as far ahead as the search loses nothing by it."""
        if any(trial.state is None for trial in self.trials.values()):
            return
        # groups begin out of turn, so that a number may be missing among those of a resumed sweep
        left = [number for number in range(self.plan.total) if number not in self.trials]
        free = [number for number in left if not self.plan.search.depends_on_others(number)]
        only_heads = all(self._group_key(trial) is not None for trial in self.trials.values())
        for number in free or left[: _MAX_PROPOSED_AHEAD if only_heads else 1]:
            self.trials[number] = self._trial(number, self._propose(number) if number else self._plain())

    def _plain(self) -> dict[str, Value]:
        """What counts of the plain run's parameters."""
        space = self.plan.space
        every = space.values_of(self.plan.base)
        return {each.name: every[each.name] for each in space.parameters if space.is_active(each, every)}

    def _propose(self, number: int) -> dict[str, Value]:
        known = [
            ObservedTrial(trial.values, trial.score if trial.state in _SCORED_STATES else None, trial.ended)
            for trial in self.trials.values()
            if trial.number < number
        ]
        return self.plan.search.propose(number, known)

    def _group_key(self, trial: Trial) -> str | None:
        """What trials of one program have in common; None for one that trains by itself."""
        kept = 0 in self.cached_depths(trial.config)
        return group_key(self._on_device(trial)) if self.plan.batch_heads and kept else None

    def _on_device(self, trial: Trial) -> RunConfig:
        """The configuration that a worker trains, in the precision that all trials have."""
        return with_precision(trial.config, self.plan.precision)

    def trains_head_only(self, trial: Trial) -> bool:
        """Whether a trial trains only the head, on cached features."""
        return self._group_key(trial) is not None

    def cached_depths(self, config: RunConfig) -> Sequence[int]:
        """The depths at which the features of a configuration are cached."""
        return self.plan.kept.get(feature_cache_settings(config), ())

    def _trial(self, number: int, values: Mapping[str, Value]) -> Trial:
        config = self.plan.space.config(self.plan.base, values)
        name = f"{number:04d}"
        folder = storage.join(self.plan.folder, "trials", name)
        return Trial(number, dict(values), dataclasses.replace(config, name=name), folder)

    # ------------------------------------------------------------------ events

    def start(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Some trials are given to a worker -> what it needs of each."""
        members = []
        for trial in trials:
            trial.state, trial.before, trial.told = "running", dict(trial.used), {}
            self._write(trial)
            members.append(
                {
                    "number": trial.number,
                    "config": to_dict(self._on_device(trial)),
                    "folder": trial.folder,
                    "record": self._record(trial),
                    "fingerprints": self.trial_fingerprints(trial),
                }
            )
        return members

    def add_epoch(self, number: int, record: EpochRecord, used: Mapping[str, float]) -> bool:
        """Add an epoch of a trial -> whether it continues."""
        trial = self.trials[number]
        trial.history |= number_epochs(trial.config, [record])
        trial.add_used(used)
        histories = {other.number: other.history for other in self.trials.values() if other.history}
        rung = rung_that_stops(number, histories, self.plan.rungs, self.plan.factor)
        if rung is None:
            return True
        self._end(trial, "stopped", f"not among the best 1/{self.plan.factor} at epoch {rung}")
        return False

    def end(self, number: int, outcome: Mapping[str, Any]) -> Trial:
        """A worker has ended a trial; its outcome: state, reason, history (None: as reported) and what was used."""
        trial = self.trials[number]
        if outcome["history"] is not None:
            trial.history = number_epochs(trial.config, map(EpochRecord.from_dict, outcome["history"]))
        trial.add_used({name: outcome[name] for name in ("seconds", "cpu_s", "gpu_s")})
        if outcome.get("away"):  # it resumes when the storage is available again
            self.fatal = outcome["reason"]
            return trial
        self._end(trial, outcome["state"], outcome["reason"])
        return trial

    def fail(self, number: int, reason: str) -> Trial:
        """A trial's worker has died too often."""
        self._end(self.trials[number], "failed", reason)
        return self.trials[number]

    def _end(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.state, trial.reason = state, reason
        self._write(trial)

    # ------------------------------------------------------------------ storage

    def trial_fingerprints(self, trial: Trial) -> dict[str, Any]:
        """What the checkpoints of a trial must agree with."""
        now = {**self.plan.fingerprints, "settings": fingerprint(result_settings(trial.config))}
        return {**now, **trial.fingerprints}

    def _record(self, trial: Trial) -> dict[str, Any]:
        state = {"trained": "trained", "running": "running", "stopped": "stopped"}.get(str(trial.state), "failed")
        about = {"number": trial.number, "values": trial.values, "state": trial.state, "reason": trial.reason}
        return {
            SCHEMA_KEY: SCHEMA_VERSION,
            "name": f"{self.plan.folder.rsplit('/', 1)[-1]}/trials/{trial.config.name}",
            "settings": result_settings(trial.config),
            "config": to_record(trial.config),
            "fingerprints": self.trial_fingerprints(trial),
            "versions": self._versions,
            "state": state,
            "seconds": trial.used.get("seconds", 0.0),
            "trial": about | {"used": trial.used},
        }

    def _write(self, trial: Trial) -> None:
        if trial.ended:
            records = [record.to_dict() | {"at": number} for number, record in trial.epochs.items()]
            storage.write_json(storage.join(trial.folder, HISTORY_FILE), records)
        storage.write_json(storage.join(trial.folder, RUN_FILE), self._record(trial))

    def _restore_trial(self, trial: Trial, about: Mapping[str, Any]) -> None:
        trial.state, trial.reason, trial.used = about["state"], about["reason"], dict(about["used"])
        if trial.ended:
            records = storage.read_json(storage.join(trial.folder, HISTORY_FILE))
        else:
            checkpoints = list_checkpoints(storage.join(trial.folder, "checkpoints"))
            records = checkpoints[-1].state["history"] if checkpoints else []
        trial.history = number_epochs(trial.config, map(EpochRecord.from_dict, records))

    # ------------------------------------------------------------------ for the report

    def trial_infos(self) -> list[TrialInfo]:
        """What is known of every trial that has begun."""
        return [self.trial_info(trial) for _, trial in sorted(self.trials.items()) if trial.state is not None]

    def trial_info(self, trial: Trial) -> TrialInfo:
        """What is known of a trial that has begun."""
        plain = self.plan.space.values_of(self.plan.base)
        return TrialInfo(
            number=trial.number,
            params=plain | trial.values,
            state=trial.state or "running",
            reason=trial.reason,
            history=trial.epochs,
            **trial.used,
        )


def feature_cache_settings(config: RunConfig) -> str:
    """The settings, without the depth, that decide the features of a trial; trials that agree in them share a cache."""
    alike = {"backbone": config.backbone, "augment": to_dict(config)["augment"]}
    return fingerprint(alike)
