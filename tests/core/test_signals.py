"""Signals that ask a process to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pharmclf.core.signals import GracefulShutdown

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_remembered_and_the_handlers_come_back(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the shell's for this signal."""
    before = signal.getsignal(number)
    with GracefulShutdown() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert (stop.received, stop.exit_code) == (number, code)
    assert signal.getsignal(number) is before
    assert "a checkpoint is written first" in capsys.readouterr().out


def _run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode


def test_the_second_signal_ends_the_process_at_once() -> None:
    """Whatever the process is at."""
    kill = "os.kill(os.getpid(), signal.SIGTERM)"
    body = f"{kill}; {kill}; time.sleep(50)"
    code = (
        f"import os, signal, time; from pharmclf.core.signals import GracefulShutdown\nwith GracefulShutdown(): {body}"
    )
    assert _run(code) == 143


def test_sigterm_ends_a_program_behind_its_cleanup(tmp_path: Path) -> None:
    """So that nothing half written stays."""
    code = (
        "import os, pathlib, signal, time; from pharmclf.core.signals import exit_on_sigterm\nexit_on_sigterm()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(50)\n"
        f"finally: pathlib.Path({str(tmp_path / 'cleaned')!r}).touch()"
    )
    assert _run(code) == 143
    assert (tmp_path / "cleaned").exists()
