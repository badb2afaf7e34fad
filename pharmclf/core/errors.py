"""Base classes of exceptions, and text about errors for reports."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Collection, Iterable

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2
"""Exit codes of a program."""


class UserError(Exception):
    """Bad input: what was received, what was expected, and the remedy. A job ends with exit code 2."""


class RunError(RuntimeError):
    """A failure that the user's input did not cause. A job ends with exit code 1."""


class ConfigError(UserError, ValueError):
    """A setting, a flag or a file that cannot be used."""


def first_line(error: object, max_length: int | None = None) -> str:
    """First line of a message that is not blank; the class name where an exception has no message.

    Args:
        max_length: cut the line to so many characters, the last of which is then an ellipsis; None: any length.
    """
    default = type(error).__name__ if isinstance(error, BaseException) else ""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), default)
    return line if max_length is None or len(line) <= max_length else f"{line[: max_length - 1]}…"


def format_error(error: BaseException) -> str:
    """First line of the message, after the class name where the input is not at fault: "KeyError: 'a'"."""
    line, name = first_line(error), type(error).__name__
    return line if isinstance(error, UserError) or line == name else f"{name}: {line}"


def single_line(error: BaseException, max_length: int | None = None) -> str:
    """The full message as one line, cut to a length; the class name where there is no message."""
    return " ".join(str(error).split())[:max_length] or type(error).__name__


def error_reason(error: BaseException, max_length: int | None = None) -> str:
    """The operating system's reason ("Permission denied"), without path and number; else the message as one line."""
    return getattr(error, "strerror", None) or single_line(error, max_length)


def describe_cause(error: BaseException) -> str:
    """Why a call has failed, in one line: the innermost OSError of a failed connection, without the layers above."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    return format_error(cause if isinstance(cause, OSError) else error)


def describe_exit(code: int, stderr: str) -> str:
    """Why a process failed, in one line: "signal SIGSEGV", "exit code 1: ModuleNotFoundError: No module named 'x'".

    Args:
        code: its return code; -N: signal N.
        stderr: what it wrote to standard error, of which the last line is quoted.
    """
    names = {number.value: number.name for number in signal.Signals}  # without most of the real-time signals
    ended = f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"{ended}: {lines[-1]}" if lines else ended


def closest_names(name: str, known: Collection[str], most: int = 3) -> list[str]:
    """Known names that are spelled like a name, the closest first; the first known ones where none is."""
    return difflib.get_close_matches(name, known, n=most, cutoff=0.3) or list(known)[:most]


def did_you_mean(name: object, known: Iterable[str], prefix: str = "") -> str:
    """Remedy for an unknown name: "did you mean stopping?", or all known names where none is spelled like it.

    Args:
        prefix: put before the suggested name, such as the key of the section that it belongs to.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(names)}"
