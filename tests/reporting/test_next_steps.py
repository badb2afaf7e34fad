"""The commands after a verdict: three, that can be pasted, for what the verdict says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.commands.registry import load_command
from pharmclf.config import RunConfig
from pharmclf.evaluation.verdict import Level, Reason, ReasonCode, Verdict
from pharmclf.reporting.next_steps import TrainedModel, next_steps, report_link, shown_location


def verdict(*codes: ReasonCode, level: Level = Level.REVIEW) -> Verdict:
    return Verdict(tuple(Reason(code=code, level=level, text="t", remedy="r") for code in codes))


def subcommands(found: Verdict) -> list[str]:
    return [shlex.split(step.command)[1] for step in next_steps(found, TrainedModel(model="runs/a"))]


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(ReasonCode), st.sampled_from(Level))
def test_a_command_can_be_pasted_whatever_folders_are_called(
    model: str, data: str, code: ReasonCode, level: Level
) -> None:
    steps = next_steps(verdict(code, level=level), TrainedModel(model=model, data=data, name="a"))
    assert len(steps) == 3
    for step in steps:
        words = shlex.split(step.command)
        assert words[0] == "pharmclf"
        assert all(words[words.index(flag) + 1] == text for flag, text in (("--model", model),) if flag in words)
        if "--data" in words:
            assert words[words.index("--data") + 1] in (data, "DIR")


def test_the_commands_are_those_of_the_verdict() -> None:
    """A good model is used, one for review is improved by what was found first, one that learnt nothing is not used."""
    assert subcommands(Verdict()) == ["predict", "evaluate", "export"]
    assert subcommands(verdict(ReasonCode.LOOK_ALIKES)) == ["predict", "evaluate", "train"]
    assert subcommands(verdict(ReasonCode.FEW_TEST_IMAGES)) == ["predict", "evaluate", "prepare"]
    chance, diverged, few = (
        subcommands(verdict(code, level=Level.NOT_USABLE))
        for code in (ReasonCode.AT_CHANCE, ReasonCode.DIVERGED, ReasonCode.TOO_FEW_TEST_IMAGES)
    )
    assert (chance, diverged) == (["prepare", "train", "train"], ["train", "train", "prepare"])
    assert few == chance


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("code", ReasonCode)
def test_a_command_is_accepted_as_it_is_suggested(code: ReasonCode, level: Level) -> None:
    for step in next_steps(verdict(code, level=level), TrainedModel(model="runs/a b", data="my photos", name="a")):
        _, name, *arguments = shlex.split(step.command)
        load_command(name).PARSER.parse(arguments)


def test_a_trial_has_the_name_of_its_sweep() -> None:
    """Its own is a number; a run has its name, wherever it is."""
    config = RunConfig(name="0003", data="photos", image_size=96)
    trial = TrainedModel.of_run(config, "s3://bucket/search/trials/0003/")
    assert (trial.name, trial.data, trial.image_size) == ("search", "photos", 96)
    assert [TrainedModel.of_run(config, folder).name for folder in ("0003", "/runs/0003")] == ["0003", "0003"]


def test_look_alikes_are_trained_on_larger_images() -> None:
    steps = next_steps(verdict(ReasonCode.LOOK_ALIKES), TrainedModel(model="runs/a", image_size=224))
    assert steps[2].command.endswith(" --image-size 320")


def test_a_location_is_shown_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative below the working directory, else absolute; a URI as it is."""
    monkeypatch.chdir(tmp_path)
    assert shown_location(str(tmp_path / "runs" / "a")) == "runs/a"
    assert shown_location(str(tmp_path.parent)) == str(tmp_path.parent)
    assert shown_location("s3://bucket/runs/a") == "s3://bucket/runs/a"
    assert report_link("runs/a b/report.html") == f"file://{tmp_path}/runs/a%20b/report.html"
