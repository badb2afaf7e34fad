"""What every job shares: flags from the configuration's types, errors without tracebacks, exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from pharmclf.config import AUTO, RunConfig, load_yaml
from pharmclf.core.console import Say, make_output_robust
from pharmclf.core.errors import ConfigError, UserError, format_error
from pharmclf.progress import progress_reporter

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2

T = TypeVar("T")


def parse_config(description: str, default: Path, arguments: Sequence[str] | None = None) -> RunConfig:
    """Build the configuration: the file of `--config` (or the default one), then the other flags over it.

    Args:
        description: what the job does, for `--help`.
        default: the configuration file that stands where `--config` is not given.
        arguments: the command line without the program's name; None: this process's own.

    Raises:
        ConfigError: a bad file or value. An unknown flag ends the process with exit code 2.
    """
    base, about, rest = _load_base_config(description, default, arguments)
    return tyro.cli(RunConfig, description=about, default=base, args=rest, config=(tyro.conf.FlagConversionOff,))


def parse_options(
    description: str, default: Path, options: T, arguments: Sequence[str] | None = None
) -> tuple[T, RunConfig]:
    """As `parse_config`, for a job with options of its own beside the configuration.

    Args:
        options: a dataclass with their default values; its fields become flags.
    """
    base, about, rest = _load_base_config(description, default, arguments)
    part = tyro.conf.arg(name="")
    both: Any = dataclasses.make_dataclass(
        "Both", [("options", Annotated[type(options), part]), ("run", Annotated[RunConfig, part])], frozen=True
    )
    parsed = tyro.cli(
        both, description=about, default=both(options, base), args=rest, config=(tyro.conf.FlagConversionOff,)
    )
    return parsed.options, parsed.run


def _load_base_config(
    description: str, default: Path, arguments: Sequence[str] | None
) -> tuple[RunConfig, str, list[str]]:
    """The configuration of `--config`, the text for `--help`, and the arguments that are left."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    finder.add_argument("--batch-size", "--batch_size")  # a number, or a word that stands for another setting
    finder.add_argument("--extra-test", action="append", nargs="+")  # tyro lets a later one replace those before
    known, rest = finder.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    about = help_text(f"{description}\n--config FILE: a YAML file of these settings; flags stand over it.")
    base = load_yaml(known.config or default)
    if known.batch_size is not None:
        base = _parse_batch_size(base, known.batch_size)
    if known.extra_test:
        base = dataclasses.replace(base, extra_test=tuple(itertools.chain(*known.extra_test)))
    return base, about, rest


def _parse_batch_size(base: RunConfig, text: str) -> RunConfig:
    if text == AUTO:
        return dataclasses.replace(base, microbatch=AUTO)
    try:
        return dataclasses.replace(base, batch_size=int(text))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"--batch-size: received {text!r}, expected a number of images, or auto. auto leaves the global batch as "
            "it is, and finds how much of it a device computes at once"
        ) from error


def help_text(description: str | None) -> str:
    """A job's docstring for `--help`, which keeps only paragraphs apart: each line becomes one."""
    return "\n\n".join(line for line in (description or "").strip().splitlines() if line)


def take_switch(name: str) -> bool:
    """Whether a switch that is no setting of a run, such as --dry-run, is given; it is taken off the command line."""
    given = name in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != name]
    return given


def take_command(names: Collection[str]) -> str:
    """The first argument, where it is one of these words, or ""; it is taken off, whatever else the line says."""
    return sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in names else ""


def take_bare_flag(name: str) -> bool:
    """As `take_switch`, for a flag that is a setting where a value follows it: given without one, it is a switch."""
    for place, argument in enumerate(sys.argv[1:], start=1):
        if argument == name and (place + 1 == len(sys.argv) or sys.argv[place + 1].startswith("-")):
            del sys.argv[place]
            return True
    return False


def scan_progress(say: Say) -> Callable[[int, int], None]:
    """A progress callback for the scan of a data set."""
    return progress_reporter(say, "images examined")


def run_job(main: Callable[[], int]) -> None:
    """Run a job's main function and end the process with its exit code.

    Bad input ends with 2, other failures with 1, each with one line on standard error; PHARMCLF_DEBUG=1 shows the
    traceback. An interrupt ends with 130. Output that nobody takes, as behind `| head`, ends nothing.
    """
    make_output_robust()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = main()
    except UserError as error:
        code = print_error(error, EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = print_error(error, EXIT_FAILED)
    sys.stdout.flush()
    sys.exit(code)


def print_error(error: Exception, code: int) -> int:
    """Print an error to stderr, with its traceback where PHARMCLF_DEBUG is set -> the exit code."""
    if os.environ.get("PHARMCLF_DEBUG"):
        traceback.print_exception(error)
    text = str(error)
    if code == EXIT_FAILED:
        several = "\n" in text.strip()
        more = " (PHARMCLF_DEBUG=1 shows all of it)" if several or "PHARMCLF_DEBUG" not in os.environ else ""
        text = f"{format_error(error)}{more}"
    print(f"error: {text}", file=sys.stderr)  # noqa: T201
    return code
