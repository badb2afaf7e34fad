"""What several tests of the doctor share."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.nvml_library import Library, install_library


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory, small or not to be written, with options of mount -> its folder."""
    with contextlib.ExitStack() as stack:

        def mount(options: str) -> Path:
            folder = tmp_path / "mounted"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True) if os.geteuid() == 0 else None
            if done is None or done.returncode:
                pytest.skip(f"no file system can be mounted here: {done.stderr.strip() if done else 'not root'}")
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield mount


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The driver of a machine with two GPUs."""
    return install_library(monkeypatch)
