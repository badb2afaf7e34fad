"""The wheel, installed into a bare environment far from this repository: all that users call works there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.bare_environment import BareEnvironment, build_wheel
from support.ray_head import running_head

from pharmclf.commands.registry import COMMANDS
from pharmclf.config.presets import SPACES, preset_names
from pharmclf.core.version import VERSION

ROOT = Path(__file__).parents[1]
SMALL = [
    "--demo.images-per-class=8", "--image-size=64", "--batch-size=10", "--phase1.epochs=1", "--phase2.epochs=1",
    "--split.test=0.25", "--split.validation=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    return BareEnvironment.create(tmp_path_factory.mktemp("bare"), wheel)


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Code, configurations, search spaces, templates."""
    files = [path for path in (ROOT / "pharmclf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".md"}
    with zipfile.ZipFile(wheel) as archive:
        assert expected - set(archive.namelist()) == set()


def test_the_package_is_imported_from_the_wheel_within_a_second(bare: BareEnvironment) -> None:
    """And not from this repository; it imports none of its dependencies."""
    code = (
        "import json, sys, time\n"
        "before, began = set(sys.modules), time.process_time()\n"
        "import pharmclf\n"
        "seconds = time.process_time() - began\n"
        "heavy = {'ray', 'tensorflow', 'keras', 'pandas', 'numpy', 'tyro'} & (set(sys.modules) - before)\n"
        "print(json.dumps([pharmclf.__file__, seconds, sorted(heavy)]))\n"
    )
    done = bare.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    file, seconds, heavy = json.loads(done.stdout)
    assert "/bare" in file
    assert str(ROOT) not in file
    assert heavy == []
    assert seconds < 1


def test_the_command_and_its_presets_are_installed(bare: BareEnvironment) -> None:
    """Help, version, and each preset by name; an unknown one is refused with the names."""
    assert bare.run("pharmclf", "--version").stdout.split() == ["pharmclf", VERSION]
    shown = bare.run("pharmclf", "--help").stdout
    assert [name for name in COMMANDS if name not in shown] == []
    refused = bare.run("pharmclf", "train", "--config", "nope")
    assert refused.returncode == 2
    assert ", ".join(preset_names()) in refused.stderr
    assert preset_names(SPACES) == ["default"]


@pytest.mark.tf
def test_a_dry_run_ends_in_the_bare_environment(bare: BareEnvironment) -> None:
    """TensorFlow, the backbone and its packaged weights are found."""
    done = bare.run("pharmclf", "train", "--config", "lookalikes", "--dry-run", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "efficientnet_lite0" in done.stdout


@pytest.mark.slow
def test_the_demo_ends_with_its_report_in_the_bare_environment(bare: BareEnvironment, tmp_path: Path) -> None:
    """`pip install pharmclf && pharmclf train`, trained in its own process and decoded in those of Ray."""
    done = bare.run("pharmclf", "train", "--storage", str(tmp_path), timeout_s=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<html" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "demo" / "result.json").read_text())["workers"] == 0
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["command"].startswith("pharmclf train")


@pytest.mark.slow
def test_a_job_submitted_without_code_runs_the_installed_command(bare: BareEnvironment, tmp_path: Path) -> None:
    """`ray job submit -- pharmclf train`, on a cluster whose nodes have the wheel; from a folder without the code."""
    with running_head(with_token=True, python=bare.python) as head:
        elsewhere = dataclasses.replace(head, folder=bare.folder)
        done = elsewhere.job("submit", "--", "pharmclf", "train", f"--storage={tmp_path}", "--name=installed", *SMALL)
        assert done.returncode == 0, done.stdout + done.stderr
        where = elsewhere.job("submit", "--", "python", "-c", "import pharmclf; print(pharmclf.__file__)")
        assert str(bare.folder) in where.stdout
    assert json.loads((tmp_path / "installed" / "result.json").read_text())["workers"] == 1
    assert json.loads((tmp_path / "installed" / "run.json").read_text())["command"].startswith("pharmclf train")


@pytest.mark.slow
def test_a_driver_brings_the_package_to_nodes_without_it(tmp_path: Path) -> None:
    """With RAY_ADDRESS, where nothing was submitted: nodes need the dependencies alone."""
    without = BareEnvironment.create(tmp_path)
    assert without.run("python", "-c", "import pharmclf").returncode == 1
    with running_head(with_token=True, python=without.python) as head:
        variables = head.environment | {"RAY_ADDRESS": head.ray_address, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pharmclf", "train", f"--storage={tmp_path}", "--name=brought", *SMALL]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=900, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "brought" / "result.json").read_text())["workers"] == 1
