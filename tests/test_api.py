"""Three lines of Python: train, sweep and load, as a script or a notebook uses them."""

from __future__ import annotations

import html
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.trained_runs import TrainedRuns

import pharmclf
from pharmclf.config import ConfigError

SMALL = {
    "image_size": 64,
    "batch_size": 10,
    "unfreeze_blocks": 2,
    "phase1": {"epochs": 1},
    "phase2": {"epochs": 1},
    "num_workers": "0",
    "skip_checks": True,
}


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_is_trained_loaded_tested_and_opened_again(
    shared_ray: None, drawn_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The result in memory is the one on disk; the model answers for images of the run; quiet prints nothing."""
    run = pharmclf.train(drawn_images, name="tablets", storage=tmp_path / "runs", quiet=True, **SMALL)
    assert capsys.readouterr().out == ""
    assert run == pharmclf.Run.open(tmp_path / "runs" / "tablets")
    assert Path(run.report).is_file()
    assert [(record.phase, record.epoch) for record in run.history] == [("phase1", 0), ("phase2", 0)]
    model = pharmclf.load(run.folder)
    paths = sorted(Path(drawn_images).rglob("*.jpg"))[:5]
    answers = model.predict(paths)
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    assert {answer.label for answer in answers} <= set(model.labels)
    assert model.threshold == run.model.threshold
    scores = model.evaluate("test")
    assert scores.accuracy.value == pytest.approx(run.result["test_accuracy"])
    again = pharmclf.train(drawn_images, name="tablets", storage=tmp_path / "runs", quiet=True, **SMALL)
    assert again.result == run.result


@pytest.mark.ray
@pytest.mark.tf
def test_a_sweep_gives_its_winner_and_the_table_of_its_trials(shared_ray: None, drawn_images: str, tmp_path: Path):
    """One row for each trial; the winner is a run that is tested."""
    settings = {name: value for name, value in SMALL.items() if name != "num_workers"}
    sweep = pharmclf.sweep(drawn_images, name="search", storage=tmp_path, trials=2, quiet=True, **settings)
    assert len(sweep.trials) == 2
    assert 0 <= sweep.best.result["test_accuracy"] <= 1
    assert sweep.best.folder.startswith(sweep.folder)


@pytest.mark.ray
@pytest.mark.tf
def test_a_notebook_shows_verdict_scores_and_curves(trained: TrainedRuns):
    """As HTML that is well formed and needs no network."""
    run = pharmclf.Run.open(trained.complete / "run")
    page = run._repr_html_()
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
            if tag not in ("img", "br"):
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Reader().feed(page)
    assert opened == []
    assert f"{run.result['test_accuracy']:.3f}" in page
    assert f": {run.result['verdict']}<" in page
    assert all(html.escape(each["text"]) in page for each in run.result["warnings"])
    assert "data:image/png;base64," in page
    assert "http" not in page


def test_a_wrong_setting_is_bad_input_before_anything_is_written(tmp_path: Path):
    """By its name, with the nearest known one."""
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        pharmclf.train("photos", storage=tmp_path, batchsize=3)
    with pytest.raises(ConfigError, match="epochs"):
        pharmclf.train("photos", storage=tmp_path, phase1={"epochs": "many"})
    with pytest.raises(ConfigError, match=r"no result\.json there"):
        pharmclf.Run.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_import_costs_nothing():
    """No heavy package is loaded before a public name is used; names that do not exist are no attributes."""
    heavy = "{'tensorflow', 'keras', 'ray', 'pandas', 'numpy', 'yaml'}"
    program = f"import sys, pharmclf; assert not {heavy} & set(sys.modules), set(sys.modules); dir(pharmclf)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert all(hasattr(pharmclf, name) for name in pharmclf.__all__)
    assert not hasattr(pharmclf, "fit")
