"""A virtual environment far from this repository: the dependencies of this one, with our wheel or without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
_HIDDEN = ("PYTHONPATH", "RAY_ADDRESS", "RAY_JOB_ID", "VIRTUAL_ENV")


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder, from a copy, so that the repository gets no build folder."""
    source, target = folder / "source", folder / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pharmclf", source / "pharmclf", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", _BUILD, str(target)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@dataclass(frozen=True)
class BareEnvironment:
    """A virtual environment without pip."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, wheel: Path | None = None) -> BareEnvironment:
        """Make one with the dependencies of this one.

        Args:
            folder: for the environment, and where its programs run.
            wheel: installed into it; None: this package is not there.
        """
        made = cls(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=300)
        # a path in a .pth file: the .pth files of that folder, such as the one of an editable install, are not read
        (site,) = (folder / "venv" / "lib").glob("*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        if wheel:
            pip = [sys.executable, "-m", "pip", f"--python={made.python}", "install", "-q"]
            subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
        return made

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"

    def run(self, program: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one of its programs."""
        variables = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        command = [str(self.python.with_name(program)), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )
