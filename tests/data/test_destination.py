"""Results are not written where Ray deletes them: into the copy of the working directory of a submitted job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pharmclf.config import ConfigError, RunConfig
from pharmclf.data.destination import (
    ALLOWED,
    check_destination,
    check_new_folder,
    destination_warnings,
    is_in_uploaded_working_dir,
)
from pharmclf.data.prepare import check_storage
from pharmclf.export.output_dir import atomic_output_dir
from pharmclf.inference.job import predict_images
from pharmclf.inference.options import PredictOptions
from pharmclf.runs.best_model import fetch_best
from pharmclf.runs.evaluate_model import evaluate_saved_model
from pharmclf.runs.evaluation_options import EvaluationOptions

JOB = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}}


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy of the working directory that a submitted job runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(JOB))
    monkeypatch.delenv(ALLOWED, raising=False)
    return tmp_path


def test_only_what_lies_in_the_copy_is_deleted(submitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other folders and buckets last; so does the folder of a job that has uploaded nothing, and of no job."""
    inside = str(submitted / "runs")
    assert is_in_uploaded_working_dir(inside)
    assert not is_in_uploaded_working_dir(str(submitted.parent / "runs"))
    assert not is_in_uploaded_working_dir("s3://bucket/runs")
    (submitted.parent / "link").symlink_to(submitted)
    assert is_in_uploaded_working_dir(str(submitted.parent / "link" / "runs"))
    for job in ("{}", "", json.dumps({"runtime_env": {"env_vars": {"A": "1"}}}), json.dumps({"runtime_env": None})):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
        assert not is_in_uploaded_working_dir(inside)


def test_the_refusal_names_the_flag_the_place_and_the_remedy(submitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants it all the same says so by a variable."""
    with pytest.raises(ConfigError) as error:
        check_destination("--storage", str(submitted / "runs"))
    text = str(error.value)
    assert text.startswith(f"--storage: received {submitted}/runs, which is in Ray's copy of the working directory")
    assert "Give --storage s3://BUCKET/PREFIX or the absolute path of a folder" in text
    monkeypatch.setenv(ALLOWED, "1")
    check_destination("--storage", str(submitted / "runs"))


def test_the_demo_is_trained_there_with_a_warning(submitted: Path) -> None:
    """Its images are drawn, so nothing is lost with them; one line says what becomes of the results."""
    check_storage(RunConfig())
    (warning,) = destination_warnings(str(submitted / "runs" / "demo"))
    assert warning.startswith(f"{submitted}/runs/demo is in Ray's copy of the working directory and is deleted after")
    assert destination_warnings(str(submitted.parent / "runs")) == []


def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--out: received .*, a place that cannot be read \(File name too long\)"):
        check_new_folder("--out", f"{tmp_path}/{300 * 'a'}")


def _whole_folder() -> None:
    with atomic_output_dir("exported", last="export.json"):
        pass


# runs, sweeps, prepared data sets and rates that are tried all pass `check_storage`
JOBS: dict[str, Callable[[], object]] = {
    "train, sweep, prepare, find-lr": lambda: check_storage(RunConfig(data="photos")),
    "predict": lambda: predict_images(PredictOptions(model="m", input="i", output="o.parquet"), print),
    "evaluate": lambda: evaluate_saved_model(EvaluationOptions(model="model.keras", data="d", out="out"), print),
    "export": _whole_folder,
    "fetch_best": lambda: fetch_best("runs", "best", say=print),
}


@pytest.mark.parametrize("job", JOBS)
def test_every_job_that_writes_refuses_before_it_begins(submitted: Path, job: str) -> None:
    """One rule for all; nothing is left behind."""
    (submitted / "model.keras").write_bytes(b"")
    (submitted / "labels.json").write_text('["a", "b"]')
    with pytest.raises(ConfigError, match=r"^--(storage|out|output): received .* in Ray's copy of the working"):
        JOBS[job]()
    assert {path.name for path in submitted.iterdir()} == {"model.keras", "labels.json"}
