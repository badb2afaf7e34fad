"""A run with sets from another source, and jobs/evaluate.py on what it has left."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.programs import call, finish
from support.trained_runs import NUM_OTHER, TrainedRuns

from pharmclf.evaluation.abstention_policy import read_policy
from pharmclf.evaluation.verdict import Verdict

pytestmark = [pytest.mark.ray, pytest.mark.tf]
evaluate = partial(call, program="jobs/evaluate.py")


def test_a_run_is_tested_on_sets_from_another_source(trained: TrainedRuns):
    """Each has its folder, its numbers with the difference, and its line; the unknown product is named."""
    folder, said = trained.complete / "run", trained.output("complete")
    result = json.loads((folder / "result.json").read_text())
    assert [extra["name"] for extra in result["extra_tests"]] == ["lamp", "day"]
    for extra in result["extra_tests"]:
        assert extra["images"] == NUM_OTHER
        low, high = extra["difference_interval"]
        assert low <= extra["difference"] <= high
        assert extra["difference"] == pytest.approx(extra["accuracy"] - result["test_accuracy"])
        assert (folder / "evaluation" / extra["name"] / "predictions.parquet").is_file()
    assert "Unknown" in said
    assert "lamp accuracy" in said


def test_a_run_leaves_a_decision_a_report_and_a_model_card(trained: TrainedRuns):
    """The decision stands beside the model; predictions say which images are left to people, by its threshold."""
    folder = trained.complete / "run"
    decision = read_policy(str(folder / "model" / "decision.json"))
    assert decision.max_error == 0.1
    table = pd.read_parquet(folder / "evaluation" / "test" / "predictions.parquet")
    assert (table["abstain"] == (table["confidence"] < decision.threshold)).all()
    page = (folder / "report.html").read_text()
    assert "lamp" in page
    assert page.count("<script") == 1
    assert "lamp" in (folder / "model" / "README.md").read_text()


def test_the_test_split_evaluated_again_gives_the_numbers_of_the_run(trained: TrainedRuns, tmp_path: Path):
    folder = trained.complete / "run"
    flags = [f"--model={folder}", f"--out={tmp_path}/again", "--data=test"]
    ended = finish(*flags, program="jobs/evaluate.py", timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    before, again = (
        json.loads((place / "metrics.json").read_text())
        for place in (folder / "evaluation" / "test", tmp_path / "again")
    )
    assert again == before
    verdict = Verdict.from_dict(json.loads((tmp_path / "again" / "verdict.json").read_text()))
    assert verdict
    assert f"verdict: {verdict.level}: " in ended.stdout
    assert (tmp_path / "again" / "report.html").stat().st_size > 10_000


def test_images_from_elsewhere_are_tested_without_those_of_the_training(trained: TrainedRuns, tmp_path: Path):
    """The run's own images among others are found; the result goes to the run's folder, under the set's name."""
    trained.copy(tmp_path / "copy")
    folder, mixed = tmp_path / "copy" / "run", tmp_path / "mixed"
    shutil.copytree(trained.other, mixed)
    manifest = pd.read_parquet(folder / "manifest.parquet")
    image: Any = manifest[manifest["split"] == "train"].iloc[0]
    (mixed / image["label"]).mkdir(exist_ok=True)
    shutil.copy(image["path"], mixed / image["label"] / "trained.jpg")
    ended = evaluate(f"--model={folder}", f"--data={mixed}", f"--storage={tmp_path}/lists")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "trained on copies of them: 1 image" in ended.stdout
    table = pd.read_parquet(folder / "evaluation" / "mixed" / "predictions.parquet")
    assert len(table) == NUM_OTHER
    assert not table["path"].str.endswith("trained.jpg").any()
    page = (folder / "evaluation" / "mixed" / "report.html").read_text()
    assert "51 images of 11 classes, 45 of them tested." in " ".join(page.split())


def test_a_complete_run_is_tested_on_a_further_set(trained: TrainedRuns, tmp_path: Path):
    """The command with one set more: that set is tested, the others keep their numbers, report and card are renewed."""
    flags = trained.copy(tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    before = json.loads((folder / "result.json").read_text())
    weights = (folder / "model" / "model.keras").read_bytes()
    for words in (["it is tested on night now", "night accuracy"], []):
        ended = call(*flags, f"--eval-data=night={trained.other}")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert all(word in ended.stdout for word in [*words, "is complete already"])
        assert ("it is tested on" in ended.stdout) == bool(words)
    after = json.loads((folder / "result.json").read_text())
    assert [item["images"] for item in after["unknown_tests"]] == [5]
    lamp, day, night = after.pop("extra_tests")
    assert [lamp, day] == before.pop("extra_tests")
    assert (night["name"], night["accuracy"]) == ("night", lamp["accuracy"])
    other = {"seconds_total": 0, "best_checkpoint": ""}  # a copy has paths of its own
    assert after | other == before | other
    assert (folder / "model" / "model.keras").read_bytes() == weights
    assert "night" in (folder / "model" / "README.md").read_text()
    assert "night" in (folder / "report.html").read_text()


def test_a_complete_run_is_tested_on_products_that_it_does_not_know(trained: TrainedRuns, tmp_path: Path):
    """The set is named in the summary, in result.json and the report; its predictions are in the run's folder."""
    flags = trained.copy(tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    ended = call(*flags, f"--unknown=more={trained.other / 'Unknown'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "it is tested on more now" in ended.stdout
    assert "more answered" in ended.stdout
    new, more = json.loads((folder / "result.json").read_text())["unknown_tests"]
    assert (new["name"], more["name"], new["answered"]) == ("new", "more", more["answered"])
    table = pd.read_parquet(folder / "evaluation" / "more" / "predictions.parquet")
    assert set(table["label"]) == {"more"}
    assert (~table["abstain"]).mean() == more["answered"]
    assert "Unknown products" in (folder / "report.html").read_text()
    assert json.loads((folder / "run.json").read_text())["config"]["unknown"] == [
        f"new={trained.other}", f"more={trained.other / 'Unknown'}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model: received nothing"),
        (["--model=/nowhere"], "no model there"),
        (["--model={run}", "--data=/nowhere/at/all"], "/nowhere/at/all"),
        (["--model={run}/model/model.keras", "--num-workers=two"], "--num-workers: received 'two'"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(trained: TrainedRuns, arguments: list[str], words: str):
    ended = evaluate(*(argument.format(run=trained.complete / "run") for argument in arguments))
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
