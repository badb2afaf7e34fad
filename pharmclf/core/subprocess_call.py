"""Calls a function in a child process, so that a crash, a hang and its memory stay there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from pharmclf.core.errors import RunError, describe_exit, format_error

T = TypeVar("T")
_CALL, _RESULT = "call.pickle", "result.pickle"


class SubprocessDiedError(RunError):
    """A child process was killed, ended itself, or did not return in time."""


def run_in_subprocess(
    call: Callable[[], T],
    *,
    environment: Mapping[str, str] = os.environ,
    timeout_s: float | None = None,
    read_output: Callable[[str], object] | None = None,
) -> T:
    """Call a function in a fresh Python process, and wait for it.

    Args:
        call: a function of a module, or a partial of one; it, its result and its error are pickled.
        environment: variables of the process, which imports from the same folders as this one.
        timeout_s: seconds after which the process is killed; None: never.
        read_output: receives what the process wrote to stdout and stderr, whatever its end; None: it shares those of
            this process.

    Raises:
        SubprocessDiedError: the process was killed, ended itself, or did not return in time.
        Exception: what the function raises; a note holds the traceback of the child.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-call-") as folder:
        Path(folder, _CALL).write_bytes(pickle.dumps(call))
        variables = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with Path(folder, "output.txt").open("w+", encoding="utf-8", errors="replace") as output:
            command = [sys.executable, "-m", "pharmclf.core.subprocess_call", folder]
            try:
                stream = output if read_output else None
                code = subprocess.run(
                    command, env=variables, timeout=timeout_s, stdout=stream, stderr=stream, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise SubprocessDiedError(f"no answer within {timeout_s:.0f} s") from None
            finally:
                output.seek(0)
                text = output.read()
                if read_output:
                    read_output(text)
        result = Path(folder, _RESULT)
        if not result.is_file():
            reason = " (most often for lack of memory)" if code == -signal.SIGKILL else ""
            raise SubprocessDiedError(describe_exit(code, text) + reason)
        answer: tuple[T, None] | tuple[None, Exception] = pickle.loads(result.read_bytes())
    value, error = answer
    if error is not None:
        raise error
    return cast(T, value)


def _run_call(folder: Path) -> None:
    """The child: make the call, and write whether it has returned, and its value or error."""
    try:
        content = pickle.dumps((pickle.loads((folder / _CALL).read_bytes())(), None))
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            content = pickle.dumps((None, error))
            pickle.loads(content)  # some errors can be written and not read
        except Exception:
            content = pickle.dumps((None, RunError(format_error(error))))
    partial = folder / "result.part"
    partial.write_bytes(content)
    partial.rename(folder / _RESULT)  # complete even where the process crashes at its exit


if __name__ == "__main__":
    _run_call(Path(sys.argv[1]))
