"""The environment of the comparison with PyTorch: a virtual environment in a cache folder, made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pharmclf.core.console import show_activity
from pharmclf.core.errors import RunError, describe_exit
from pharmclf.storage.local_disk import cache_folder

REQUIREMENTS = ("torch==2.13.0+cpu", "efficientnet-lite-pytorch==0.1.0", "numpy>=2.1,<3", "pillow>=11.3,<14")
_INDEX = "https://download.pytorch.org/whl/cpu"
_USUAL_S = 120.0
_COMPLETE = "requirements.txt"  # written last


def environment_folder() -> Path:
    """The folder: `PHARMCLF_TORCH_ENVIRONMENT`, else one for this user among the temporary files."""
    return cache_folder("PHARMCLF_TORCH_ENVIRONMENT", "torch")


def find_torch_python() -> Path | None:
    """The Python of the environment; None where it is missing, not complete, or has other requirements."""
    folder = environment_folder()
    complete = folder / _COMPLETE
    is_complete = complete.is_file() and complete.read_text("utf-8") == "\n".join(REQUIREMENTS)
    return folder / "bin" / "python" if is_complete else None


def get_or_make_torch_python() -> Path:
    """The Python of the environment, which is made where it is missing.

    Raises:
        RunError: pip cannot install it.
    """
    if python := find_torch_python():
        return python
    folder = environment_folder()
    made = folder / "bin" / "python"
    install = [str(made), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    with show_activity(f"installing PyTorch for CPUs into {folder}", _USUAL_S):
        failure = _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        if not failure and (failure := _run(install)):  # first from the indexes that pip is configured for
            failure = _run([*install, "--extra-index-url", _INDEX])
    if failure:
        raise RunError(f"PyTorch cannot be installed into {folder}: {failure}")
    (folder / _COMPLETE).write_text("\n".join(REQUIREMENTS), "utf-8")
    return made


def _run(command: list[str]) -> str:
    """Run a command -> why it failed, or ""."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return describe_exit(done.returncode, done.stderr) if done.returncode else ""
