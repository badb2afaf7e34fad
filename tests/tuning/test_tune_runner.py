"""What the conductor is told by workers, and what it tells; no worker is started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.epoch_records import epoch_record

from pharmclf.config import AugmentConfig, PhaseConfig, RunConfig
from pharmclf.tuning.options import TrialResources
from pharmclf.tuning.search import Search, SweepSpec
from pharmclf.tuning.space_file import build_space
from pharmclf.tuning.trial_store import Trial, TrialStore

pytestmark = pytest.mark.ray
BASE = RunConfig(
    name="sweep",
    num_workers="0",
    augment=AugmentConfig(views=2),
    phase1=PhaseConfig(epochs=1),
    phase2=PhaseConfig(epochs=1),
)
USED = {"seconds": 10.0, "cpu_s": 20.0, "gpu_s": 0.0}


def ledger_at(folder: Path) -> TrialStore:
    """Four trials, each by itself, compared behind their first epoch."""
    space = build_space({"head.dropout": {"low": 0.0, "high": 0.5}}, BASE, "test")
    return TrialStore(
        SweepSpec(
            base=BASE,
            space=space,
            search=Search("random", space, 0),
            total=4,
            folder=str(folder),
            fingerprints={"data": "d", "weights": "imagenet"},
            kept={},
            rungs=[1],
            factor=3,
            batch_heads=False,
            precision="float32",
        )
    )


def epoch(accuracy: float) -> dict[str, Any]:
    return epoch_record(val_accuracy=accuracy).to_dict()


def test_each_trial_that_ends_is_told_once_with_how_it_ended(tmp_path: Path) -> None:
    """Trained, stopped by comparison, diverged, or given up because its worker died: as the ledger has it by then."""
    from pharmclf.tuning.tune_runner import TuneRunner

    told: list[tuple[int, str | None, str]] = []

    def ended(trial: Trial) -> None:
        told.append((trial.number, trial.state, trial.reason))

    ledger = ledger_at(tmp_path / "sweep")
    lost: dict[int, str] = {}
    conductor = TuneRunner(
        ledger, TrialResources(4, "", 1.0, 0.0, 0.0), lambda: False, print, ended=ended, lost=lost.update
    )
    for name in "abcd":
        assert conductor.suggest(name)["trials"][0]["number"] == "abcd".index(name)
    for number, accuracy in ((0, 0.9), (1, 0.8)):
        assert conductor.on_result({"epoch": [number, epoch(accuracy), USED]})
    assert told == []
    assert conductor.on_result({"quarantined": [[7, "not there"]], "heads": {}})
    assert lost == {7: "not there"}
    assert not conductor.on_result({"epoch": [2, epoch(0.1), USED]})
    conductor.on_trial_end("c", error=False)
    assert conductor.on_result({"ended": [[0, {"state": "trained", "reason": "", "history": None} | USED]]})
    conductor.on_trial_end("a", error=False)
    conductor.on_result({"ended": [[3, {"state": "diverged", "reason": "the loss", "history": None} | USED]]})
    conductor.on_trial_end("b", error=True)
    assert told == [
        (2, "stopped", "not among the best 1/3 at epoch 1"),
        (0, "trained", ""),
        (3, "diverged", "the loss"),
        (1, "failed", "its worker died 4 times"),
    ]


def test_a_trial_that_goes_on_when_the_storage_is_back_has_not_ended(tmp_path: Path) -> None:
    """What it has come to by then is nobody's result."""
    from pharmclf.tuning.tune_runner import TuneRunner

    told: list[Trial] = []
    ledger = ledger_at(tmp_path / "sweep")
    conductor = TuneRunner(
        ledger, TrialResources(1, "", 1.0, 0.0, 0.0), lambda: False, print, ended=told.append, lost=print
    )
    conductor.suggest("a")
    away = {"state": "failed", "reason": "the storage is away", "history": None, "away": True}
    conductor.on_result({"ended": [[0, away | USED]]})
    assert told == []
    assert ledger.fatal == "the storage is away"


def test_a_sweep_that_ends_is_noticed_in_the_middle_of_an_epoch(shared_ray: None) -> None:
    """A trial's loop asks at every batch: no before the flag is set, then yes, and again yes."""
    import ray

    from pharmclf.tuning.trial import StopFlag, _TrialCallback

    flag = ray.remote(num_cpus=0)(StopFlag).remote()
    observer = _TrialCallback(0, dict, flag)
    assert not observer.should_stop()
    ray.get(flag.set.remote())
    deadline = time.monotonic() + 30
    while not observer.should_stop():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert observer.should_stop()
    ray.kill(flag)
