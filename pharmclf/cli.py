"""The command `pharmclf`: finds the command that its first word names, and calls it with the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pharmclf.commands.registry import COMMANDS, load_command
from pharmclf.core.errors import ConfigError, did_you_mean
from pharmclf.core.program import run_job
from pharmclf.core.version import VERSION

_HELP = """usage: pharmclf COMMAND [OPTIONS]

Turns a folder or a bucket of pharmaceutical images into a tested classifier.

commands:
{commands}

examples:
  pharmclf train                         the demo, in minutes
  pharmclf train --data DIR --name NAME  your own images, a folder per product
  pharmclf train --help                  every option, with unit and default
  pharmclf --version

completion by the tab key:
  bash  source <(pharmclf --tyro-print-completion bash)
  zsh   pharmclf --tyro-print-completion zsh > ~/.zfunc/_pharmclf
        with fpath=(~/.zfunc $fpath) before compinit in ~/.zshrc

exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated
PHARMCLF_DEBUG=1 shows the traceback of an error."""


def main() -> None:
    """Run the command of this process's command line, and end the process with its exit code."""
    run_job(lambda: run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: its name and its flags, as in ["train", "--data", "photos"].

    Returns:
        The exit code.

    Raises:
        ConfigError: an unknown command, or bad input of the command.
    """
    word, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if word == "help" and rest:
        word, rest = rest[0], ["--help"]
    name = word.replace("_", "-")
    if name in COMMANDS:
        code: int = load_command(name).main(rest)
        return code
    if word in ("-h", "--help", "help"):
        print(help_text())
    elif word in ("-V", "--version"):
        print(f"pharmclf {VERSION}")
    elif word == "--tyro-print-completion":
        from pharmclf.commands.completion import completion_script

        print(completion_script(arguments))
    elif word.startswith("-"):
        raise ConfigError(
            f"received {word} without a command, expected pharmclf COMMAND {word}. Commands: {', '.join(COMMANDS)}"
        )
    else:
        raise ConfigError(f"received the command {word!r}; {did_you_mean(name, COMMANDS)}")
    return 0


def help_text() -> str:
    """Text of `pharmclf --help`."""
    width = max(map(len, COMMANDS)) + 2
    return _HELP.format(commands="\n".join(f"  {name:<{width}}{what}" for name, what in COMMANDS.items()))
