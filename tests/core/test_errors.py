"""An error is reported in one line, and an unknown name is answered with the closest known one."""

from __future__ import annotations

import errno
import pickle

import pytest

from pharmclf.core.errors import (
    ConfigError,
    RunError,
    UserError,
    closest_names,
    describe_exit,
    did_you_mean,
    error_reason,
    first_line,
    format_error,
    single_line,
)
from pharmclf.core.program import run_job
from pharmclf.runs.best_model import CorruptedRunError
from pharmclf.storage import StorageUnavailableError, WebAddressError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  two \n lines"), "two"),
        (ValueError(" \n"), "ValueError"),
        (KeyError(), "KeyError"),
        ("", ""),
        ("\none\ntwo", "one"),
    ],
)
def test_the_first_line_is_the_first_that_is_not_blank(error: object, line: str):
    """Of an exception or a text; an exception without a message is named by its class."""
    assert first_line(error) == line


def test_a_long_line_is_cut_and_says_so():
    """At most so many characters, the last of which is the ellipsis."""
    assert first_line("abcdef", 6) == "abcdef"
    assert first_line("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("--data: nothing there\nmore"), "--data: nothing there"),
        (WebAddressError("no storage"), "no storage"),
        (KeyError("a"), "KeyError: 'a'"),
        (RunError("lost"), "RunError: lost"),
        (ValueError(), "ValueError"),
        (ConfigError(), "ConfigError"),
    ],
)
def test_the_class_is_named_where_the_input_is_not_at_fault(error: Exception, text: str):
    """A user's mistake reads as a sentence; of other errors the class helps to find the cause."""
    assert format_error(error) == text


def test_an_error_of_the_system_is_given_by_its_reason():
    """Without number and path, which the sentence around it names; other errors by their whole message in one line."""
    assert error_reason(PermissionError(errno.EACCES, "Permission denied", "/x")) == "Permission denied"
    assert error_reason(OSError("a\n  b c"), 3) == "a b"
    assert single_line(ValueError("a\n\n b\tc")) == "a b c"
    assert single_line(ValueError()) == error_reason(OSError()).replace("OSError", "ValueError") == "ValueError"


@pytest.mark.parametrize(
    ("code", "stderr", "text"),
    [
        (-11, "", "signal SIGSEGV"),
        (-9, "warning: x\n", "signal SIGKILL: warning: x"),
        (-40, "", "signal 40"),  # a real-time signal, which has no name
        (1, "Traceback\nImportError: no module\n\n", "exit code 1: ImportError: no module"),
        (3, "", "exit code 3"),
    ],
)
def test_the_end_of_a_process_names_signal_or_code_and_its_last_line(code: int, stderr: str, text: str):
    """One line, whatever the process wrote."""
    assert describe_exit(code, stderr) == text


def test_an_unknown_name_is_answered_with_the_closest_one():
    """Or with all that are known, where none is spelled like it; a name may be of any type."""
    assert did_you_mean("stoping", ["stopping", "split"]) == "did you mean stopping?"
    assert did_you_mean("epoch", ["epochs"], "phase1.") == "did you mean phase1.epochs?"
    assert did_you_mean(3, ["low", "high"]) == "known here: low, high"
    assert closest_names("tablet", ["x", "tablets", "table", "y"], 2) == ["tablets", "table"]
    assert closest_names("q", ["abc", "def"], 1) == ["abc"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad"), 2),
        (WebAddressError("bad"), 2),
        (UserError("bad"), 2),
        (RunError("bad"), 1),
        (StorageUnavailableError("away"), 1),
        (CorruptedRunError("run"), 1),
        (ValueError("bad"), 1),
    ],
)
def test_the_base_of_an_error_decides_the_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """2 for bad input, 1 for what failed."""
    monkeypatch.setattr("pharmclf.core.program.make_output_robust", lambda: None)

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == code
    assert str(error) in capsys.readouterr().err


def test_errors_with_two_bases_keep_message_and_errno():
    """Those of the storage are errors of the system too, and travel between processes."""
    away = pickle.loads(pickle.dumps(StorageUnavailableError(errno.EIO, "no answer", "s3://b")))
    assert (away.errno, away.strerror, away.filename) == (errno.EIO, "no answer", "s3://b")
    assert isinstance(away, RunError)
    assert not isinstance(WebAddressError("x"), ValueError)  # who catches damaged content must not catch it
    assert str(pickle.loads(pickle.dumps(ConfigError("bad")))) == "bad"
