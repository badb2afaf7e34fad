"""Runs a program's main function: output that never fails, errors without tracebacks, exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pharmclf.core.console import close_terminal, make_output_robust, show_activity
from pharmclf.core.errors import EXIT_BAD_INPUT, EXIT_FAILED, RunError, UserError, first_line, format_error


def run_job(main: Callable[[], int]) -> None:
    """Run a job's main function and end the process with its exit code.

    Bad input ends with 2, other failures with 1, each with one line on standard error; PHARMCLF_DEBUG=1 shows the
    traceback. An interrupt ends with 130. A closed output, as behind `| head`, does not end the job. The moving line of
    a terminal stays until the process has ended.
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
    show_activity("ending")  # TensorFlow and Ray take seconds
    sys.stdout.flush()
    sys.exit(code)


def print_error(error: Exception, code: int) -> int:
    """Print an error to stderr, with its traceback where PHARMCLF_DEBUG is set -> the exit code."""
    close_terminal()
    if os.environ.get("PHARMCLF_DEBUG"):
        traceback.print_exception(error)
    text = str(error)
    if code == EXIT_FAILED:
        is_ours = isinstance(error, RunError)  # its message says all; the class says something of other errors
        several = "\n" in text.strip()
        more = (
            " (PHARMCLF_DEBUG=1 shows all of it)"
            if several or not (is_ours or os.environ.get("PHARMCLF_DEBUG"))
            else ""
        )
        text = f"{first_line(error) if is_ours else format_error(error)}{more}"
    print(f"error: {text}", file=sys.stderr)  # noqa: T201
    return code


def command_line() -> list[str]:
    """Words of the command that started this process, as a user types them: no path where the package is installed."""
    program = Path(sys.argv[0])
    is_command = program.name in ("pharmclf", "__main__.py")
    return ["pharmclf" if is_command else sys.argv[0], *sys.argv[1:]]
