"""The short checks before a run: silent where all is well, quick, and clear where a run would fail."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.s3server import Gateway

from pharmclf.config import ConfigError, RunConfig
from pharmclf.diagnostics.preflight import PreflightError, run_preflight
from pharmclf.storage import objects

ROOT = Path(__file__).parents[2]


def test_nothing_is_said_and_nothing_stays_where_all_is_well(root: str) -> None:
    """On local disk, where the folder is not made, and in a store."""
    lines: list[str] = []
    run_preflight(RunConfig(storage=f"{root}/runs"), lines.append)
    assert [line for line in lines if "storage" in line] == []
    assert list(Path(root).iterdir()) == [] if "://" not in root else True


def test_a_read_only_folder_is_bad_input(mounted: Callable[[str], Path]) -> None:
    """Exit code 2, with the remedy."""
    folder = mounted("size=300m,ro")
    with pytest.raises(ConfigError, match=r"--storage .*read-only: .*mount it for writing"):
        run_preflight(RunConfig(storage=f"{folder}/runs"), lambda _: None)


def test_a_full_disk_stops_a_run_before_it_begins(mounted: Callable[[str], Path]) -> None:
    """Exit code 1: the input is right."""
    folder = mounted("size=1m")
    (folder / "filling").write_bytes(os.urandom(1 << 20))
    with pytest.raises(PreflightError, match=r"storage: .*full: .*No space left on device"):
        run_preflight(RunConfig(storage=str(folder)), lambda _: None)


def test_all_reasons_are_said_and_the_first_is_raised(
    mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk for Ray and a full storage: two lines in all, each with its remedy."""
    folder = mounted("size=1m")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    lines: list[str] = []
    with pytest.raises(PreflightError, match=r"^disk: .*Remedy: "):
        run_preflight(RunConfig(storage=str(folder)), lines.append)
    (line,) = [line for line in lines if line.startswith("check failed: ")]
    assert "storage" in line
    assert "Remedy: " in line


@pytest.mark.s3
def test_a_store_that_may_not_be_used_is_bad_input(
    bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    objects.reset_connections()
    with pytest.raises(ConfigError, match="wrong credentials: could not write: access denied at http://"):
        run_preflight(RunConfig(storage=f"{bucket}/runs"), lambda _: None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", gateway.secret_key)
    objects.reset_connections()
    with pytest.raises(ConfigError, match="no bucket"):
        run_preflight(RunConfig(storage=f"{bucket}-gone/runs"), lambda _: None)


def test_the_checks_of_one_machine_import_neither_tensorflow_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pharmclf.config import RunConfig; from pharmclf.diagnostics.preflight import run_preflight\n"
        f"run_preflight(RunConfig(storage={str(tmp_path)!r}), print)\n"
        "print(*{'ray', 'tensorflow', 'keras'} & set(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_a_run_is_checked_before_its_images_are_read_unless_told_otherwise(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    """The images are not there, which comes second."""
    from pharmclf.pipeline import run

    folder = mounted("size=300m,ro")
    config = RunConfig(storage=f"{folder}/runs", data=str(tmp_path / "nowhere"), weights="none")
    with pytest.raises(ConfigError, match="read-only"):
        run(config, lambda _: None)
    with pytest.raises(ConfigError, match="nowhere"):
        run(dataclasses.replace(config, skip_checks=True), lambda _: None)


def test_a_proxy_that_takes_no_connection_is_said_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what goes through it, and without its password."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:9")
    lines: list[str] = []
    run_preflight(RunConfig(storage=str(tmp_path), num_workers="1"), lines.append)
    assert "note: https_proxy is set (http://…@127.0.0.1:9); workers reach each other without it" in lines[0]
    (warning,) = [line for line in lines if line.startswith("warning: proxy: ")]
    assert "https_proxy=http://…@127.0.0.1:9" in warning
    assert "Remedy: correct the variable, or unset it" in warning


def test_workers_without_room_on_this_machine_are_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before an image is read; those that only share too few cores are named."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"num_workers: received 200, but the cluster has 2 CPUs"):
        run_preflight(RunConfig(storage=str(tmp_path), num_workers="200", accelerator="cpu"), lines.append)
    run_preflight(RunConfig(storage=str(tmp_path), num_workers="5", accelerator="cpu"), lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: workers: ")]
    assert "5 processes share 2 cores" in warning
    assert "--num-workers auto uses all cores" in warning
    lines.clear()
    run_preflight(RunConfig(storage=str(tmp_path), num_workers="1-5", accelerator="cpu"), lines.append)
    assert [line for line in lines if "workers: " in line] == []


def test_a_cluster_that_does_not_answer_is_bad_input(tmp_path: Path) -> None:
    """Before an image is read, and by the name of the variable; in a process that has joined no cluster."""
    code = (
        "import sys; from pharmclf.config import ConfigError, RunConfig\n"
        "from pharmclf.diagnostics.preflight import run_preflight; from pharmclf.distributed import ray_address\n"
        "ray_address._TIMEOUT_S = 0.5\n"
        "try:\n"
        f"    run_preflight(RunConfig(storage={str(tmp_path)!r}), print)\n"
        "except ConfigError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "refused: RAY_ADDRESS: received '127.0.0.1:1', but no Ray cluster answers there" in done.stderr
