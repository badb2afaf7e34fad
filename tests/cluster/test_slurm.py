"""cluster/slurm.sbatch: judged by bash and by sbatch, and run on a Slurm of two nodes on this machine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm import REPOSITORY, Job, Slurm, missing

from pharmclf.training.checkpoint import list_checkpoints

SCRIPT = REPOSITORY / "cluster" / "slurm.sbatch"
SMALL = [
    "--image-size=64", "--batch-size=10", "--unfreeze-blocks=2", "--checkpoint-interval-s=0.3",
    "--split.test=0.25", "--split.validation=0.25", "--stopping.early-patience=0",
]  # fmt: skip
ON_TWO_NODES = ["--nodes=2", "--cpus-per-task=2", str(SCRIPT)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """The daemons."""
    if reason := missing():
        pytest.skip(reason)
    started = Slurm().start()
    yield started
    started.stop()


def header_commands() -> list[list[str]]:
    """The `sbatch` commands of the script's header."""
    lines = re.findall(r"^#   (sbatch .*)$", SCRIPT.read_text("utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_bash_reads_the_script() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing_and_would_find_a_misspelt_variable(tmp_path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no program shellcheck on this machine; Debian: apt-get install shellcheck")
    check = ["shellcheck", "--shell=bash", "--severity=warning"]
    done = subprocess.run([*check, str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "slurm.sbatch"
    wrong.write_text(SCRIPT.read_text("utf-8").replace('kill -INT "$head"', 'kill -INT "$haed"'), "utf-8")
    done = subprocess.run([*check, str(wrong)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "haed is referenced but not assigned" in done.stdout


def test_slurm_takes_the_commands_of_the_header(slurm: Slurm) -> None:
    commands = header_commands()
    assert len(commands) == 2
    for command in commands:
        done = slurm.sbatch("--test-only", *command[1:])
        assert done.returncode == 0, done.stderr
        nodes = "two" if "--nodes=2" in command else "one"
        assert re.search(rf"to start at .* using {8 if nodes == 'one' else 16} processors", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("--signal=B:USR1@120", "--signal=B:USER1@120", "Invalid --signal specification"),
        ("--cpus-per-task=8", "--cpus-per-taks=8", "unrecognized option"),
        ("--cpus-per-task=8", "--cpus-per-task=9", "Requested node configuration is not available"),
        ("--ntasks-per-node=1", "--ntasks-per-node=one", "Invalid numeric value"),
        ("--time=08:00:00", "--time=8h", "Invalid --time specification"),
        ("#!/usr/bin/env bash", "/usr/bin/env bash", "This does not look like a batch script"),
    ],
)
def test_slurm_finds_a_planted_mistake(slurm: Slurm, tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    text = SCRIPT.read_text("utf-8")
    assert right in text
    script = tmp_path / "slurm.sbatch"
    script.write_text(text.replace(right, wrong, 1), "utf-8")
    done = slurm.sbatch("--test-only", str(script), "jobs/train.py")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_script_without_a_job_ends_with_2_and_says_how_to_give_one(slurm: Slurm) -> None:
    job = slurm.submit(str(SCRIPT))
    assert job.wait(30) == 2
    assert "no job is given. Write: sbatch cluster/slurm.sbatch jobs/train.py" in job.output
    assert job.left_behind() == []


PROBE = """
import os, sys, time
from pathlib import Path
import psutil, ray

ray.init(logging_level="ERROR")
until = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < 2 and time.monotonic() < until:
    time.sleep(0.2)
print("nodes", sorted((node["Resources"]["CPU"], node["Resources"].get("GPU", 0)) for node in ray.nodes()))
print("memory", sorted(round(node["Resources"]["memory"] / 2**20) for node in ray.nodes()))
print("objects", sorted(round(node["Resources"]["object_store_memory"] / 2**20) for node in ray.nodes()))
print("mode", os.environ["RAY_AUTH_MODE"])
token = os.environ["RAY_AUTH_TOKEN"]
lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
print("token on a command line:", any(token in line for line in lines))
folder = Path(f"/tmp/pharmclf-{os.environ['SLURM_JOB_ID']}-0")
url, written = (folder / "dashboard").read_text().split()
print("dashboard is right:", url.startswith("http://127.0.0.1:") and written == token)
print("modes", oct(folder.stat().st_mode)[-3:], oct((folder / "dashboard").stat().st_mode)[-3:])
Path(sys.argv[1], os.environ["SLURM_JOB_ID"]).touch()
while len(list(Path(sys.argv[1]).iterdir())) < 2 and time.monotonic() < until:
    time.sleep(0.2)
print("together:", len(list(Path(sys.argv[1]).iterdir())), flush=True)
sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_two_jobs_on_the_same_nodes_have_a_ray_each_and_leave_nothing(slurm: Slurm, tmp_path: Path) -> None:
    """Each sees its own two nodes with the CPUs, the GPUs and the memory that Slurm gave it."""
    (tmp_path / "probe.py").write_text(PROBE, "utf-8")
    (tmp_path / "met").mkdir()
    probe = [str(tmp_path / "probe.py"), str(tmp_path / "met")]
    jobs = [
        slurm.submit("--gpus-per-node=1", "--mem=1600", *ON_TWO_NODES, *probe),
        slurm.submit("--nodes=2", "--cpus-per-task=3", str(SCRIPT), *probe),
    ]
    codes = [job.wait(900) for job in jobs]
    assert codes == [7, 7], "\n".join(job.output for job in jobs)
    expected = [
        ("[(2.0, 1.0), (2.0, 1.0)]", "[1120, 1120]", "[480, 480]"),
        ("[(3.0, 0), (3.0, 0)]", "[2100, 2100]", "[900, 900]"),
    ]
    for job, (nodes, memory, objects) in zip(jobs, expected, strict=True):
        for line in (
            f"nodes {nodes}", f"memory {memory}", f"objects {objects}", "mode token",
            "token on a command line: False", "dashboard is right: True", "modes 700 600", "together: 2",
        ):  # fmt: skip
            assert line in job.output, job.output
        assert job.left_behind() == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.tf
def test_a_run_ends_though_its_time_and_then_its_nodes_are_taken_from_it(
    slurm: Slurm, drawn_images: str, tmp_path: Path
) -> None:
    """The demo on two nodes: the signal before the time limit, then a job of a higher partition, each in the middle."""
    job = slurm.submit(
        *ON_TWO_NODES, "jobs/train.py", f"--data={drawn_images}", f"--storage={tmp_path}", "--name=demo",
        "--num-workers=2",
        "--phase1.epochs=150", "--phase2.epochs=1", *SMALL,
    )  # fmt: skip
    job.wait_for("first checkpoints", lambda: steps_done(tmp_path / "demo") > 20, within=600)
    before = steps_done(tmp_path / "demo")
    job.signal("--batch", "--signal=USR1")
    job.wait_for("a second start", lambda: "start 2 of job" in job.output, within=400)
    assert_stopped_with_a_checkpoint(job, 1)
    assert steps_done(tmp_path / "demo") >= before

    before = steps_done(tmp_path / "demo")
    job.wait_for("progress after it", lambda: steps_done(tmp_path / "demo") > before + 8, within=600)
    other = slurm.submit("--partition=high", "--nodes=2", "--cpus-per-task=8", "--wrap=sleep 1")
    job.wait_for("a third start", lambda: "start 3 of job" in job.output, within=400)
    assert_stopped_with_a_checkpoint(job, 2)
    assert other.wait(30) == 0

    assert job.wait(900) == 0, job.output
    assert job.output.count("resumed from phase1") == 2
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["state"] == "complete"
    assert json.loads((tmp_path / "demo" / "result.json").read_text())["workers"] == 2
    assert job.left_behind() == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.tf
def test_a_cancelled_job_writes_a_checkpoint_and_stays_away(slurm: Slurm, drawn_images: str, tmp_path: Path) -> None:
    job = slurm.submit(
        "--nodes=1", "--cpus-per-task=2", str(SCRIPT), "jobs/train.py", f"--data={drawn_images}",
        f"--storage={tmp_path}", "--name=demo", "--num-workers=1", "--phase1.epochs=400", *SMALL,
    )  # fmt: skip
    job.wait_for("first checkpoints", lambda: steps_done(tmp_path / "demo") > 8, within=600)
    job.signal()
    job.wait(60)
    assert job.describe()["JobState"] == "CANCELLED"
    assert_stopped_with_a_checkpoint(job, 1)
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["state"] == "interrupted"
    assert job.left_behind() == []
    assert job.describe()["Restarts"] == "0"


def steps_done(folder: Path) -> int:
    """Of the newest checkpoint of phase 1, at 40 training images in batches of 10."""
    places = [checkpoint.position for checkpoint in list_checkpoints(f"{folder}/checkpoints")]
    return max((place.epoch * 4 + place.step for place in places if place.phase == 0), default=0)


def assert_stopped_with_a_checkpoint(job: Job, times: int) -> None:
    assert job.output.count("the run writes its checkpoint and ends") == times, job.output
    assert job.output.count("stopped on request; checkpoint phase1") == times, job.output
