"""The doctor on a cluster of real nodes: all is well, then fault after fault is planted, and just that is found."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import GCS_PORT, REPOSITORY, Cluster, Job, Node, _ip, missing_rights
from support.s3server import Gateway

from pharmclf import storage

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.tf, pytest.mark.s3, pytest.mark.timeout(1200)]
_END_S = 600.0
_CLOCK_S = 120
_CLOCK_AHEAD = Path(__file__).with_name("clock_ahead.c")
_QUICK = """
import time
from pharmclf.config import RunConfig
from pharmclf.diagnostics.preflight import run_preflight
began = time.monotonic()
try:
    run_preflight(RunConfig(storage={root!r}), lambda line: print("said:", line))
    print(f"quick: nothing, after {{time.monotonic() - began:.1f}} s")
except Exception as error:
    print(f"quick: {{type(error).__name__}}: {{error}}")
"""


@dataclass(frozen=True)
class Row:
    """A fault that was planted, and what was found."""

    fault: str
    found: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.fault:<44}{self.seconds:>6.0f} s  {self.found}"


Note = Callable[[str, str, float], None]


@pytest.fixture(scope="module")
def note(request: pytest.FixtureRequest) -> Iterator[Note]:
    """Adds a row to the table, which is printed when all tests of the file have ended."""
    rows: list[Row] = []
    yield lambda *values: rows.append(Row(*values))
    for line in ("", "faults planted and faults found", *map(str, rows)):
        request.config.get_terminal_writer().line(line)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Home folders of nodes with the right secret, and with a wrong one: no variable of a job can hide them."""
    found = {}
    for name, secret in (("right", Gateway.secret_key), ("wrong", "a-wrong-secret")):
        folder = tmp_path_factory.mktemp(f"home-{name}")
        (folder / ".aws").mkdir()
        keys = f"aws_access_key_id = {Gateway.access_key}\naws_secret_access_key = {secret}"
        (folder / ".aws" / "credentials").write_text(f"[default]\n{keys}\n")
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def cluster(homes: dict[str, str]) -> Iterator[Cluster]:
    """A head that does no training and two nodes, which have their secret in their home folder."""
    if reason := missing_rights():
        pytest.skip(reason)
    made = Cluster().start()
    try:
        made.environment["HOME"] = homes["right"]
        made.start_ray()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def root(cluster_gateway: Gateway, drawn_images: str) -> str:
    """A bucket with the images."""
    bucket = f"s3://{cluster_gateway.new_bucket()}"
    storage.upload_folder(Path(drawn_images), f"{bucket}/images")
    return bucket


@pytest.fixture
def settled(cluster: Cluster) -> Iterator[None]:
    """Whatever a test leaves behind ends with it."""
    yield
    cluster.settle()


Fault = Callable[[Cluster, Gateway, dict[str, str], Path], AbstractContextManager[dict[str, str]]]


@contextlib.contextmanager
def restarted(cluster: Cluster, node: Node, variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """The node with other variables."""
    node.stop()
    node.start(cluster.environment | variables)
    try:
        yield {"node": node.address}
    finally:
        node.stop()
        node.start(cluster.environment)


@contextlib.contextmanager
def blocked(node: Node, address: str, ports: str) -> Iterator[dict[str, str]]:
    """The node cannot send to some ports of an address."""
    rule = ("to", address, "ipproto", "tcp", "dport", ports, "prohibit")
    _ip("-n", node.name, "rule", "add", *rule)
    try:
        yield {"node": node.address, "other": address}
    finally:
        _ip("-n", node.name, "rule", "del", *rule)


def other_version(
    cluster: Cluster, gateway: Gateway, homes: dict[str, str], folder: Path
) -> AbstractContextManager[dict[str, str]]:
    """Another Keras is installed on a node."""
    about = folder / "keras-3.14.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 3.14.0\n")
    return restarted(cluster, cluster.workers[1], {"PYTHONPATH": str(folder)})


def wrong_secret(
    cluster: Cluster, gateway: Gateway, homes: dict[str, str], folder: Path
) -> AbstractContextManager[dict[str, str]]:
    """A node has another secret for the storage."""
    return restarted(cluster, cluster.workers[1], {"HOME": homes["wrong"]})


def wrong_clock(
    cluster: Cluster, gateway: Gateway, homes: dict[str, str], folder: Path
) -> AbstractContextManager[dict[str, str]]:
    """The clock of a node is two minutes ahead."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine; Debian: apt-get install gcc")
    library = folder / "clock_ahead.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, _CLOCK_AHEAD, "-ldl"], check=True)
    return restarted(cluster, cluster.workers[1], {"LD_PRELOAD": str(library), "CLOCK_AHEAD_S": str(_CLOCK_S)})


def no_storage(
    cluster: Cluster, gateway: Gateway, homes: dict[str, str], folder: Path
) -> AbstractContextManager[dict[str, str]]:
    """A firewall stands between a node and the storage."""
    return blocked(cluster.workers[1], gateway.bind, str(gateway.port))


def no_ports(
    cluster: Cluster, gateway: Gateway, homes: dict[str, str], folder: Path
) -> AbstractContextManager[dict[str, str]]:
    """A firewall stands between two nodes; both reach the head."""
    first, second = cluster.workers
    return blocked(first, second.address, "1024-65534")  # the kernel takes no range up to the last port


def submit_doctor(cluster: Cluster, gateway: Gateway, root: str) -> tuple[dict[str, Any], str, float]:
    """Submit the doctor -> its report, the job's status, seconds."""
    began = time.monotonic()
    flags = (f"--data={root}/images", f"--storage={root}/runs", "--num-workers=2", "--json")
    job = cluster.submit("python", "jobs/doctor.py", *flags, **places(gateway))
    status = job.wait(_END_S)
    return report_of(text_of(job)), status, time.monotonic() - began


def places(gateway: Gateway) -> dict[str, str]:
    """Where the storage lies; no keys."""
    return {name: value for name, value in gateway.environment().items() if "KEY" not in name}


def text_of(job: Job) -> str:
    return "\n".join(line.text for line in job.lines)


def report_of(text: str) -> dict[str, Any]:
    """The JSON object in an output."""
    place = text.find("\n{\n") + 1
    assert text[place:].startswith("{"), text
    return json.JSONDecoder().raw_decode(text, place)[0]


def findings(report: dict[str, Any], level: str) -> dict[tuple[str, str], str]:
    """(section, check) -> text and remedy, of a level."""
    return {
        (section["title"], one["check"]): f"{one['text']}. Remedy: {one['remedy']}"
        for section in report["sections"]
        for one in section["findings"]
        if one["level"] == level
    }


def test_a_cluster_that_is_well_is_found_well(
    cluster: Cluster, cluster_gateway: Gateway, root: str, settled: None, note: Note
) -> None:
    """Every node has a section with the same checks, and two workers on two nodes have summed. Nothing stays."""
    before = sorted(entry.location for entry in storage.list_files(root))
    report, status, seconds = submit_doctor(cluster, cluster_gateway, root)
    assert findings(report, "FAIL") == {}
    assert status == "SUCCEEDED"
    titles = [section["title"] for section in report["sections"]]
    assert sorted(titles[1:-1]) == sorted(f"node {node.address}" for node in cluster.nodes)
    checks = {tuple(one["check"] for one in section["findings"]) for section in report["sections"][1:-1]}
    assert len(checks) == 1
    assert {"versions", "clock", "storage", "data", "disk", "tensorflow", "GPU"} <= set(*checks)
    together = {one["check"]: one["text"] for one in report["sections"][-1]["findings"]}
    assert together["network"].startswith("all 3 nodes reach each other")
    assert "two workers on two nodes: " in together["all-reduce"]
    assert sorted(entry.location for entry in storage.list_files(root)) == before
    note("none", f"nothing; {together['all-reduce']}", seconds)


@pytest.mark.parametrize(
    ("fault", "failed", "words"),
    [
        (other_version, {"node": ["versions"]}, "keras 3.14.0, the driver has "),
        (wrong_secret, {"node": ["storage", "data"]}, "wrong credentials"),
        (no_storage, {"node": ["storage", "data"]}, "not reachable"),
        (no_ports, {"cluster": ["network"]}, "{node} cannot reach {other} (port "),
        (wrong_clock, {"node": ["clock"]}, "s behind this one"),
    ],
)
def test_a_fault_is_found_where_it_is_and_nowhere_else(
    cluster: Cluster,
    cluster_gateway: Gateway,
    homes: dict[str, str],
    root: str,
    tmp_path: Path,
    settled: None,
    note: Note,
    fault: Fault,
    failed: dict[str, list[str]],
    words: str,
) -> None:
    """Exactly these checks fail, with the reason and a remedy; the job ends with an exit code that is not 0.

    The short checks before a run find it as well, but for ports between nodes, which they do not try.
    """
    with fault(cluster, cluster_gateway, homes, tmp_path) as where:
        report, status, seconds = submit_doctor(cluster, cluster_gateway, root)
        code = _QUICK.format(root=f"{root}/runs")
        quick = cluster.submit("python", "-c", code, **places(cluster_gateway))
        quick.wait(_END_S)
    found = findings(report, "FAIL")
    titles = {"cluster": "cluster", "node": f"node {where['node']}"}
    assert set(found) == {(titles[place], check) for place, checks in failed.items() for check in checks}
    assert status == "FAILED"
    first = next(iter(found.values()))
    assert words.format(**where) in first
    said = next(line.text for line in quick.lines if line.text.startswith("quick: "))
    if fault is no_ports:
        assert said.startswith("quick: nothing")
    else:  # which ask the storage for less long, and may end before it has refused
        assert words.format(**where) in said or (fault is no_storage and "storage: no answer within" in said)
        assert titles["node"] in said
    note(fault.__name__.replace("_", " "), f"{titles[next(iter(failed))]}: {first}", seconds)
    note("  the short checks", said.removeprefix("quick: "), 0.0)


def test_other_code_on_a_node_is_found_where_the_nodes_have_the_package_installed(
    cluster: Cluster, cluster_gateway: Gateway, root: str, tmp_path: Path, settled: None, note: Note
) -> None:
    """A driver that brings no code along: the node whose pharmclf differs by a line fails, and the others go on."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "pharmclf", tmp_path / "shadow" / "pharmclf", ignore=ignore)
    with (tmp_path / "shadow" / "pharmclf" / "fingerprint.py").open("a") as file:
        file.write("# another line\n")
    node = cluster.workers[1]
    with restarted(cluster, node, {"PYTHONPATH": str(tmp_path / "shadow")}):
        began = time.monotonic()
        done = on_head(cluster, cluster_gateway, tmp_path, f"--storage={root}/runs", "--json")
        seconds = time.monotonic() - began
    assert done.returncode == 1, done.stdout + done.stderr
    found = findings(json.loads(done.stdout), "FAIL")
    assert set(found) == {(f"node {node.address}", "versions")}
    assert "pharmclf's code" in found[f"node {node.address}", "versions"]
    note("another line of code on a node", f"node {node.address}: {found[f'node {node.address}', 'versions']}", seconds)


def test_a_node_that_hangs_does_not_hang_the_doctor(
    cluster: Cluster, cluster_gateway: Gateway, root: str, tmp_path: Path, settled: None, note: Note
) -> None:
    """Its raylet is stopped: the other nodes are examined, and it is named, or has been given up by Ray meanwhile."""
    node = cluster.workers[1]
    (raylet,) = node.raylet
    os.kill(raylet.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = on_head(cluster, cluster_gateway, tmp_path, f"--storage={root}/runs", "--json")
        seconds = time.monotonic() - began
    finally:
        os.kill(raylet.pid, signal.SIGCONT)
        node.revive(cluster.environment)
    report = json.loads(done.stdout)
    examined = {section["title"] for section in report["sections"] if len(section["findings"]) > 1}
    assert {f"node {other.address}" for other in cluster.nodes[:2]} <= examined
    found = findings(report, "FAIL")
    assert set(found) <= {(f"node {node.address}", "node"), ("cluster", "all-reduce"), ("cluster", "network")}
    note("a raylet that hangs", "; ".join(f"{title}: {text}" for (title, _), text in found.items()), seconds)


def on_head(cluster: Cluster, gateway: Gateway, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor on the head, as a program of its own."""
    variables = cluster.environment | places(gateway) | {"RAY_ADDRESS": f"{cluster.head.address}:{GCS_PORT}"}
    command = ["ip", "netns", "exec", cluster.head.name, sys.executable, str(REPOSITORY / "jobs" / "doctor.py"), *flags]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=_END_S)
    return run(command, cwd=folder, env=variables)
