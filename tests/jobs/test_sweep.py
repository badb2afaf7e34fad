"""tune/sweep.py as a user meets it: killed, with workers that die and trials that diverge, on S3, two at once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from support import programs
from support.programs import kill_tree, wait_for

from pharmclf import storage

pytestmark = [pytest.mark.ray, pytest.mark.tf]
SMALL = [
    "--image-size=64", "--batch-size=10", "--phase1.epochs=2", "--phase2.epochs=2", "--unfreeze-blocks=2",
    "--split.test=0.25", "--split.validation=0.25", "--augment.views=2", "--no-halving", "--checkpoint-interval-s=0",
]  # fmt: skip


start = partial(programs.start, *SMALL, program="tune/sweep.py")
finish = partial(programs.finish, *SMALL, program="tune/sweep.py")
sweep = partial(programs.call, *SMALL, program="tune/sweep.py")


def write_space(folder: Path, **parameters: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({name.replace("__", "."): about for name, about in parameters.items()}))
    return f"--space={path}"


def records(home: Path | str) -> dict[int, dict[str, Any]]:
    """What is written of each trial."""
    trials = storage.join(str(home), "trials")
    found = {}
    for name in storage.list_folders(trials):
        location = storage.join(trials, name, "run.json")
        if name.isdigit() and storage.is_file(location):
            found[int(name)] = storage.read_json(location)
    return found


def ended(home: Path | str) -> dict[int, dict[str, Any]]:
    return {number: record for number, record in records(home).items() if record["trial"]["state"] != "running"}


def run_file(home: Path, number: int) -> Path:
    return home / "trials" / f"{number:04d}" / "run.json"


def under_way(home: Path) -> bool:
    """Whether a trial that has a checkpoint is being trained."""
    running = [number for number in records(home) if number not in ended(home)]
    return any(list((home / "trials" / f"{number:04d}").glob("checkpoints/*/*.json")) for number in running)


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process in which a sweep's trials train."""
    found = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if re.match(r"ray::(ImplicitFunc|train_group)", " ".join(child.cmdline()))
    ]
    assert len(found) == 1, found
    return found[0]


def test_a_sweep_shares_features_and_tests_only_its_winner(shared_ray: None, drawn_images: str, tmp_path: Path) -> None:
    """All trials read features that were computed once; one that diverges says so; the winner is tested and fetched.

    The same command again says that all is done, and with another space it is refused, with the field that differs.
    """
    parameters = {"unfreeze_blocks": {"values": [1, 2]}, "phase2__learning_rate": {"values": [1e-4, 3e38]}}
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=sweep", "--search=grid", "--trials=4"]
    home = tmp_path / "sweep"
    done = sweep(*flags, write_space(tmp_path, **parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"feature cache: [\d,]+ views computed", done.stdout)) == 1
    check_records(records(home), num_trials=4)
    tested = check_winner(home, num_trials=4)
    assert list(home.glob("hardware/*.jsonl")), "nothing was read of the machine"
    assert "hardware: " in done.stdout

    again = sweep(*flags, write_space(tmp_path, **parameters))
    assert again.returncode == 0
    assert "complete already" in again.stdout
    before = (home / "sweep.json").read_bytes()
    refused = sweep(*flags, write_space(tmp_path, **parameters | {"phase2__learning_rate": {"values": [1e-4, 3e-4]}}))
    assert refused.returncode == 2
    assert "space.phase2.learning_rate.values" in refused.stderr
    assert (home / "sweep.json").read_bytes() == before

    out = tmp_path / "best"
    fetched = programs.call(f"--storage={tmp_path}", "--experiment=sweep", f"--out={out}", program="jobs/fetch_best.py")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert (out / "model.keras").read_bytes() == (home / "trials" / tested / "model" / "model.keras").read_bytes()


def check_records(found: dict[int, dict[str, Any]], num_trials: int) -> None:
    """All trials have ended, those with rates beyond use as diverged; the first has the settings of the command."""
    assert sorted(found) == list(range(num_trials))
    rates = {number: record["trial"]["values"]["phase2.learning_rate"] for number, record in found.items()}
    states = {number: record["trial"]["state"] for number, record in found.items()}
    assert set(states.values()) == {"trained", "diverged"}
    assert all(states[number] == "trained" for number in states if rates[number] < 1)
    assert all(states[number] == "diverged" for number in states if rates[number] > 1e30)
    assert "phase2.learning_rate" in next(r["trial"]["reason"] for r in found.values() if r["trial"]["reason"])
    plain = found[0]["config"]
    assert (plain["unfreeze_blocks"], plain["head"]["dropout"]) == (2, 0.2)


def check_winner(home: Path, num_trials: int) -> str:
    """The best trial alone has an evaluation and a model; the page compares it with the plain run -> its folder."""
    table = pd.read_parquet(home / "sweep.parquet")
    assert list(table["number"]) == list(range(num_trials))
    best = table.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    assert best["val_accuracy"] >= table.set_index("number").loc[0, "val_accuracy"]
    (tested,) = [path.parent.name for path in home.glob("trials/*/evaluation")]
    assert tested == f"{best['number']:04d}"
    summary = json.loads((home / "sweep.json").read_text())
    assert summary["winner"] == best["number"]
    assert len(summary["result"]["test_accuracy_interval"]) == 2
    for picture in ("trial_curves", "parameters", "parallel_coordinates"):
        assert (home / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    check_comparison(home, summary)
    assert [path.parent.name for path in home.glob("trials/*/model")] == [tested]
    return tested


def check_comparison(home: Path, summary: dict[str, Any]) -> None:
    """Of a winner that is not the plain run: the difference of the accuracies, within its interval; and it is shown."""
    page, compared = (home / "report.html").read_text(), summary["comparison"]
    assert f'href="trials/{summary["winner"]:04d}/report.html"' in page
    assert (compared is None) == (summary["winner"] == 0)
    if compared:
        assert compared["images"] == summary["result"]["test_images"]
        assert compared["winner_accuracy"] == pytest.approx(summary["result"]["test_accuracy"])
        assert compared["difference"] == pytest.approx(compared["winner_accuracy"] - compared["plain_accuracy"])
        low, high = compared["difference_interval"]
        assert low <= compared["difference"] <= high
        assert compared["is_clear"] == (not low <= 0 <= high)
        assert ("not distinguishable" in page) == (not compared["is_clear"])


@pytest.mark.slow
def test_killed_drivers_dead_workers_and_diverging_trials_do_not_end_a_sweep(drawn_images: str, tmp_path: Path) -> None:
    """SIGKILL of everything after a third of the trials, then of the worker in the middle of one, and rates beyond use.

    The same command ends with all trials: none that had ended was trained again, the one whose worker died went on
    from its checkpoint, the one that diverged says so, and only the winner has seen the test split.
    """
    space = write_space(
        tmp_path,
        unfreeze_blocks={"values": [1, 2]},
        phase2__learning_rate={"values": [1e6, 1e-4, 3e38]},
        head__dropout={"values": [0.1]},
    )
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=sweep", "--search=grid", "--trials=7", space]
    home = tmp_path / "sweep"
    process = start(*flags)
    wait_for(process, lambda: len(ended(home)) >= 2)
    kill_tree(process)
    before = ended(home)
    written = {number: run_file(home, number).stat().st_mtime_ns for number in before}
    assert not (home / "sweep.parquet").exists()

    process = start(*flags)
    wait_for(process, lambda: len(ended(home)) >= len(before) + 1)
    wait_for(process, lambda: under_way(home))
    worker_of(process).send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert f"resumed: {len(before)} trials have ended" in output

    after = records(home)
    check_records(after, num_trials=7)
    untouched = [number for number in before if after[number]["state"] != "complete"]  # the winner is tested
    assert all(run_file(home, number).stat().st_mtime_ns == written[number] for number in untouched)
    assert 1e6 in [record["trial"]["values"]["phase2.learning_rate"] for record in after.values()]
    check_winner(home, num_trials=7)


@pytest.mark.slow
@pytest.mark.s3
def test_two_sweeps_at_once_on_s3_share_activations(drawn_images: str, bucket: str, tmp_path: Path) -> None:
    """Two sweeps of one bucket, started together: both end, and the images have gone through the backbone once."""
    space = write_space(tmp_path, head__dropout={"low": 0.0, "high": 0.5}, unfreeze_blocks={"low": 0, "high": 1})
    flags = [
        f"--data={drawn_images}",
        f"--storage={bucket}",
        "--trials=4",
        "--search=random",
        "--unfreeze-blocks=1",
        space,
    ]
    processes = [start(*flags, f"--name=sweep{number}") for number in (1, 2)]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    computed = [re.search(r"feature cache: [\d,]+ views computed", output) is not None for output in outputs]
    assert sum(computed) == 1, outputs
    scores = []
    for number in (1, 2):
        table = pd.DataFrame([record["trial"] for record in records(f"{bucket}/sweep{number}").values()])
        assert set(table["state"]) == {"trained"}
        scores.append(storage.read_json(f"{bucket}/sweep{number}/sweep.json")["result"]["test_accuracy"])
    assert scores[0] == scores[1]


@pytest.mark.slow  # minutes, for each trial starts two workers of its own
def test_a_sweep_of_two_workers_a_trial_stops_when_asked_and_goes_on(drawn_images: str, tmp_path: Path) -> None:
    """Streaming, two Ray Train workers a trial, new workers for each: SIGTERM ends it with 143, and it goes on."""
    space = write_space(tmp_path, head__dropout={"values": [0.1]})
    flags = [
        f"--data={drawn_images}", f"--storage={tmp_path}", "--name=sweep", "--search=grid", "--trials=1", space,
        "--workers-per-trial=2", "--feature-cache=never", "--no-reuse-workers", "--winner=retrain",
    ]  # fmt: skip
    home = tmp_path / "sweep"
    process = start(*flags)
    wait_for(process, lambda: any((home / "trials").glob("*/checkpoints/*/checkpoint.json")))
    process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output
    assert "the same command goes on" in output
    assert not (tmp_path / "activations").exists()
    process = finish(*flags)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "resumed" in process.stdout
    assert {record["trial"]["state"] for number, record in records(home).items()} == {"trained"}
    summary = json.loads((home / "sweep.json").read_text())
    assert summary["winner_folder"].endswith("trials/winner")
    assert summary["result"]["workers"] == 2


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"head.dropuot": {"low": 0.0, "high": 0.5}}, "did you mean head.dropout?"),
        ({"head.dropout": {"low": 0.5, "high": 0.1}}, "empty range"),
        ({"unfreeze_blocks": {"low": 0, "high": 99}}, "efficientnet_lite0 has 16 blocks"),
    ],
)
def test_a_bad_space_ends_with_2_and_the_remedy(
    drawn_images: str, tmp_path: Path, about: dict[str, Any], told: str
) -> None:
    """A misspelt key, an empty range, a depth beyond the backbone: one line, no traceback, no trial."""
    space = write_space(tmp_path, **about)
    done = sweep(f"--data={drawn_images}", f"--storage={tmp_path}", "--name=sweep", space)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep" / "trials").exists()
