"""Completion of `pharmclf` and its commands by the tab key of a shell."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Union

import tyro

from pharmclf.commands.parser import PROGRAM
from pharmclf.commands.registry import COMMANDS, load_command
from pharmclf.core.errors import ConfigError

_SHELLS = ("bash", "zsh", "fish")


def completion_script(arguments: Sequence[str]) -> str:
    """The script that teaches a shell the commands, their flags and the values of these.

    Args:
        arguments: `--tyro-print-completion` and the shell.

    Raises:
        ConfigError: no shell, or another one.
    """
    if len(arguments) != 2 or arguments[1] not in _SHELLS:
        received = " ".join(arguments[1:]) or "nothing"
        raise ConfigError(f"{arguments[0]}: received {received}, expected one of {', '.join(_SHELLS)}")
    commands: Any = Union[tuple(load_command(name).PARSER.subcommand() for name in COMMANDS)]  # noqa: UP007
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(commands, prog=PROGRAM, args=arguments)
    # in bash, files where nothing else fits, such as a file after --config
    return output.getvalue().replace("complete -F", "complete -o default -F")
