"""The command `pharmclf`: its help, its errors, the speed of both, and its completion in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import PROGRAMS, finish

from pharmclf import cli
from pharmclf.commands.registry import COMMANDS, load_command
from pharmclf.config import ConfigError
from pharmclf.core.program import command_line
from pharmclf.core.version import VERSION

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "tensorflow", "keras", "pandas", "matplotlib", "sklearn", "scipy", "optuna"}
_MAX_CPU_S = 1.0
_COMPLETE = """
source <(pharmclf --tyro-print-completion bash)
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
eval "$(complete -p pharmclf | sed 's/.*-F \\(\\S*\\).*/\\1/')"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh process, with the modules that it has imported and its processor time on stderr."""
    code = (
        "import resource, sys\n"
        "from pharmclf.cli import main\n"
        f"sys.argv = ['pharmclf', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"    print(used.ru_utime + used.ru_stime, *{HEAVY!r} & set(sys.modules), file=sys.stderr)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_answers_at_once(arguments: tuple[str, ...]):
    """Within a second of processor time, and before TensorFlow, Ray, pandas or Matplotlib could be loaded."""
    ended = start(*arguments, "--help")
    assert ended.returncode == 0, ended.stderr
    seconds, *heavy = ended.stderr.split()
    assert heavy == []
    assert float(seconds) < _MAX_CPU_S
    assert " ".join(["usage: pharmclf", *arguments]) in ended.stdout


def test_help_names_all_commands_and_nothing_is_help_too(capsys: pytest.CaptureFixture[str]):
    assert cli.run_command([]) == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in shown] == []
    assert cli.run_command(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert max(map(len, shown.splitlines())) <= 80


def test_each_module_of_commands_is_one_of_the_table():
    """With the name of its parser, and a line of help that is not longer than the terminal."""
    shared = {"__init__", "completion", "description", "parser", "refusals", "registry"}
    modules = {path.stem for path in (ROOT / "pharmclf" / "commands").glob("*.py")} - shared
    assert modules == {name.replace("-", "_") for name in COMMANDS}
    assert {name: load_command(name).PARSER.command for name in COMMANDS} == {name: name for name in COMMANDS}


def test_version_is_the_one_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["pharmclf", VERSION]


@pytest.mark.parametrize("word", ["fetch-best", "fetch_best"])
def test_flags_go_to_the_command(word: str, tmp_path: Path):
    """Its exit code and its errors are those of the command, which may be written like its module."""
    with pytest.raises(ConfigError, match="--out"):
        cli.run_command([word, "--storage", str(tmp_path)])
    with pytest.raises(ConfigError, match="did you mean --out"):
        cli.run_command([word, "--otu", "x"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tarin"], "did you mean train?"),
        (["fetchbest", "--list"], "did you mean fetch-best?"),
        (["xyz"], ", ".join(COMMANDS)),
        (["--data", "photos"], "pharmclf COMMAND --data"),
        (["--tyro-print-completion"], "bash, zsh"),
        (["--tyro-print-completion", "bahs"], "bash, zsh"),
    ],
)
def test_an_unknown_command_ends_with_exit_code_2(arguments: list[str], expected: str):
    """And with the nearest command, or with all of them."""
    ended = start(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert expected in ended.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("", "tr"), ["train"]),
        (("", "''"), ["-h", "--help", *sorted(COMMANDS)]),
        (("train", "--dat"), ["--data"]),
        (("train", "--config", "look"), ["lookalikes", "lookalikes-quick"]),
        (("train", "--backbone", "resnet50v"), ["resnet50v2"]),
        (("sweep", "--search", "''"), ["tpe", "random", "grid"]),
        (("export", "--format", "on"), ["onnx"]),
    ],
)
def test_bash_completes_commands_flags_and_values(words: tuple[str, ...], expected: list[str], tmp_path: Path):
    """With the script that `pharmclf --help` describes, in a real shell."""
    program = tmp_path / "pharmclf"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pharmclf "$@"\n')
    program.chmod(0o755)
    line = ["pharmclf", *filter(None, words)]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", _COMPLETE.format(words=" ".join(line))],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_of_jobs_and_tune_are_the_commands(program: str):
    """Those that `ray job submit --working-dir . -- python jobs/train.py` starts, from any folder."""
    name = {"activations": "cache"}.get(Path(program).stem, Path(program).stem)
    shown = finish("--help", program=program, COLUMNS="120")
    assert (shown.returncode, shown.stdout) == (0, start(name, "--help").stdout)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/opt/venv/bin/pharmclf", "train"], ["pharmclf", "train"]),
        (["/x/pharmclf/__main__.py", "train"], ["pharmclf", "train"]),
        (["jobs/train.py", "--seed=3"], ["jobs/train.py", "--seed=3"]),
    ],
)
def test_a_run_records_the_command_as_it_is_typed(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == expected
