"""A Ray cluster of real nodes on one machine: a network namespace for each, joined by a bridge, `ray start` in each.

The nodes have addresses, links and process lists of their own; processors, memory and disk are those of the machine.
Everything has a name of its own for each cluster, and `stop` removes all of it by ids and names that it made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from support.ray_head import ask

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
GCS_PORT, DASHBOARD_PORT = 6379, 8265
_START_S, _END_S = 180.0, 10.0
_NODE_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # a node that does not answer counts as lost after three times 3 + 1 seconds
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    # workers started ahead would not have the job's environment, and would only burn the two cores
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


@functools.cache
def missing_rights() -> str:
    """What stands in the way of namespaces here, and the remedy; "" when nothing does."""
    if not shutil.which("ip"):
        return "no program ip on this machine; Debian: apt-get install --no-install-recommends iproute2"
    if os.geteuid():
        return "network namespaces need root"
    name = f"probe{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "true")
        _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        _ip("link", "add", f"{name}c", "type", "bridge")
    except RuntimeError as error:
        return f"this machine allows no network namespaces: {error}"
    finally:
        for arguments in (("netns", "del", name), ("link", "del", f"{name}a"), ("link", "del", f"{name}c")):
            with contextlib.suppress(RuntimeError):
                _ip(*arguments)
    return ""


class Node:
    """A namespace with a Ray node in it."""

    def __init__(self, name: str, address: str, bridge: str, folder: Path, flags: Sequence[str]) -> None:
        self.name, self.address, self.folder = name, address, folder
        self._flags, self._given_up = flags, False
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", bridge, "up")
        for arguments in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _ip("-n", name, *arguments)
        _ip("-n", name, "link", "set", "lo", "up")

    def start(self, environment: dict[str, str]) -> None:
        """`ray start`; returns when the node is there, after some ten seconds."""
        folder = self.folder / secrets.token_hex(2)  # the remains of a killed node are not the new one's
        folder.mkdir(parents=True)
        command = [
            "ip", "netns", "exec", self.name, RAY, "start", f"--node-ip-address={self.address}", f"--temp-dir={folder}",
            "--dashboard-agent-listen-port=0", "--object-store-memory=200000000", "--include-log-monitor=False",
            "--disable-usage-stats", *self._flags,
        ]  # fmt: skip
        with (folder / "start.log").open("w+") as output:  # no pipe: what it starts would hold it open
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
            )
            try:
                code = process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code:
                output.seek(0)
                raise RuntimeError(f"`ray start` in {self.name} ended with {code}: {output.read()[-2000:]}")

    def processes(self, pattern: str = "") -> list[psutil.Process]:
        """The living processes whose command line holds the pattern, oldest first."""
        found = []
        for number in _ip("netns", "pids", self.name).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(number))
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and re.search(pattern, line):
                    found.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(found, key=lambda one: one[:2])]

    @property
    def raylet(self) -> list[psutil.Process]:
        """The node's raylet, or nothing."""
        return self.processes(r"/raylet/raylet ")

    @property
    def train_workers(self) -> list[psutil.Process]:
        """Processes of Ray Train's workers."""
        return self.processes(r"^ray::RayTrainWorker")

    def stop(self, *, suddenly: bool = False) -> None:
        """End all processes of the node: the raylet says goodbye first, as with `ray stop`, unless it is suddenly."""
        if not suddenly:
            raylet = self.raylet
            for process in raylet:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(raylet, timeout=_END_S)
        while processes := self.processes():  # again for those that were started meanwhile
            kill(processes)

    def cut(self) -> None:
        """Cut the link of the node, until `restore`; after some seconds it needs `revive` as well."""
        self._given_up = True
        _ip("link", "set", self.name, "down")

    def restore(self) -> None:
        """Mend the link."""
        _ip("link", "set", self.name, "up")

    @property
    def is_well(self) -> bool:
        """Whether it has a raylet that the cluster has not given up."""
        return bool(self.raylet) and not self._given_up

    def revive(self, environment: dict[str, str]) -> None:
        """Start the node again after it was lost, as a supervisor does: what is left of it ends first."""
        self._given_up = False
        self.stop(suddenly=True)
        self.start(environment)

    def remove(self) -> None:
        """End all processes, and delete the namespace with its link."""
        self.stop(suddenly=True)
        _ip("netns", "del", self.name)
        with contextlib.suppress(RuntimeError):  # it went with the namespace, at once or soon
            _ip("link", "del", self.name)


class Cluster:
    """A head and workers, each in a namespace, with token authentication.

    Attributes:
        bridge_address: of this machine on the cluster's network; servers for the cluster listen there.
        environment: for programs that talk to the cluster; it holds the token's place.
    """

    def __init__(self, head_cpus: int = 0, worker_cpus: Sequence[int] = (2, 2)) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # short: a socket's path has 107 characters
        self._folder.chmod(0o700)
        self._mark = secrets.token_hex(3)
        self._bridge = f"n{self._mark}br"
        self._subnet = _free_subnet()
        self.bridge_address = f"{self._subnet}.254"
        self.token = secrets.token_hex(32)
        token_file = self._folder / "token"
        token_file.write_text(self.token, "utf-8")
        hidden = ("RAY_", "AWS_", "PHARMCLF_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        # jobs find their `python` on the PATH of `ray start`
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment |= _NODE_ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token_file)}
        self._cpus = (head_cpus, *worker_cpus)
        self.nodes: list[Node] = []
        self._jobs: list[Job] = []

    @property
    def head(self) -> Node:
        """The node with the job server and the drivers."""
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        """All nodes but the head."""
        return self.nodes[1:]

    @property
    def url(self) -> str:
        """Of the job server."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def start(self) -> Cluster:
        """Make the network, without any Ray yet."""
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.bridge_address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            head = f"{self._subnet}.1"
            for number, cpus in enumerate(self._cpus):
                flags = [f"--num-cpus={cpus}", "--num-gpus=0"]
                flags += (
                    ["--head", f"--port={GCS_PORT}", f"--dashboard-host={head}", f"--dashboard-port={DASHBOARD_PORT}"]
                    if number == 0
                    else [f"--address={head}:{GCS_PORT}"]
                )
                name, address = f"n{self._mark}{number}", f"{self._subnet}.{number + 1}"
                self.nodes.append(Node(name, address, self._bridge, self._folder / str(number), flags))
        except BaseException:
            self.stop()
            raise
        return self

    def start_ray(self) -> None:
        """`ray start` everywhere; returns when the head takes jobs."""
        for node in self.nodes:
            node.start(self.environment)
        until = time.monotonic() + _START_S
        while True:  # the job server answers before a node's agent takes jobs
            try:
                number = self.api("POST", "/api/jobs/", {"entrypoint": "true"})["submission_id"]
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.url} took no job within {_START_S:.0f} s: {error}") from error
                time.sleep(0.5)
        status = Job(self, number).wait(until - time.monotonic())
        if status != "SUCCEEDED":
            raise RuntimeError(f"a job that does nothing ended as {status}")

    def stop(self) -> None:
        """Remove the nodes, the network and all files."""
        with contextlib.ExitStack() as stack:  # each is done even when one before it fails
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            stack.callback(_delete_link, self._bridge)
            for node in self.nodes:
                stack.callback(node.remove)
            for job in self._jobs:
                stack.callback(job.close)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the job server, with the token.

        Raises:
            OSError: it does not answer, or refuses.
        """
        return ask(self.url + path, method, body, self.token)

    def submit(self, *entrypoint: str, **variables: str) -> Job:
        """`ray job submit` on the head from the repository, without waiting, with variables for the job."""
        number = f"job-{secrets.token_hex(4)}"
        ended = subprocess.run(
            [
                "ip", "netns", "exec", self.head.name, RAY, "job", "submit", f"--address={self.url}", "--working-dir=.",
                "--no-wait", f"--submission-id={number}",
                f"--runtime-env-json={json.dumps({'env_vars': variables})}", "--", *entrypoint,
            ],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=_START_S,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"`ray job submit` ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
        self._jobs.append(Job(self, number))
        return self._jobs[-1]

    def drain(self, node: Node, within_s: int) -> None:
        """Tell the cluster that a node will be taken away, as a cloud's notice of pre-emption does."""
        known = self.api("GET", "/api/v0/nodes")["data"]["result"]["result"]
        (number,) = [one["node_id"] for one in known if (one["node_ip"], one["state"]) == (node.address, "ALIVE")]
        ended = subprocess.run(
            [
                "ip", "netns", "exec", self.head.name, RAY, "drain-node", f"--address={self.head.address}:{GCS_PORT}",
                f"--node-id={number}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=notice",
                f"--deadline-remaining-seconds={within_s}",
            ],
            env=self.environment, capture_output=True, text=True, timeout=_START_S,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"`ray drain-node` ended with {ended.returncode}: {ended.stdout}{ended.stderr}")

    def drivers(self) -> list[psutil.Process]:
        """Processes of the submitted jobs' entrypoints that run jobs/*.py."""
        return self.head.processes(r"^\S*python\S* jobs/\w+\.py")

    def settle(self) -> None:
        """Kill the drivers that still run, and make each worker node whole: what a test leaves behind."""
        kill(self.drivers())
        for job in self._jobs:
            job.close()
        for node in self.workers:
            node.restore()
            if not node.is_well:
                node.revive(self.environment)

    def log_file(self, number: str) -> Path:
        """Where the head keeps the output of a job."""
        (found,) = self.head.folder.glob("*/session_latest")
        return found / "logs" / f"job-driver-{number}.log"

    def train_workers(self) -> dict[str, list[psutil.Process]]:
        """Processes of Ray Train's workers by the address of their node, where there are some."""
        found = {node.address: node.train_workers for node in self.nodes}
        return {address: processes for address, processes in found.items() if processes}


@dataclass(frozen=True)
class Line:
    """A line of a job's output."""

    number: int
    at: float
    """When it was read, 0.05 s after it was written; of time.monotonic()."""
    text: str


class Job:
    """A submitted job: its output, read as it grows, and how it ends."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.number = number
        self.lines: list[Line] = []
        self._cluster, self._path = cluster, cluster.log_file(number)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"output of {number}", daemon=True)
        self._thread.start()

    def status(self) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(self._cluster.api("GET", f"/api/jobs/{self.number}")["status"])

    def wait(self, within: float) -> str:
        """Wait for the end -> the last status.

        Raises:
            TimeoutError: it still runs.
        """
        until, status = time.monotonic() + within, "unknown"
        while time.monotonic() < until:
            with contextlib.suppress(OSError):  # a loaded head answers late
                status = self.status()
            if status in ("SUCCEEDED", "FAILED", "STOPPED"):
                self.close()
                return status
            time.sleep(0.5)
        raise TimeoutError(f"job {self.number} is {status} after {within:.0f} s\n{self.tail()}")

    def first(self, pattern: str, since: int = 0) -> Line | None:
        """The first line from number `since` on that holds the pattern."""
        return next((line for line in self.lines[since:] if re.search(pattern, line.text)), None)

    def wait_for(self, pattern: str, *, within: float, since: int = 0) -> Line:
        """Wait for a line from number `since` on.

        Raises:
            TimeoutError: there is none.
            RuntimeError: the job has ended without it.
        """
        return self.wait_until(lambda: self.first(pattern, since), f"a line like {pattern!r}", within=within)

    def wait_until(self, happened: Callable[[], Any], what: str, *, within: float) -> Any:
        """Wait until something is true while the job runs -> it.

        Raises:
            TimeoutError: it has not come.
            RuntimeError: the job has ended without it.
        """
        until, asked = time.monotonic() + within, time.monotonic()
        while not (found := happened()):
            now = time.monotonic()
            if now > until:
                raise TimeoutError(f"job {self.number}: no {what} within {within:.0f} s\n{self.tail()}")
            if now - asked > 5:
                asked, status = now, "unknown"
                with contextlib.suppress(OSError):
                    status = self.status()
                if status in ("SUCCEEDED", "FAILED", "STOPPED"):
                    raise RuntimeError(f"job {self.number} ended as {status} before {what}\n{self.tail()}")
            time.sleep(0.05)
        return found

    def tail(self, lines: int = 60) -> str:
        """The end of the output, each line with its second since the first one."""
        began = self.lines[0].at if self.lines else 0.0
        return "\n".join(f"{line.at - began:7.1f}  {line.text}" for line in self.lines[-lines:])

    def close(self) -> None:
        """Read what is left and stop reading."""
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        place, rest, last = 0, "", False
        while True:
            last = self._ended.is_set()  # asked before reading, so that the last reading comes after the end
            with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
                file.seek(place)
                new = file.read()
                place += len(new)
                *whole, rest = (rest + new.decode("utf-8", "replace")).split("\n")
                for text in whole:
                    self.lines.append(Line(len(self.lines), time.monotonic(), text))
            if last:
                return
            self._ended.wait(0.05)


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=_END_S)


def _free_subnet() -> str:
    """The first three numbers of a subnet that this machine does not use."""
    used = _ip("-4", "-o", "addr")
    free = [f"10.77.{number}" for number in range(1, 255) if f" 10.77.{number}." not in used]
    return random.SystemRandom().choice(free)


def _delete_link(name: str) -> None:
    with contextlib.suppress(RuntimeError):
        _ip("link", "del", name)


def _ip(*arguments: str) -> str:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if ended.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout
