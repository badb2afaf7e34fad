"""The trials of a sweep as they stand in storage: nothing is trained twice, nothing is lost, whatever breaks off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.epoch_records import epoch_record

from pharmclf.config import AugmentConfig, PhaseConfig, RunConfig, from_dict
from pharmclf.core.events import EpochRecord
from pharmclf.training.checkpoint import write_checkpoint
from pharmclf.training.phases import Position
from pharmclf.tuning.search import STARTUP, ObservedTrial, Search, SearchName, SweepSpec
from pharmclf.tuning.space import Space, Value
from pharmclf.tuning.space_file import build_space
from pharmclf.tuning.trial_store import Trial, TrialStore, feature_cache_settings

BASE = RunConfig(
    name="sweep",
    num_workers="0",
    unfreeze_blocks=0,
    augment=AugmentConfig(views=2),
    phase1=PhaseConfig(epochs=2),
    phase2=PhaseConfig(epochs=4),
)
NO_HEADS = dataclasses.replace(BASE, unfreeze_blocks=2)
RATE = {"phase1.learning_rate": {"low": 1e-4, "high": 1e-2, "scale": "log", "points": 50}}
DEPTH = {"unfreeze_blocks": {"low": 0, "high": 1}}
USED = {"seconds": 10.0, "cpu_s": 20.0, "gpu_s": 0.0}
Opened = Callable[..., TrialStore]


def ledger_at(folder: Path, base: RunConfig = BASE, mapping: Any = None, /, **changes: Any) -> TrialStore:
    """A ledger over a folder; the same arguments again are a resumed sweep."""
    space = build_space(mapping or RATE, base, "test")
    name: SearchName = changes.pop("search", "random")
    plan = {"total": 4, "rungs": [], "factor": 3, "batch_heads": True, "kept": {feature_cache_settings(base): [0]}}
    plan |= {"fingerprints": {"data": "d", "weights": "imagenet"}, "folder": str(folder), "precision": "float32"}
    return TrialStore(SweepSpec(base=base, space=space, search=Search(name, space, 0), **(plan | changes)))  # type: ignore[arg-type]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Opens ledgers over one folder."""
    return lambda *args, **changes: ledger_at(tmp_path / "sweep", *args, **changes)


def epoch(at: int, accuracy: float) -> EpochRecord:
    """Two epochs of phase 1, the others of phase 2."""
    phase, number = ("phase1", at - 1) if at <= 2 else ("phase2", at - 3)
    return epoch_record(phase, number, val_accuracy=accuracy)


def outcome(
    state: str = "trained", reason: str = "", history: Sequence[EpochRecord] | None = None, **more: Any
) -> dict[str, Any]:
    records = None if history is None else [record.to_dict() for record in history]
    return {"state": state, "reason": reason, "history": records} | USED | more


def train(ledger: TrialStore, accuracy: float = 0.5) -> list[int]:
    """Train the next group to its end -> its numbers."""
    group = ledger.next_group()
    ledger.start(group)
    for trial in group:
        ledger.end(trial.number, outcome(history=[epoch(1, accuracy + trial.number / 100)]))
    return [trial.number for trial in group]


def train_all(ledger: TrialStore) -> list[list[int]]:
    groups = []
    while not ledger.all_chosen:
        groups.append(train(ledger))
        assert groups[-1], "there is nothing to train, and yet not all is chosen"
        assert len(groups) <= ledger.plan.total + len(ledger.trials), "trials are trained twice"
    assert ledger.next_group() == []
    return groups


def checkpoint(trial: Trial, *epochs: EpochRecord) -> None:
    """What a trial has written behind some epochs."""
    history = [record.to_dict() for record in epochs]
    tensors = {"weights": {"w": np.zeros(1, np.float32)}}
    write_checkpoint(f"{trial.folder}/checkpoints", Position(0, len(epochs), 0), tensors, {"history": history}, {})


def plain(trials: dict[int, Trial]) -> dict[int, Any]:
    """What shall be the same in a resumed sweep."""
    return {
        number: (trial.values, trial.config, trial.folder, trial.state, trial.reason, trial.epochs, trial.used)
        for number, trial in trials.items()
    }


# ---------------------------------------------------------------------- which trials there are


def test_trial_0_is_the_plain_run(opened: Opened):
    """With the values that it has, whether they lie in the ranges or not, and nothing else changed."""
    base = dataclasses.replace(BASE, phase1=PhaseConfig(epochs=2, learning_rate=0.5))
    first = opened(base).next_group()[0]
    assert first.number == 0
    assert first.values == {"phase1.learning_rate": 0.5}
    assert first.config == dataclasses.replace(base, name="0000")
    assert first.folder.endswith("sweep/trials/0000")


def test_the_plain_run_has_no_value_of_what_does_not_count_in_it(opened: Opened):
    """A search would learn from a number that did nothing."""
    mapping = DEPTH | {"phase2.learning_rate": {"low": 1e-5, "high": 1e-2, "when": {"unfreeze_blocks": {"low": 1}}}}
    assert opened(BASE, mapping).next_group()[0].values == {"unfreeze_blocks": 0}
    facts = opened(BASE, mapping)
    facts.start(facts.next_group())
    names = set(facts.trial_infos()[0].params)
    assert names == {"unfreeze_blocks", "phase2.learning_rate"}  # the report shows what was in effect


def test_the_other_trials_are_what_the_search_proposes(opened: Opened):
    """Each under its own number."""
    ledger = opened(total=5)
    ledger.next_group()
    for number in range(1, 5):
        assert ledger.trials[number].values == ledger.plan.search.propose(number, [])


@pytest.mark.parametrize("total", [1, 2, 7])
def test_there_are_as_many_trials_as_asked_for(opened: Opened, total: int):
    """All are trained, none twice, and then there are no more."""
    ledger = opened(NO_HEADS, total=total)
    assert train_all(ledger) == [[number] for number in range(total)]
    assert [facts.number for facts in ledger.trial_infos()] == list(range(total))


def test_a_worker_is_given_what_it_needs(opened: Opened):
    """Number, configuration, folder, record and fingerprints, as plain values; the record is in storage already."""
    ledger = opened(NO_HEADS)
    group = ledger.next_group()
    (member,) = json.loads(json.dumps(ledger.start(group)))
    assert set(member) == {"number", "config", "folder", "record", "fingerprints"}
    assert from_dict(member["config"]) == dataclasses.replace(group[0].config, precision=ledger.plan.precision)
    assert json.loads((Path(member["folder"]) / "run.json").read_text()) == member["record"]
    assert member["record"]["state"] == "running"
    assert member["record"]["name"] == "sweep/trials/0000"
    assert member["fingerprints"] == member["record"]["fingerprints"]
    assert {"data", "weights", "settings"} == set(member["fingerprints"])


# ---------------------------------------------------------------------- groups


def test_heads_of_one_key_are_one_group(opened: Opened):
    """They differ in numbers that each head has of its own."""
    assert train_all(opened(total=6)) == [list(range(6))]


def test_a_group_has_32_members_at_most(opened: Opened):
    """Of 40 heads the others are a second one."""
    assert [len(group) for group in train_all(opened(total=40))] == [32, 8]


def test_batch_heads_off_gives_each_alone(opened: Opened):
    """As where each trial has several workers."""
    assert train_all(opened(total=3, batch_heads=False)) == [[0], [1], [2]]


@pytest.mark.parametrize(
    "kept", [{}, {feature_cache_settings(BASE): []}, {feature_cache_settings(BASE): [1]}, {"other": [0]}]
)
def test_heads_without_kept_activations_train_alone(opened: Opened, kept: Any):
    """Each would go through the backbone by itself anyway."""
    assert train_all(opened(total=3, kept=kept)) == [[0], [1], [2]]


@pytest.mark.parametrize(("precision", "groups"), [("mixed_bfloat16", [[0, 1, 2]]), ("mixed_float16", [[0], [1], [2]])])
def test_heads_with_a_loss_scale_train_alone(opened: Opened, precision: str, groups: list[list[int]]):
    """What `auto` comes to on the device decides, not what stands in the configuration."""
    ledger = opened(total=3, precision=precision)
    assert train_all(ledger) == groups
    assert ledger.trials[0].config.precision == "auto"


def test_what_trains_more_than_the_head_is_a_group_of_its_own(opened: Opened):
    """Heads and others mixed: the heads come together at the turn of the first of them."""
    mapping = RATE | {"unfreeze_blocks": {"values": [0, 1]}}
    ledger = opened(BASE, mapping, total=STARTUP, search="grid")
    groups = train_all(ledger)
    deep = [number for number, trial in ledger.trials.items() if trial.config.unfreeze_blocks]
    heads = [number for number in range(STARTUP) if number not in deep]
    assert len(deep) > 1
    assert sorted(groups) == sorted([heads, *([number] for number in deep)])


def test_heads_of_other_pictures_are_another_group(opened: Opened):
    """They see other activations."""
    mapping = RATE | {"augment.strength": {"values": [0.5, 1.0]}}
    ledger = opened(BASE, mapping, total=12)
    weak = ledger.plan.space.config(BASE, {"augment.strength": 0.5})
    ledger = opened(
        BASE, mapping, total=12, kept={feature_cache_settings(BASE): [0], feature_cache_settings(weak): [0, 1]}
    )
    groups = train_all(ledger)
    assert len(groups) == 2
    for group in groups:
        assert len({ledger.trials[number].config.augment for number in group}) == 1
    assert ledger.cached_depths(weak) == [0, 1]


# ---------------------------------------------------------------------- when they are chosen


def seen_by(ledger: TrialStore, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[ObservedTrial]]:
    """What the search is told, by the number that it proposes for."""
    seen = {}
    original = Search.propose

    def propose(self: Search, number: int, known: Any) -> Any:
        seen[number] = list(known)
        return original(self, number, known)

    monkeypatch.setattr(Search, "propose", propose)
    return seen


def test_tpe_chooses_one_at_a_time_from_what_has_ended(opened: Opened, monkeypatch: pytest.MonkeyPatch):
    """Behind its start, each trial is chosen when all before it have ended."""
    ledger = opened(NO_HEADS, total=STARTUP + 3, search="tpe")
    seen = seen_by(ledger, monkeypatch)
    train_all(ledger)
    for number in range(STARTUP, STARTUP + 3):
        assert [known.ended for known in seen[number]] == [True] * number
        assert seen[number][4] == ObservedTrial(ledger.trials[4].values, 0.54, True)


def test_tpe_chooses_eight_heads_at_a_time(opened: Opened, monkeypatch: pytest.MonkeyPatch):
    """None of them along with those of the start, from which they are to learn; one program each."""
    ledger = opened(total=STARTUP + 10, search="tpe")
    seen = seen_by(ledger, monkeypatch)
    groups = train_all(ledger)
    assert groups == [list(range(STARTUP)), list(range(STARTUP, STARTUP + 8)), [STARTUP + 8, STARTUP + 9]]
    for number, known in seen.items():
        if number >= STARTUP + 8:
            assert sum(trial.ended for trial in known) == STARTUP + 8
        elif number >= STARTUP:
            assert sum(trial.ended for trial in known) == STARTUP


def test_the_search_is_told_how_trials_have_ended(opened: Opened, monkeypatch: pytest.MonkeyPatch):
    """A diverged one is as bad as can be; a failed one says nothing, though it had epochs; one that runs has no end."""
    ledger = opened(NO_HEADS, total=STARTUP + 1, search="tpe", rungs=[3])
    seen = seen_by(ledger, monkeypatch)
    while len([trial for trial in ledger.trials.values() if trial.ended]) < STARTUP - 1:
        (trial,) = ledger.next_group()
        ledger.start([trial])
        ledger.add_epoch(trial.number, epoch(1, 0.6), USED)
        if trial.number == 3:
            ledger.end(3, outcome("diverged", "not finite"))
        elif trial.number == 4:
            ledger.end(4, outcome("failed", "ValueError: no"))
        elif trial.number == 5:
            ledger.fail(5, "its worker died 4 times")
        else:
            ledger.end(trial.number, outcome())
    ledger.start(ledger.next_group())  # the last of the start runs
    ledger.next_group()
    scores = [(known.score, known.ended) for known in seen[STARTUP]]
    assert scores[:3] == [(0.6, True)] * 3
    assert scores[3:6] == [(0.0, True), (None, True), (None, True)]
    assert scores[STARTUP - 1] == (None, False)


# ---------------------------------------------------------------------- what is resumed


def test_what_has_ended_is_found_again(opened: Opened):
    """With state, reason, history and costs, and is not trained again."""
    ledger = opened(NO_HEADS, total=4)
    for number, ended in enumerate(
        [outcome(), outcome("diverged", "not finite"), outcome("failed", "OSError: gone"), outcome()]
    ):
        ledger.start(ledger.next_group())
        for at in range(1, number + 1):
            ledger.add_epoch(number, epoch(at, at / 10), USED)
        ledger.end(number, ended)
    again = opened(NO_HEADS, total=4)
    assert plain(again.trials) == plain(ledger.trials)
    assert again.trial_infos() == ledger.trial_infos()
    assert again.all_chosen
    assert again.next_group() == []
    assert [len(trial.epochs) for trial in again.trials.values()] == [0, 1, 2, 3]


def test_the_history_of_a_tested_winner_is_understood(opened: Opened):
    """The test of a winner writes its history anew, as that of a run: epochs within their phase only."""
    first = opened(total=1)
    (trial,) = first.next_group()
    first.start([trial])
    first.end(0, outcome(history=[epoch(at, 0.5) for at in range(1, 5)]))
    path = Path(trial.folder) / "history.json"
    records = [{key: value for key, value in record.items() if key != "at"} for record in json.loads(path.read_text())]
    path.write_text(json.dumps(records))
    assert plain(opened(total=2).trials) == plain(first.trials)


def test_what_was_broken_off_goes_on_first_and_alone(opened: Opened):
    """Heads that were one program too: each has checkpoints of its own; then the others follow."""
    ledger = opened(total=3)
    ledger.start(ledger.next_group())
    ledger.end(1, outcome())
    again = opened(total=5)
    assert again.broken_off == [0, 2]
    assert train_all(again) == [[0], [2], [3, 4]]


def test_a_broken_off_trial_has_the_epochs_of_its_newest_checkpoint(opened: Opened):
    """What it had reported since then is trained again; both phases count in `at`."""
    ledger = opened(NO_HEADS)
    (trial,) = ledger.next_group()
    ledger.start([trial])
    epochs = [epoch(at, at / 10) for at in range(1, 5)]
    for record in epochs:
        ledger.add_epoch(0, record, USED)
    checkpoint(trial, *epochs[:2])
    checkpoint(trial, *epochs[:3])
    again = opened(NO_HEADS)
    assert list(again.trials[0].epochs.values()) == epochs[:3]
    assert not again.trials[0].ended


def test_a_trial_of_an_earlier_version_continues_under_the_fingerprints_of_its_checkpoints(opened: Opened):
    """A version with one setting more has another hash of them, and the checkpoints keep the old one."""
    ledger = opened(NO_HEADS)
    (trial,) = ledger.next_group()
    ledger.start([trial])
    path = Path(trial.folder) / "run.json"
    record = json.loads(path.read_text())
    record["fingerprints"]["settings"] = "as it was hashed then"
    path.write_text(json.dumps(record))
    again = opened(NO_HEADS)
    (member,) = again.start(again.next_group())
    assert member["fingerprints"] == {"data": "d", "weights": "imagenet", "settings": "as it was hashed then"}
    assert json.loads(path.read_text())["fingerprints"] == member["fingerprints"]


def test_a_trial_without_a_checkpoint_begins_anew(opened: Opened):
    """It was broken off in its first epoch."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    again = opened(NO_HEADS)
    assert again.trials[0].epochs == {}
    assert [trial.number for trial in again.next_group()] == [0]


def test_a_resumed_sweep_fills_numbers_that_were_passed_over(opened: Opened):
    """Groups begin out of turn: heads before others whose number is lower; none is lost, none is trained twice."""
    mapping = RATE | {"unfreeze_blocks": {"values": [0, 1]}}
    whole = opened(BASE, mapping, total=8, search="grid")
    first = train(whole)
    assert first != list(range(len(first)))  # a number is missing among them
    again = opened(BASE, mapping, total=8, search="grid")
    rest = train_all(again)
    assert sorted([*first, *(number for group in rest for number in group)]) == list(range(8))
    for number in range(1, 8):
        assert again.trials[number].values == again.plan.search.propose(number, [])


def test_fewer_trials_than_before_still_fill_what_is_missing(opened: Opened):
    """A number below the total that was passed over is trained, whatever was trained beyond it."""
    mapping = RATE | {"unfreeze_blocks": {"values": [0, 1]}}
    first = train(opened(BASE, mapping, total=8, search="grid"))
    again = opened(BASE, mapping, total=3, search="grid")
    train_all(again)
    assert set(again.trials) == set(first) | {0, 1, 2}


def test_more_trials_than_before_go_on(opened: Opened):
    """What has ended stays; the others have the next numbers."""
    train_all(opened(NO_HEADS, total=2))
    again = opened(NO_HEADS, total=4)
    assert not again.all_chosen
    assert train_all(again) == [[2], [3]]


@pytest.mark.parametrize("search", ["random", "grid"])
def test_a_resumed_sweep_chooses_what_the_unbroken_one_does(tmp_path: Path, search: SearchName):
    """Where the choice depends on nothing but the number."""
    whole = ledger_at(tmp_path / "whole", NO_HEADS, total=6, search=search)
    train_all(whole)
    train(ledger_at(tmp_path / "broken", NO_HEADS, total=6, search=search))
    train(ledger_at(tmp_path / "broken", NO_HEADS, total=3, search=search))
    resumed = ledger_at(tmp_path / "broken", NO_HEADS, total=6, search=search)
    train_all(resumed)
    assert {n: trial.values for n, trial in resumed.trials.items()} == {n: t.values for n, t in whole.trials.items()}


def test_tpe_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    """One after the other, what is known is the same, and so is what is proposed."""
    whole = ledger_at(tmp_path / "whole", NO_HEADS, total=STARTUP + 3, search="tpe")
    train_all(whole)
    for total in (4, STARTUP + 1, STARTUP + 3):
        resumed = ledger_at(tmp_path / "broken", NO_HEADS, total=total, search="tpe")
        train_all(resumed)
    assert {n: trial.values for n, trial in resumed.trials.items()} == {n: t.values for n, t in whole.trials.items()}


def test_other_folders_are_no_trials(opened: Opened, tmp_path: Path):
    """The winner that was trained anew, and a trial of which nothing was written."""
    train_all(opened(NO_HEADS, total=1))
    for name in ("winner", "0007"):
        (tmp_path / "sweep" / "trials" / name).mkdir()
    (tmp_path / "sweep" / "trials" / "winner" / "run.json").write_text("{}")
    assert set(opened(NO_HEADS, total=1).trials) == {0}


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_every_trial_is_trained_once_however_often_a_sweep_breaks_off(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """Killed at any moment, resumed with any total: each trial ends once, and all are there in the end."""
    folder = tmp_path_factory.mktemp("sweep")
    search = data.draw(st.sampled_from(["random", "grid", "tpe"]))
    mapping = RATE | {"unfreeze_blocks": {"values": [0, 1]}}
    ended: list[int] = []
    for total in [*data.draw(st.lists(st.integers(1, 14), max_size=4)), 14]:
        ledger = ledger_at(folder, BASE, mapping, total=total, search=search)
        assert {number for number, trial in ledger.trials.items() if trial.ended} == set(ended)
        for _ in range(1000 if total == 14 and not data.draw(st.booleans()) else data.draw(st.integers(0, 4))):
            group = ledger.next_group()
            ledger.start(group)
            for trial in group[: data.draw(st.integers(0, len(group)))]:
                ledger.end(trial.number, outcome())
                ended.append(trial.number)
            if not group:
                break
    ledger = ledger_at(folder, BASE, mapping, total=14, search=search)
    ended += [number for group in train_all(ledger) for number in group]
    assert sorted(ended) == list(range(14))


# ---------------------------------------------------------------------- events


def test_used_seconds_add_up_over_a_resume(opened: Opened):
    """A worker counts from its own beginning; the ledger knows what those before it have used."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    ledger.add_epoch(0, epoch(1, 0.1), {"seconds": 10.0, "cpu_s": 20.0, "gpu_s": 1.0})
    ledger.add_epoch(0, epoch(2, 0.1), {"seconds": 15.0, "cpu_s": 30.0, "gpu_s": 2.0})
    ledger.end(0, outcome("trained", away=True, seconds=16.0, cpu_s=31.0, gpu_s=2.0))
    ledger.start([ledger.trials[0]])
    ledger.add_epoch(0, epoch(3, 0.1), {"seconds": 30.0, "cpu_s": 40.0, "gpu_s": 3.0})
    ledger.end(0, outcome(seconds=40.0, cpu_s=50.0, gpu_s=4.0))
    assert ledger.trials[0].used == {"seconds": 56.0, "cpu_s": 81.0, "gpu_s": 6.0}
    assert opened(NO_HEADS).trial_infos()[0].seconds == 56.0


def test_used_seconds_add_up_over_a_worker_that_died(opened: Opened):
    """Ray Tune starts the trial again without a word: a clock that goes back is another worker's."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    for at, (seconds, cpu_s) in enumerate([(10.0, 20.0), (20.0, 40.0), (12.0, 24.0), (18.0, 36.0)], 1):
        ledger.add_epoch(0, epoch(at, 0.1), {"seconds": seconds, "cpu_s": cpu_s, "gpu_s": 0.0})
    ledger.end(0, outcome(seconds=5.0, cpu_s=50.0))  # one more has died; its CPUs were busier
    assert ledger.trials[0].used == {"seconds": 20.0 + 18.0 + 5.0, "cpu_s": 40.0 + 36.0 + 50.0, "gpu_s": 0.0}


def test_an_epoch_that_is_trained_again_counts_once(opened: Opened):
    """After a worker's death the trial goes on from a checkpoint behind which it had been."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    for at in (1, 2, 3, 3, 4):
        ledger.add_epoch(0, epoch(at, at / 10), USED)
    assert ledger.trials[0].epochs == {at: epoch(at, at / 10) for at in range(1, 5)}


def test_a_trial_that_is_not_among_the_best_is_stopped(opened: Opened):
    """And stays so in a resumed sweep; the others go on."""
    ledger = opened(NO_HEADS, total=3, rungs=[3])
    for number, accuracy in enumerate([0.9, 0.8, 0.7]):
        ledger.start(ledger.next_group())
        goes_on = [ledger.add_epoch(number, epoch(at, accuracy), USED) for at in (1, 2, 3)]
        assert goes_on == [True, True, number < 2]
    assert ledger.trials[2].state == "stopped"
    assert ledger.trials[2].reason == "not among the best 1/3 at epoch 3"
    again = opened(NO_HEADS, total=3, rungs=[3])
    assert (again.trials[2].state, again.broken_off) == ("stopped", [0, 1])
    assert again.trials[2].epochs == {at: epoch(at, 0.7) for at in (1, 2, 3)}


def test_trials_of_an_earlier_sitting_count_at_the_rungs(opened: Opened):
    """Their histories are in storage."""
    ledger = opened(NO_HEADS, total=3, rungs=[3])
    for accuracy in (0.9, 0.8):
        group = ledger.next_group()
        ledger.start(group)
        ledger.end(group[0].number, outcome(history=[epoch(at, accuracy) for at in range(1, 7)]))
    again = opened(NO_HEADS, total=3, rungs=[3])
    again.start(again.next_group())
    assert [again.add_epoch(2, epoch(at, 0.7), USED) for at in (1, 2, 3)] == [True, True, False]


def test_the_history_of_an_outcome_replaces_what_was_reported(opened: Opened):
    """Heads report nothing on the way; None leaves what was."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    ledger.add_epoch(0, epoch(1, 0.1), USED)
    assert ledger.end(0, outcome(history=[epoch(1, 0.2), epoch(2, 0.3)])).score == 0.3
    ledger.start(ledger.next_group())
    ledger.add_epoch(1, epoch(1, 0.1), USED)
    assert ledger.end(1, outcome("failed", "no")).epochs == {1: epoch(1, 0.1)}


def test_a_storage_that_is_away_ends_the_sweep_and_no_trial(opened: Opened):
    """No other trial would fare better; the same command goes on with it."""
    ledger = opened(NO_HEADS)
    ledger.start(ledger.next_group())
    trial = ledger.end(0, outcome("failed", "s3://bucket did not answer", away=True))
    assert (trial.state, ledger.fatal) == ("running", "s3://bucket did not answer")
    assert ledger.all_chosen
    assert ledger.next_group() == []
    again = opened(NO_HEADS)
    assert again.fatal == ""
    assert train_all(again) == [[0], [1], [2], [3]]


def test_a_worker_that_died_too_often_fails_its_trial(opened: Opened):
    """With the reason, in a resumed sweep too; the next one goes on."""
    ledger = opened(NO_HEADS, total=2)
    ledger.start(ledger.next_group())
    ledger.fail(0, "its worker died 4 times")
    again = opened(NO_HEADS, total=2)
    assert (again.trials[0].state, again.trials[0].reason) == ("failed", "its worker died 4 times")
    assert train_all(again) == [[1]]


def test_a_record_has_one_of_the_states_of_a_run(opened: Opened, tmp_path: Path):
    """Tools that list runs know them; how a trial has ended stands in its own part."""
    ledger = opened(NO_HEADS, total=3)
    for number, state in enumerate(["trained", "diverged", "failed"]):
        ledger.start(ledger.next_group())
        ledger.end(number, outcome(state, "why"))
    records = [json.loads((tmp_path / "sweep" / "trials" / f"000{n}" / "run.json").read_text()) for n in range(3)]
    assert [record["state"] for record in records] == ["trained", "failed", "failed"]
    assert [record["trial"]["state"] for record in records] == ["trained", "diverged", "failed"]
    assert [record["seconds"] for record in records] == [10.0] * 3


def test_activations_are_shared_but_for_backbone_and_augmentation():
    """Depth, rates and batch do not count."""
    space = Space(())
    alike: list[dict[str, Value]] = [{"unfreeze_blocks": 3}, {"head.dropout": 0.1}, {"batch_size": 7}]
    others: list[dict[str, Value]] = [{"backbone": "resnet50"}, {"augment.strength": 0.5}]
    assert {feature_cache_settings(space.config(BASE, values)) for values in alike} == {feature_cache_settings(BASE)}
    assert len({feature_cache_settings(space.config(BASE, values)) for values in [{}, *others]}) == 3
