"""Programs on a pseudo-terminal, and what its screen shows of their output."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CODE = re.compile(r"\x1b\[([0-9;?]*)([a-zA-Z])")


@dataclass
class Recording:
    """What a program has written to its terminal."""

    columns: int
    exit_code: int = 0
    writes: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the start, and text."""

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.writes)

    def screen(self) -> list[str]:
        """The lines of the screen at the end, of a terminal that knows lines, returns, erasing and colours."""
        lines, row, column = [""], 0, 0
        for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\r|\n)", self.text):
            if code := _CODE.fullmatch(part):
                assert code[2] in "Kmhl", f"unknown code {part!r}"
                if code[2] == "K":
                    assert code[1] == "2"
                    lines[row] = ""
            elif part == "\r":
                column = 0
            elif part == "\n":
                row, lines = row + 1, [*lines, ""]
            else:
                for character in part:
                    if column == self.columns:
                        row, column, lines = row + 1, 0, [*lines, ""]
                    line = lines[row].ljust(column)
                    lines[row] = line[:column] + character + line[column + 1 :]
                    column += 1
        return [line.rstrip() for line in lines]


def record(
    code: str, columns: int = 80, act: Callable[[subprocess.Popen[bytes], str], None] | None = None, **variables: str
) -> Recording:
    """Run Python code on a terminal.

    Args:
        code: of the program.
        columns: of the terminal.
        act: called after each write with the process and all text so far.
        variables: of the environment.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    hidden = {"CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"} | variables
    began, recording = time.monotonic(), Recording(columns)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        while True:
            try:
                content = os.read(controller, 65536)
            except OSError:  # the program has closed it
                break
            recording.writes.append((time.monotonic() - began, content.decode(errors="replace")))
            if act:
                act(process, recording.text)
    finally:
        os.close(controller)
        recording.exit_code = process.wait(30)
    return recording
