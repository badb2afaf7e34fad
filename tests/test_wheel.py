"""The wheel, installed into a bare environment far from this repository: all that users call works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pharmclf.commands.registry import COMMANDS
from pharmclf.config.presets import SPACES, preset_names
from pharmclf.core.version import VERSION

ROOT = Path(__file__).parents[1]
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the repository gets no build folder."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pharmclf", source / "pharmclf", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", _BUILD, str(target)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs a program of an environment that has the wheel and the dependencies of this one, but not this package."""
    home = tmp_path_factory.mktemp("bare")
    python = home / "venv" / "bin" / "python"
    make = [
        [sys.executable, "-m", "venv", "--without-pip", str(home / "venv")],
        [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps", "--no-index", str(wheel)],
    ]
    for command in make:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    # a path in a .pth file: the .pth files of that folder, such as the one of an editable install, are not read
    (site,) = (home / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "RAY_JOB_ID", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(program: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        command = [str(python.with_name(program)), *arguments]
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Code, configurations, search spaces, templates."""
    files = [path for path in (ROOT / "pharmclf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".md"}
    with zipfile.ZipFile(wheel) as archive:
        assert expected - set(archive.namelist()) == set()


def test_the_package_is_imported_from_the_wheel_within_a_second(run: Call) -> None:
    """And not from this repository; it imports none of its dependencies."""
    code = (
        "import json, sys, time\n"
        "before, began = set(sys.modules), time.process_time()\n"
        "import pharmclf\n"
        "seconds = time.process_time() - began\n"
        "heavy = {'ray', 'tensorflow', 'keras', 'pandas', 'numpy', 'tyro'} & (set(sys.modules) - before)\n"
        "print(json.dumps([pharmclf.__file__, seconds, sorted(heavy)]))\n"
    )
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    file, seconds, heavy = json.loads(done.stdout)
    assert "/bare" in file
    assert str(ROOT) not in file
    assert heavy == []
    assert seconds < 1


def test_the_command_and_its_presets_are_installed(run: Call) -> None:
    """Help, version, and each preset by name; an unknown one is refused with the names."""
    assert run("pharmclf", "--version").stdout.split() == ["pharmclf", VERSION]
    shown = run("pharmclf", "--help").stdout
    assert [name for name in COMMANDS if name not in shown] == []
    refused = run("pharmclf", "train", "--config", "nope")
    assert refused.returncode == 2
    assert ", ".join(preset_names()) in refused.stderr
    assert preset_names(SPACES) == ["default"]


@pytest.mark.tf
def test_a_dry_run_ends_in_the_bare_environment(run: Call) -> None:
    """TensorFlow, the backbone and its packaged weights are found."""
    done = run("pharmclf", "train", "--config", "lookalikes", "--dry-run", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "efficientnet_lite0" in done.stdout


@pytest.mark.slow
def test_the_demo_ends_with_its_report_in_the_bare_environment(run: Call, tmp_path: Path) -> None:
    """`pip install pharmclf && pharmclf train`, with the worker processes of Ray."""
    done = run("pharmclf", "train", "--storage", str(tmp_path), timeout_s=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<html" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "demo" / "result.json").read_text())["workers"] == 1
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["command"].startswith("pharmclf train")
