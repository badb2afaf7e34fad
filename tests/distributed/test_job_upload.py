"""What `ray job submit --working-dir` would upload: Ray's own list, without data, and never beyond Ray's limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pharmclf.config import ConfigError
from pharmclf.core.compat.ray import upload_limit
from pharmclf.distributed.job_upload import before_submit, check_upload, list_uploaded_files, main, upload_bytes

REPOSITORY = Path(__file__).parents[2]
CODE = [
    "jobs/train.py",
    "pharmclf/presets/demo.yaml",
    "my.yaml",
    "pharmclf/data/image_decoding.py",
    "tune/sweep.py",
    "list.csv",
]
DEBRIS = [
    "runs/tablets/result.json", "data/a/1.txt", "photos/a/1.JPG", "elsewhere/deep/2.jpeg", "model.keras", "w.h5",
    ".venv/lib/x.py", ".venv-gpu/lib/x.py", "venv311/lib/x.py", ".git/objects/0", ".mypy_cache/x.json", "build/x.py",
    "pharmclf.egg-info/PKG-INFO", "pharmclf/__pycache__/x.pyc", "tests/test_x.py", "jobs/.pytest_cache/x", "all.tar.gz",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with this project's ignore files, some code, and everything that must not travel."""
    folder = tmp_path / "tree"
    for name in [*CODE, *DEBRIS]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in (".rayignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def large_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)  # without content on the disk


def test_code_and_configurations_travel_and_nothing_else(tree: Path) -> None:
    """Data, results, environments, caches and tests stay, whatever letters an image's ending is written in."""
    assert sorted(list_uploaded_files(tree)) == sorted(CODE)


def test_this_repository_uploads_its_jobs_in_less_than_5_mb() -> None:
    """Every job with its configurations, and the package."""
    files = list_uploaded_files(REPOSITORY)
    wanted = [path for place in ("jobs", "tune", "pharmclf") for path in (REPOSITORY / place).rglob("*.[py][ya]*")]
    assert {str(path.relative_to(REPOSITORY)) for path in wanted if path.suffix in (".py", ".yaml")} <= set(files)
    assert upload_bytes(files) < 5e6


@pytest.mark.parametrize("excludes", [[], ["/tune", "*.csv"]])
def test_the_list_and_its_size_are_those_of_rays_own_archive(tree: Path, tmp_path: Path, excludes: list[str]) -> None:
    """Byte by byte, with the patterns of a runtime environment too."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    archive, patterns = tmp_path / "package.zip", [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    create_package(str(tree), archive, include_gitignore=True, excludes=patterns)
    files = list_uploaded_files(tree, excludes)
    with zipfile.ZipFile(archive) as package:
        assert {entry.filename for entry in package.infolist() if not entry.is_dir()} == set(files)
    assert archive.stat().st_size == upload_bytes(files)


def test_an_upload_is_refused_from_rays_limit_on(tree: Path) -> None:
    """One byte less is taken; the refusal names what is large, the limit and the remedy."""
    files = list_uploaded_files(tree)
    files["jobs/large.bin"] = 0
    files["jobs/large.bin"] = upload_limit() - upload_bytes(files) - 1
    check_upload(tree, files)
    files["jobs/large.bin"] += 1
    with pytest.raises(
        ConfigError, match=r"Ray's limit of 104\.9 MB\. Large are jobs/ .*jobs/large\.bin .*\.rayignore"
    ):
        check_upload(tree, files)


def test_the_command_lists_the_largest_parts(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Largest first, then the sum and the limit; a folder that is too large or not there is bad input."""
    (tree / "jobs" / "weights.bin").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(sys, "argv", ["upload", str(tree)])
    assert main() == 0
    listed = capsys.readouterr().out
    assert listed.splitlines()[0].split() == ["2.0", "MB", "jobs/"]
    assert "7 files of 2.0 MB would be uploaded; Ray's limit is 104.9 MB" in listed
    large_file(tree / "weights.bin", 200_000_000)
    with pytest.raises(ConfigError, match=r"weights\.bin 200\.0 MB"):
        main()
    monkeypatch.setattr(sys, "argv", ["upload", str(tree / "nowhere")])
    with pytest.raises(ConfigError, match="expected the folder that is given as --working-dir"):
        main()


def test_rays_own_command_refuses_by_the_hook_before_it_uploads(tree: Path) -> None:
    """With RAY_JOB_SUBMIT_HOOK `ray job submit` ends with 2 and one line; no cluster is needed for that."""
    large_file(tree / "weights.bin", 200_000_000)
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", "http://127.0.0.1:1", "--working-dir", str(tree), "--", "true"]
    hook = {"PYTHONPATH": str(REPOSITORY), "RAY_JOB_SUBMIT_HOOK": "pharmclf.distributed.job_upload.before_submit"}
    ended = subprocess.run(command, env=os.environ | hook, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "weights.bin 200.0 MB" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_hook_finds_the_folder_wherever_the_submission_names_it(tree: Path, tmp_path: Path) -> None:
    """In a runtime environment as text or as a file, whose excludes count; an archive or a URI is let through."""
    large_file(tree / "weights.bin", 200_000_000)
    given = tmp_path / "env.yaml"
    given.write_text(f"working_dir: {tree}\n")
    for places in ({"runtime_env": str(given)}, {"runtime_env_json": json.dumps({"working_dir": str(tree)})}):
        with pytest.raises(SystemExit):
            submit(**places)
    submit(runtime_env_json=json.dumps({"excludes": ["/weights.bin"]}), working_dir=str(tree))
    submit(working_dir="s3://bucket/code.zip")
    submit()


def submit(**given: str) -> None:
    """What Ray tells its hook."""
    places = dict.fromkeys(("working_dir", "runtime_env", "runtime_env_json"))
    before_submit(entrypoint=("true",), no_wait=False, **(places | given))
