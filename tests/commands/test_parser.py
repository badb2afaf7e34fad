"""The parser of all commands: switches, configurations, earlier spellings, unknown flags."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from support.run_folders import small_config, write_record

from pharmclf.commands.parser import RunParser, Switch
from pharmclf.commands.registry import COMMANDS, load_command
from pharmclf.config import ConfigError, RunConfig
from pharmclf.config.presets import load_preset
from pharmclf.core import console
from pharmclf.core.terminal import Verbosity

REQUIRED = {
    "export": ["--model=m", "--out=o", "--format", "onnx"],
    "predict": ["--model=m", "--input=i", "--output=o.csv"],
    "serve": ["--model=m"],
}
"""Flags that a command cannot do without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of a job."""

    dry_run: Switch = False
    """Do nothing."""
    halving: bool = True
    """Stop early."""


def parse(*arguments: str) -> tuple[Options, RunConfig]:
    return RunParser("train", "A job.", Options(), preset="demo").parse(arguments)


def test_switches_are_flags_without_a_value():
    """Options of the job, settings of the run, and settings of a section."""
    options, config = parse(
        "--dry-run", "--no-halving", "--skip-checks", "--no-deterministic", "--augment.no-vertical-flip"
    )
    assert (options.dry_run, options.halving) == (True, False)
    assert (config.skip_checks, config.deterministic, config.augment.vertical_flip) == (True, False, False)
    assert parse() == (Options(), load_preset("demo"))


def test_the_backbone_list_is_a_table_of_train_and_no_network(tmp_path: Path):
    """Every other command, and a file, refuses the word as it refuses any other."""
    train = load_command("train").PARSER
    for spelling in (["--backbone", "list"], ["--backbone=list"], ["--list-backbones"]):
        options, config = train.parse(spelling)
        assert (options.list_backbones, config.backbone) == (True, "efficientnet_lite0")
    with pytest.raises(ConfigError, match="received --overwrite and --list-backbones, expected at most one"):
        train.parse(["--overwrite", "--backbone", "list"])
    for name in ("sweep", "prepare"):
        with pytest.raises(ConfigError, match="--backbone: received 'list', expected one of efficientnet_lite0"):
            load_command(name).PARSER.parse(["--backbone", "list"])
    (tmp_path / "my.yaml").write_text("backbone: list\n")
    with pytest.raises(ConfigError, match=r"my\.yaml:1:1: backbone: received 'list', expected one of"):
        train.parse(["--config", str(tmp_path / "my.yaml")])


def test_switches_still_take_the_values_of_earlier_versions():
    """True and False, after a space or =; a text that reads True stays the value of its flag."""
    options, config = parse(
        "--skip-checks", "True", "--no-halving", "--augment.vertical_flip", "False", "--name", "True"
    )
    assert (options.halving, config.skip_checks, config.augment.vertical_flip) == (False, True, False)
    assert config.name == "True"


def test_switches_of_a_section_without_a_name_take_the_values_of_earlier_versions():
    """As the options of a sweep, which are flags of `pharmclf sweep` next to its own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Annotated[Options, tyro.conf.arg(name="")] = Options()
        as_json: Annotated[Switch, tyro.conf.arg(name="json")] = False

    outer, _ = RunParser("sweep", "A job.", Outer(), preset="demo").parse(["--no-halving", "--json"])
    assert outer == Outer(inner=Options(halving=False), as_json=True)


def test_flags_override_the_configuration_file(tmp_path: Path):
    """The last --config counts, after a space or =."""
    (tmp_path / "run.yaml").write_text("{seed: 7, image_size: 96}")
    for given in (["--config", f"{tmp_path}/run.yaml"], ["--config=none.yaml", f"--config={tmp_path}/run.yaml"]):
        _, config = parse(*given, "--image-size", "64")
        assert (config.seed, config.image_size) == (7, 64)


def test_values_of_a_flag_that_is_given_twice_add_up():
    """Data sets to evaluate on, one or more behind each flag."""
    _, config = parse("--eval-data", "a=x", "--seed=3", "--eval-data=b=y", "--eval_data", "c=z", "d=s3://v")
    assert config.eval_locations == {"a": "x", "b": "y", "c": "z", "d": "s3://v"}
    assert config.seed == 3


def test_auto_leaves_the_batch_size_as_it_is():
    """It asks for a micro-batch to be found; another word is refused."""
    _, config = parse("--batch-size", "auto")
    assert (config.batch_size, config.microbatch) == (32, "auto")
    assert parse("--batch-size=16")[1].batch_size == 16
    with pytest.raises(ConfigError, match="--batch-size: received 'all', expected a number of images, or auto"):
        parse("--batch-size", "all")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sed", "3"], "--seed"),
        (["--skip-check"], "--skip-checks"),
        (["--dryrun"], "--dry-run"),
        (["--seed", "x"], "'x'"),
        (["stray"], "stray"),
    ],
)
def test_an_unknown_flag_is_refused(arguments: list[str], expected: str):
    """The nearest known one is named."""
    with pytest.raises(ConfigError, match=expected):
        parse(*arguments)


@pytest.mark.parametrize(
    ("flags", "verbosity"),
    [((), Verbosity.NORMAL), (("--quiet",), Verbosity.QUIET), (("--verbose",), Verbosity.VERBOSE)],
)
def test_every_command_that_shows_progress_can_be_quiet_or_verbose(flags: tuple[str, ...], verbosity: Verbosity):
    """Whether it has a run configuration or not."""
    for name in COMMANDS:
        parser = load_command(name).PARSER
        if not getattr(parser, "shows_progress", True):
            continue
        required = REQUIRED.get(name, ())
        parser.parse([*required, *flags])
        assert console._terminal.verbosity is verbosity, name


def test_quiet_and_verbose_at_once_are_refused():
    with pytest.raises(ConfigError, match="--quiet and --verbose"):
        parse("--quiet", "--verbose")


def extend(*arguments: str) -> RunConfig:
    config: RunConfig = load_command("train").PARSER.parse(["--extend", *arguments])[1]
    return config


@pytest.mark.parametrize("by_name", [True, False])
def test_a_run_is_extended_with_its_own_settings_and_the_flags_on_top(tmp_path: Path, by_name: bool):
    """By the name of its folder in the storage or by its folder, which has been moved since; the flags win."""
    folder = write_record(str(tmp_path), "moved", "complete", seed=7, storage="elsewhere", name="")
    found = extend(*(["moved", f"--storage={tmp_path}"] if by_name else [f"{folder}/"]), "--phase2.epochs", "40")
    began = small_config(seed=7, storage=str(tmp_path), name="moved")
    assert found == dataclasses.replace(began, phase2=dataclasses.replace(began.phase2, epochs=40))
    assert extend(folder, "--name=moved", f"--storage={tmp_path}") == began


def test_what_cannot_be_extended_is_refused_in_a_line(tmp_path: Path):
    """No run there, another one's record, a damaged one, a trial; other settings than those of the run."""
    storage, folder = f"--storage={tmp_path}", write_record(str(tmp_path), "photos", "complete")
    broken, other = tmp_path / "broken" / "run.json", tmp_path / "other" / "run.json"
    for file, content in ((broken, "{"), (other, "{}")):
        file.parent.mkdir()
        file.write_text(content)
    trial = write_record(str(tmp_path), "trial", "complete")
    content = json.loads(Path(f"{trial}/run.json").read_text())
    Path(f"{trial}/run.json").write_text(json.dumps(content | {"trial": {"number": 0}}))
    for arguments, words in (
        (("photo", storage), f"received 'photo', expected a run's folder, or a run of {tmp_path}, such as photos"),
        ((str(tmp_path / "none"), f"--storage={tmp_path}/none"), "such as none is there"),
        ((folder, "--config", "demo"), "received --config demo too"),
        ((folder, "--name=new"), "received --name new in --storage"),
        ((folder, "--storage=new"), "received --name photos in --storage new"),
        ((folder, "--overwrite"), "received --extend and --overwrite"),
        ((str(broken.parent),), "not JSON"),
        ((str(other.parent),), "another program"),
        ((trial,), "a trial of a sweep"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            extend(*arguments)
    Path(f"{folder}/run.json").write_text(json.dumps(content | {"state": "odd"}))
    with pytest.raises(ConfigError, match="damaged"):
        extend(folder)
