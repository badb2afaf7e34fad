"""Saved models are found by any of their places, verified, and refused with what was looked for."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pharmclf.config import ConfigError
from pharmclf.core.hashing import sha256_bytes, sha256_file
from pharmclf.evaluation.abstention_policy import fit_policy, write_policy
from pharmclf.evaluation.saved_model import load_model_info
from pharmclf.evaluation.strangeness import fit_strangeness
from pharmclf.evaluation.verdict import Level, Reason, ReasonCode, Verdict


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a file that has the form of a Keras model of 64 pixels."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    config = {"config": {"layers": [{"config": {"batch_shape": [None, 64, 64, 3]}}]}}
    with zipfile.ZipFile(folder / "model" / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
    (folder / "model" / "labels.json").write_text('["a", "b"]')
    checksums = {"model.keras": sha256_file(folder / "model" / "model.keras")}
    (folder / "model" / "checksums.json").write_text(json.dumps(checksums))
    (folder / "run.json").write_text("{}")
    return folder


def test_a_model_is_found_by_its_run_its_folder_and_its_file(run: Path):
    """All three know the run that it lies in; a copy elsewhere does not."""
    found = [load_model_info(str(run / place)) for place in ("", "model", "model/model.keras")]
    assert {model.location for model in found} == {str(run / "model" / "model.keras")}
    assert {model.run_folder for model in found} == {str(run)}
    assert (found[0].labels, found[0].image_size, found[0].decision) == (("a", "b"), 64, None)
    assert found[0].white_level == 65535
    (run / "model" / "pixels.json").write_text('{"white_level": 4095}')
    shutil.copytree(run / "model", run.parent / "fetched")
    fetched = load_model_info(str(run.parent / "fetched"))
    assert (fetched.run_folder, fetched.white_level) == (None, 4095)


def test_a_model_comes_with_the_verdict_of_its_run(run: Path):
    """From result.json of the run, from metrics.json of a fetched model; from before there were verdicts: none."""
    reason = Reason(code=ReasonCode.AT_CHANCE, level=Level.NOT_USABLE, text="At chance.", remedy="Train.")
    verdict = Verdict((reason,))
    assert verdict.warning == "warning: not usable: At chance."
    assert load_model_info(str(run)).verdict is None
    shutil.copytree(run / "model", run.parent / "fetched")
    for result, expected in (({}, None), (verdict.to_dict(), verdict)):
        (run / "result.json").write_text(json.dumps(result))
        (run.parent / "fetched" / "metrics.json").write_text(json.dumps({"result": result}))
        assert load_model_info(str(run)).verdict == load_model_info(str(run.parent / "fetched")).verdict == expected


def test_a_model_that_is_not_what_was_saved_is_refused(run: Path):
    with (run / "model" / "model.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="sha256"):
        load_model_info(str(run))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model/labels.json", "[1"), ("model/labels.json", '"ab"'), ("model/labels.json", '{"0": "a"}'),
        ("model/labels.json", "[0, 1]"), ("model/checksums.json", "\0"), ("model/checksums.json", "[]"),
        ("model/pixels.json", "{}"), ("model/pixels.json", '{"white_level": "x"}'), ("result.json", "{"),
        ("result.json", '{"verdict": "good", "warnings": [{"code": "of a later version"}]}'),
    ],
)  # fmt: skip
def test_a_damaged_file_next_to_a_model_is_named(run: Path, file: str, text: str):
    (run / file).write_text(text)
    with pytest.raises(ConfigError, match=rf"^{run}/{file}: expected .*\. Take the file from the model's run"):
        load_model_info(str(run))


def test_the_file_that_a_decision_names_must_be_the_one_it_was_made_with(run: Path):
    """The distances of the training images: missing or changed, they are refused by name."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((60, 4)).astype(np.float16)
    score = fit_strangeness([rows], np.arange(60) % 2, [rows])
    assert score is not None
    policy = fit_policy(np.full((60, 2), 0.5), np.arange(60) % 2, np.arange(60), 0.1, score([rows]))
    assert policy.unknown is not None
    content, place = score.to_bytes(), run / "model" / "strangeness.npz"
    unknown = dataclasses.replace(policy.unknown, sha256=sha256_bytes(content))
    write_policy(dataclasses.replace(policy, unknown=unknown), str(run / "model" / "decision.json"))
    with pytest.raises(ConfigError, match=r"strangeness\.npz: it is missing.* Take both from the model's run"):
        load_model_info(str(run))
    place.write_bytes(content)
    found = load_model_info(str(run)).strangeness
    assert found is not None
    np.testing.assert_array_equal(found([rows]), score([rows]))
    place.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match=r"strangeness\.npz: received sha256 \w{64}, expected"):
        load_model_info(str(run))


def test_what_is_no_model_is_refused_with_a_remedy(run: Path, tmp_path: Path):
    """Nothing there, no labels, a file that is none, another input than a square of RGB."""
    with pytest.raises(ConfigError, match="no model there"):
        load_model_info(str(tmp_path / "nowhere"))
    (run / "model" / "checksums.json").unlink()
    (run / "model" / "model.keras").write_text("no archive")
    with pytest.raises(ConfigError, match="not a model of this package"):
        load_model_info(str(run))
    (run / "model" / "labels.json").unlink()
    with pytest.raises(ConfigError, match=r"labels\.json is missing"):
        load_model_info(str(run))
