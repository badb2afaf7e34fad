"""jobs/status.py as a user runs it: quick, from storage alone, while a run trains and after its driver was killed."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.programs import REPOSITORY, SMALL, environment, finish, kill_tree, start, wait_for
from support.ray_head import free_port, running_head
from support.run_folders import incomplete_run, write_record
from support.s3proxy import RESET, Through

from pharmclf import storage
from pharmclf.commands import status as command
from pharmclf.storage.lease import Lease

SCRIPT = str(REPOSITORY / "jobs" / "status.py")


status = functools.partial(finish, program="jobs/status.py", timeout=120)


def told(*arguments: str) -> Any:
    done = status(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_table_comes_from_storage_alone(root: str) -> None:
    """Neither Ray, TensorFlow nor pandas is loaded for it, and the processor is busy for less than two seconds."""
    write_record(root, "begun", "failed")
    incomplete_run(root, "part", [(1, 0, 0.25, 1.0)])
    code = (
        "import resource, runpy, sys\n"
        f"sys.argv = ['status.py', '--storage', {root!r}]\n"
        "try:\n"
        f"    runpy.run_path({SCRIPT!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print(*sorted({'ray', 'tensorflow', 'keras', 'pandas'} & set(sys.modules)), 'loaded')\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, 'seconds')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "begun", "part"]
    assert lines[-2].split() == ["loaded"]
    assert float(lines[-1].split()[0]) < 2
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--storage={root}/nowhere"], "nothing there"),
        (["--storage={root}", "--name=part"], "--name: received 'part', expected a run of .*, such as begun"),
        (["--storage={root}", "--no-such-flag"], "no-such-flag"),
    ],
)
def test_what_is_not_there_ends_with_2_and_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    """The error names what was received, and what is there."""
    write_record(str(tmp_path), "begun", "failed")
    done = status(*(argument.format(root=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert re.search(words, done.stderr + done.stdout)
    assert "Traceback" not in done.stderr


def test_it_watches_until_the_run_has_ended(tmp_path: Path) -> None:
    """One JSON a line while a process holds the lease; the last one tells the end, and the exit code is 0."""
    folder = write_record(str(tmp_path), "run", "running")
    held = Lease.acquire(folder)
    watcher = start(f"--storage={tmp_path}", "--name=run", "--watch", "--json", program="jobs/status.py")
    assert watcher.stdout is not None
    first = json.loads(watcher.stdout.readline())
    assert (first["state"], first["lives"]) == ("running", True)
    storage.write_json(f"{folder}/run.json", storage.read_json(f"{folder}/run.json") | {"state": "complete"})
    held.release()
    rest, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert json.loads(rest.splitlines()[-1])["state"] == "complete"


@pytest.mark.s3
def test_it_watches_through_an_outage_of_the_storage(
    bucket: str, through: Through, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All connections are reset for a while; one JSON a line before and after, and the end of the run is seen."""
    folder = write_record(bucket, "run", "running")
    held, down = Lease.acquire(folder), threading.Event()
    through(lambda _: RESET if down.is_set() else None)
    monkeypatch.setattr(command, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(command, "_EVERY_S", 0.1)

    def fail_for_a_while() -> None:
        time.sleep(2)
        down.set()
        time.sleep(5)
        down.clear()
        storage.write_json(f"{folder}/run.json", storage.read_json(f"{folder}/run.json") | {"state": "complete"})
        held.release()

    with ThreadPoolExecutor(1) as thread:
        failing = thread.submit(fail_for_a_while)
        assert command.main([f"--storage={bucket}", "--name=run", "--watch", "--json"]) == 0
        failing.result()
    printed = capsys.readouterr()
    states = [json.loads(line)["state"] for line in printed.out.splitlines()]
    assert (states[0], states[-1]) == ("running", "complete")
    assert "it is asked again" in printed.err


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.slow
def test_a_run_is_told_of_while_it_trains_when_it_is_killed_and_when_it_is_done(
    drawn_images: str, tmp_path: Path
) -> None:
    """The same run: training, killed, resumed and interrupted, resumed and complete."""
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--num-workers=0", *SMALL]
    place = [f"--storage={tmp_path}", "--name=run"]
    file = tmp_path / "run" / "status.json"

    def in_phase(phase: str) -> bool:
        return file.is_file() and json.loads(file.read_text())["phase"] == phase

    process = start(*flags, "--phase1.epochs=200", "--stopping.early-patience=0")
    wait_for(process, lambda: in_phase("phase1"))
    time.sleep(6)
    now = told(*place)
    assert (now["state"], now["lives"], now["workers"], now["pid"]) == ("running", True, 0, process.pid)
    assert now["epochs"] == 200
    assert now["images_per_second"] > 0
    assert now["eta_s"] > 0
    assert not now["eta_whole"]
    assert now["checkpoint"].startswith("phase1-epoch")
    kill_tree(process)
    dead = status(*place)
    assert dead.returncode == 0
    assert re.match(r"run: no sign of life since 20\S+\+00:00; submit the same command again\n", dead.stdout)

    process = start(*flags, "--phase1.epochs=200", "--stopping.early-patience=0")
    wait_for(process, lambda: told(*place)["state"] == "running")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    now = told(*place)
    assert (now["state"], now["failures"]) == ("interrupted", 1)
    assert now["last_failures"][0]["kind"] == "driver"

    short = [*flags[:2], "--name=short", *flags[3:], "--phase1.epochs=1", "--phase2.epochs=1"]
    assert finish(*short).returncode == 0
    now = told(f"--storage={tmp_path}", "--name=short")
    assert (now["state"], now["progress"], now["reason"]) == ("complete", 1.0, "")
    assert now["best_val_accuracy"] > 0
    assert [run["state"] for run in told(f"--storage={tmp_path}")] == ["interrupted", "complete"]


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.slow
def test_a_run_that_fails_says_why(drawn_images: str, tmp_path: Path) -> None:
    """Bad input that only the loop could see: the same line as on the console."""
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--num-workers=0", *SMALL]
    ended = finish(*flags, "--unfreeze-blocks=99")
    assert ended.returncode == 2
    now = told(f"--storage={tmp_path}", "--name=run")
    assert now["state"] == "failed"
    assert now["reason"] in ended.stderr
    assert "unfreeze_blocks: received 99" in now["reason"]


@pytest.fixture
def metrics_head() -> Iterator[tuple[str, str]]:
    """A Ray head whose nodes' metrics stand at a known port: its address, and where the metrics are."""
    port = free_port()
    with running_head(with_token=False, metrics_port=port) as head:
        yield head.ray_address, f"http://127.0.0.1:{port}/metrics"


def exported(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.slow
def test_the_numbers_of_a_run_stand_among_the_metrics_of_its_cluster(
    drawn_images: str, tmp_path: Path, metrics_head: tuple[str, str]
) -> None:
    """A real run on a real cluster: the exporter of the node shows what the status says, and no more after the end."""
    from pharmclf.runs.prometheus import GAUGES

    address, url = metrics_head
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=watched", "--num-workers=0", *SMALL]
    process = start(
        *flags, "--phase1.epochs=1000", "--stopping.early-patience=0", "--allow-unauthenticated-cluster",
        RAY_ADDRESS=address, RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    try:
        wait_for(process, lambda: "pharmclf_validation_accuracy{" in exported(url))
        found = dict(re.findall(r'^ray_(pharmclf_\w+)\{[^}]*run="watched"[^}]*\} (\S+)$', exported(url), re.MULTILINE))
        assert set(found) == set(GAUGES)
        assert 'state="running"' in re.findall(r"^ray_pharmclf_state\{.*\} 1\.0$", exported(url), re.MULTILINE)[0]
        status = functools.partial(told, f"--storage={tmp_path}", "--name=watched")
        wait_for(process, lambda: status()["epoch"] >= float(found["pharmclf_epoch"]))  # written every five seconds
        now = status()
        assert float(found["pharmclf_phase"]) == 1
        assert 0 < float(found["pharmclf_progress"]) < 1
        assert 0 < float(found["pharmclf_images_per_second"]) < 10 * now["images_per_second"]
        assert 1 <= float(found["pharmclf_epoch"]) <= now["epoch"]
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        deadline = time.monotonic() + 90
        while "pharmclf_" in exported(url):
            assert time.monotonic() < deadline
            time.sleep(2)
    finally:
        if process.poll() is None:
            kill_tree(process)
