"""What every job shares: one parser, and output that does not end it, whether it is read or not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from pharmclf.commands.parser import Switch, parse_run
from pharmclf.config import ConfigError, RunConfig, load_yaml
from pharmclf.config.presets import PRESETS

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "tensorflow", "keras", "pandas", "matplotlib", "sklearn", "scipy", "optuna"}
_SAYS = r"""
import sys, time
from pharmclf.core.program import run_job

def main():
    for number in range(200):
        print("line", number, "\u00e9\u4e2d\udcff" if {odd} else "", flush=True)
        print("warning", number, file=sys.stderr, flush=True)
    open({file!r}, "w").write("the end")
    return {code}

run_job(main)
"""


def _start(file: Path, code: int = 0, *, odd: bool = False, **variables: str) -> subprocess.Popen[bytes]:
    text = _SAYS.format(file=str(file), code=code, odd=odd)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT)


@pytest.mark.parametrize("code", [0, 1])
def test_a_program_whose_output_nobody_reads_ends_as_it_would(tmp_path: Path, code: int):
    """Both pipes are closed behind the first line, as by `| head -1`: the work is done, the exit code its own."""
    process = _start(tmp_path / "end", code)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"line 0 \n"
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == code
    assert (tmp_path / "end").read_text() == "the end"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", rb"\xe9\u4e2d\udcff"), ("utf-8", "é中".encode() + rb"\udcff")]
)
def test_letters_that_the_output_cannot_show_are_written_as_their_numbers(tmp_path: Path, encoding: str, shown: bytes):
    """In ASCII all that is beyond it; in UTF-8 the bytes of file names that are not UTF-8."""
    process = _start(tmp_path / "end", odd=True, PYTHONIOENCODING=encoding)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[0]) == (0, b"warning 0")
    assert output.splitlines()[-1] == b"line 199 " + shown


def test_a_full_disk_behind_the_output_ends_nothing(tmp_path: Path):
    """Each write to /dev/full fails with "no space left on device"."""
    text = _SAYS.format(file=str(tmp_path / "end"), code=0, odd=False)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", text]
        ended = subprocess.run(
            command, stdout=full, stderr=full, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60
        )
    assert ended.returncode == 0
    assert (tmp_path / "end").read_text() == "the end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of a job."""

    dry_run: Switch = False
    """Do nothing."""
    halving: bool = True
    """Stop early."""


def parse(*arguments: str) -> tuple[Options, RunConfig]:
    return parse_run("A job.", PRESETS / "demo.yaml", Options(), arguments)


def test_switches_are_flags_without_a_value():
    """Options of the job, settings of the run, and settings of a section."""
    options, config = parse(
        "--dry-run", "--no-halving", "--skip-checks", "--no-deterministic", "--augment.no-vertical-flip"
    )
    assert (options.dry_run, options.halving) == (True, False)
    assert (config.skip_checks, config.deterministic, config.augment.vertical_flip) == (True, False, False)
    assert parse() == (Options(), load_yaml(PRESETS / "demo.yaml"))


def test_switches_still_take_the_values_of_earlier_versions():
    """True and False, after a space or =; a text that reads True stays the value of its flag."""
    options, config = parse(
        "--skip-checks", "True", "--no-halving", "--augment.vertical_flip", "False", "--name", "True"
    )
    assert (options.halving, config.skip_checks, config.augment.vertical_flip) == (False, True, False)
    assert config.name == "True"


def test_switches_of_a_section_without_a_name_take_the_values_of_earlier_versions():
    """As the options of a sweep, which are flags of tune/sweep.py next to its own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Annotated[Options, tyro.conf.arg(name="")] = Options()
        as_json: Annotated[Switch, tyro.conf.arg(name="json")] = False

    outer, _ = parse_run("A job.", PRESETS / "demo.yaml", Outer(), ["--no-halving", "--json"])
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
def test_an_unknown_flag_ends_with_exit_code_2(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    """The nearest known one is named."""
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert expected in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("jobs/train.py", ["--dry-run", "--find-lr", "--overwrite", "--config", "--skip-checks, --no-skip-checks"]),
        ("jobs/prepare.py", ["--precompute-features"]),
        ("jobs/doctor.py", ["--json"]),
        ("jobs/benchmark.py", ["--quick"]),
        ("tune/sweep.py", ["--overwrite", "--halving, --no-halving"]),
    ],
)
def test_help_shows_every_switch_and_imports_nothing_heavy(program: str, flags: list[str]):
    """In a fresh process: it answers before TensorFlow, Ray, pandas or Matplotlib could be loaded."""
    code = (
        f"import runpy, sys; sys.argv = [{program!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / program)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        f"    heavy = {HEAVY!r} & set(sys.modules)\n"
        "    sys.exit(f'imported: {heavy}' if heavy else end.code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert [flag for flag in flags if flag not in ended.stdout] == []
