"""The cores that a process can keep busy, from made-up control groups, a real affinity, and Slurm's variables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.cores import ray_cpus, schedulable_cores, usable_cores

ROOT = Path(__file__).parents[2]
NOTHING: dict[str, str] = {}


def group(tmp_path: Path, **files: str) -> ControlGroup:
    """The control group /box with these files; `__` stands for a dot."""
    for name, content in files.items():
        folder = tmp_path / "cgroup" / "box"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    (tmp_path / "self").write_text("0::/box\n", encoding="utf-8")
    return ControlGroup(tmp_path / "cgroup", tmp_path / "self")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    """A host of 48 cores, all of which the system would let this process run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(48)), raising=False)
    return 48


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"cpu__max": "200000 100000"}, 2), ({"cpu__max": "350000 100000"}, 3), ({"cpu__max": "50000 100000"}, 1),
        ({"cpu__max": "max 100000"}, 48), ({"cpu__max": "9600000 100000"}, 48), ({}, 48),
    ],
)  # fmt: skip
def test_a_container_uses_its_quota_and_not_the_host(
    files: dict[str, str], usable: int, cores: int, tmp_path: Path
) -> None:
    """A part of a core is none."""
    assert usable_cores(group(tmp_path, **files), NOTHING) == usable


@pytest.mark.parametrize(
    ("variables", "usable"),
    [
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 8),  # the script of a job of four tasks
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2", "SLURM_STEP_ID": "0"}, 2),  # one of its tasks
        ({"SLURM_CPUS_PER_TASK": "6"}, 6), ({"SLURM_CPUS_ON_NODE": "96"}, 48), ({}, 48),
        ({"SLURM_CPUS_ON_NODE": ""}, 48),
    ],
)  # fmt: skip
def test_a_job_of_slurm_uses_what_it_was_given(
    variables: dict[str, str], usable: int, cores: int, tmp_path: Path
) -> None:
    """Also where Slurm does not bind processes to cores; outside a job its variables say nothing."""
    assert usable_cores(group(tmp_path), variables | {"SLURM_JOB_ID": "7"}) == usable
    assert usable_cores(group(tmp_path), variables) == cores


@pytest.mark.skipif(shutil.which("taskset") is None, reason="there is no taskset here")
def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    """By the system's own command; Ray is given a second one, or a worker would leave none to decode images."""
    allowed = min(os.sched_getaffinity(0))
    code = "from pharmclf.monitoring.cores import *; print(schedulable_cores(), usable_cores(), ray_cpus())"
    command = ["taskset", "-c", str(allowed), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "2"]
    assert ray_cpus() == max(2, usable_cores())
    assert usable_cores() <= schedulable_cores() == len(os.sched_getaffinity(0))


def test_no_other_file_asks_how_many_cores_the_host_has() -> None:
    """One function answers for all; what the host has is of no use."""
    files = [path for place in ("pharmclf", "jobs", "tune", "cluster") for path in (ROOT / place).rglob("*.py")]
    asks = re.compile(r"\b(os|psutil|multiprocessing)\.cpu_count\(")
    asking = [str(path.relative_to(ROOT)) for path in files if asks.search(path.read_text(encoding="utf-8"))]
    assert asking == ["pharmclf/monitoring/cores.py"]


def test_arrow_starts_no_more_threads_than_are_usable() -> None:
    """Nor more than its own default, which Ray lowers in its tasks."""
    code = "import pharmclf.data.manifest, pyarrow; print(pyarrow.cpu_count())"
    for variables in ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1"}, {"OMP_NUM_THREADS": "1"}):
        environment = os.environ | variables
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["1"]
