"""Every command block of every README runs as typed, in the order in which it stands, in one fresh environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.s3server import Gateway

from pharmclf.commands.registry import load_command

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "jobs/README.md", "tune/README.md", "cluster/README.md", ".github/CONTRIBUTING.md"]
OTHERS = ["pharmclf/README.md", "tests/README.md"]
ACCOUNTS = re.compile(r"^(aws|gcloud|RAY_USE_TLS)\b", re.MULTILINE)
"""Commands that need an account at a cloud, or certificates; their blocks are `sh`, and are not run."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a README."""

    language: str
    line: int
    text: str


def blocks(readme: str) -> list[Block]:
    text = (ROOT / readme).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], text.count("\n", 0, match.start()) + 2, match[2]) for match in found]


def git_files(*arguments: str) -> list[str]:
    return subprocess.check_output(["git", "ls-files", *arguments], cwd=ROOT, text=True).split()


def script(readme: str) -> str:
    """All blocks of a README as one program of bash, which ends at the first command that fails."""
    lines = ["set -eo pipefail"]
    for block in blocks(readme):
        where = f"echo '### {readme}:{block.line}'"
        if block.language == "bash":
            lines += [where, block.text]
        elif block.language == "python":
            lines += [where, f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Machine:
    """A new user's machine: a home with photos, a clone, an object store."""

    clone: Path
    variables: dict[str, str]

    def run(self, text: str) -> str:
        """Run a program of bash; whatever it has started ends with it."""
        contained = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*contained, "bash", "-c", text],
            cwd=self.clone,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, drawn_images: str, gateway: Gateway) -> Machine:
    home, clone = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("clone") / "pharmclf"
    for name in ("photos", "more-photos", "dim-light"):
        shutil.copytree(drawn_images, home / name)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for changed in git_files("-mo", "--exclude-standard"):
        (clone / changed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / changed, clone / changed)
    images = sorted(path for path in (home / "photos").rglob("*.jpg"))
    shutil.copy(images[0], clone / "tablet.jpg")
    client = gateway.client
    for bucket, prefixes in {"images": ("tablets", "today", "phone"), "models": ()}.items():
        client.create_bucket(Bucket=bucket)
        for prefix in prefixes:
            for path in images:
                client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(home / 'photos')}")
    variables = gateway.environment() | {
        "HOME": str(home),
        "PATH": os.defpath,
        "PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip"),
        "PYTEST_ADDOPTS": "--collect-only -q",  # the suite itself is only collected: it would run inside itself
    }
    return Machine(clone, variables)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("readme", READMES)
def test_the_commands_run_as_typed(machine: Machine, readme: str):
    """In the clone in which the commands of the README at the top have been given first."""
    if readme == READMES[0]:
        machine.run(script(readme))
        assert (machine.clone / "runs" / "demo" / "report.html").exists()
        assert (machine.clone / "today.parquet").exists()
        return
    if not (machine.clone / ".venv").exists():
        machine.run("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]'")
    machine.run(f". .venv/bin/activate\n{script(readme)}")


def commands(readme: str) -> list[list[str]]:
    """The words of each command of the package in the blocks of a README."""
    lines = [line for block in blocks(readme) for line in block.text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part.rstrip().removesuffix("&"), comments=True) for line in lines for part in line.split("&&")]
    return [found[1:] for found in words if found and found[0].endswith("pharmclf")]


@pytest.mark.parametrize("readme", READMES[:3])
def test_a_parser_accepts_every_command(readme: str, monkeypatch: pytest.MonkeyPatch):
    """What the slow test above shows by running it, flag by flag, in a moment."""
    monkeypatch.setenv("HOME", "/home/reader")
    assert commands(readme)
    for name, *arguments in commands(readme):
        load_command(name).PARSER.parse(arguments)


@pytest.mark.parametrize("readme", [*READMES, *OTHERS])
def test_a_command_that_is_not_run_needs_an_account(readme: str):
    """`sh` blocks are left out of the test above; no other block hides a command from it."""
    for block in blocks(readme):
        assert (block.language == "sh") == bool(ACCOUNTS.search(block.text)), f"{readme}:{block.line}"
        assert block.language in ("bash", "python", "sh", "yaml", "json", ""), f"{readme}:{block.line}"
        assert block.language or not re.search(r"^(pharmclf|ray|python|pip) ", block.text, re.MULTILINE)
    if readme in OTHERS:
        assert not [block for block in blocks(readme) if block.language in ("bash", "python")]


def test_every_readme_is_read():
    """A new one is added to the lists above."""
    tracked = git_files("*README.md", "*CONTRIBUTING.md")
    elsewhere = {name for name in tracked if name.startswith("tests/") and name != "tests/README.md"}
    assert set(tracked) - elsewhere == {*READMES, *OTHERS} & set(tracked)
    assert all((ROOT / name).exists() for name in READMES)


def test_the_first_page_is_short():
    """What a reader needs in five minutes; the rest is next to what it explains."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
