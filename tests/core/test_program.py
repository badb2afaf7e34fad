"""What every program shares: output that does not end it, whether it is read or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
