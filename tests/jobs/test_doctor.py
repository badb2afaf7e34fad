"""jobs/doctor.py as a user runs it: its table, its JSON, its exit codes, with all right and with something broken."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from support.programs import call, finish

pytestmark = pytest.mark.tf
doctor = partial(call, program="jobs/doctor.py")


def test_a_machine_that_is_well_can_train(drawn_images: str, tmp_path: Path) -> None:
    """A line for each check, the verdict last, nothing on standard error, and nothing left in the storage."""
    done = finish(f"--data={drawn_images}", f"--storage={tmp_path}", program="jobs/doctor.py", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout[done.stdout.index("this machine (") :].splitlines()
    checks = [line.split()[1] for line in lines if line.startswith("  ") and not line.startswith("   ")]
    expected = ["GPU", "tensorflow", "processors", "memory", "shm", "disk", "storage", "clock", "data"]
    assert checks == [*expected, "workers", "all-reduce"]
    assert "16 images read and decoded" in " ".join(done.stdout.split())
    assert lines[-1].endswith("0 failed: training can start")
    assert list(tmp_path.iterdir()) == []


def test_what_is_broken_is_told_as_data_and_by_the_exit_code(drawn_images: str, tmp_path: Path) -> None:
    """Images that are none, a storage that is a file, more GPUs than there are: each by name, and all in one go."""
    folder = tmp_path / "images" / "one"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"none")
    (tmp_path / "file").write_text("x")
    flags = [f"--data={tmp_path}/images", f"--storage={tmp_path}/file", "--accelerator=gpu", "--json"]
    done = doctor(*flags, "--node-timeout=0")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == 1
    found = {one["check"]: one for section in report["sections"] for one in section["findings"]}
    failed = {name for name, one in found.items() if one["level"] == "FAIL"}
    assert failed == {"data", "storage", "workers"}
    assert "a.jpg: no image" in found["data"]["text"]
    assert all(bool(one["remedy"]) is (one["level"] != "OK") for one in found.values())
    assert report["sections"][0]["facts"]["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--no-such-flag"], "no-such-flag"), (["--num-workers=many"], "workers"), (["--config=none.yaml"], "none.yaml")],
)
def test_bad_flags_end_with_2(flags: list[str], said: str) -> None:
    done = doctor(*flags)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
