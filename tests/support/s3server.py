"""A real S3 server for tests: Ceph's RADOS Gateway over a monitor and an OSD in memory, in a temporary folder."""

from __future__ import annotations

import functools
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
_START_S, _STOP_S = 60.0, 10.0
_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
cephx require signatures = false
run dir = {folder}
admin socket = {folder}/$name.asok
pid file =
log file = {folder}/$name.log
crash dir = {folder}
ms bind msgr1 = false
ms mon client mode = crc secure
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 2
mon cluster log file = {folder}/cluster.log
paxos propose interval = 0.05
paxos min wait = 0.01
[mon.a]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class dir = {classes}
osd class load list = *
osd class default list = *
[client.rgw]
# without tcp_nodelay every answer takes 40 ms
rgw frontends = beast endpoint={bind}:{port} tcp_nodelay=1
rgw data = {folder}
rgw thread pool size = 64
"""


def missing_programs() -> str:
    """What stands in the way of a server here, and the remedy; "" when nothing does."""
    absent = [name for name in _PROGRAMS if not shutil.which(name)]
    remedy = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
    return f"no {', '.join(absent)} on this machine; Debian: {remedy}" if absent else ""


class Gateway:
    """The server and its one user; only the gateway may be stopped and started again while the data stays."""

    access_key, secret_key = "test-access-key", "test-secret-that-nobody-may-see"

    def __init__(self, bind: str = "127.0.0.1") -> None:
        self.bind, self.port = bind, _free_port(bind)
        self._folder = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))  # short: a socket's path has 107 characters
        self._conf = str(self._folder / "ceph.conf")
        self._cluster: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{self.bind}:{self.port}"

    def start(self) -> Gateway:
        """Start all of it; two seconds."""
        try:
            self._start_cluster()
            self.start_gateway()
            keys = (f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
            self.admin("user", "create", "--uid=test", "--display-name=test", *keys)
        except BaseException:
            self.stop()
            raise
        return self

    def _start_cluster(self) -> None:
        folder, mon_port, fsid = self._folder, _free_port("127.0.0.1"), str(uuid.uuid4())
        classes = next(str(path.parent) for path in Path("/usr/lib").rglob("libcls_rgw.so"))
        names = {"folder": folder, "fsid": fsid, "classes": classes, "bind": self.bind, "port": self.port}
        Path(self._conf).write_text(_CONF.format(mon_port=mon_port, **names), "utf-8")
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, f"{folder}/monmap")
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap")
        self._cluster.append(self._spawn("ceph-mon", "-i", "a"))
        osd = str(uuid.uuid4())  # the same for "osd new" and for the OSD, or it never goes up
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._cluster.append(self._spawn("ceph-osd", "-i", "0", "--osd-uuid", osd))
        _wait("the OSD", lambda: json.loads(self._run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1)

    def stop(self) -> None:
        """Stop all of it and delete its folder."""
        self.stop_gateway()
        while self._cluster:
            end(self._cluster.pop())
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_gateway(self) -> None:
        """Start the gateway and wait until it answers."""
        self._gateway = self._spawn("radosgw", "-n", "client.rgw")
        _wait("the gateway", self._answers)

    def stop_gateway(self) -> None:
        """Stop the gateway; from now on connections are refused."""
        if self._gateway:
            end(self._gateway)
        self._gateway = None

    def admin(self, *args: str) -> str:
        """Run radosgw-admin: users, keys."""
        return self._run("radosgw-admin", "-n", "client.rgw", *args)

    @functools.cached_property
    def client(self) -> Any:
        """A client of boto3, for what the package itself does not do."""
        import boto3
        from botocore.config import Config

        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, **checksums),
        )

    def new_bucket(self) -> str:
        """Make a bucket; its name."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process find the server and its keys in its environment, and nowhere else."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            patch.setenv(name, str(self._folder / "no-such-file"))
        for name, value in self.environment().items():
            patch.setenv(name, value)

    def _run(self, program: str, *args: str) -> str:
        command = [program, "-c", self._conf, *args] if program != "monmaptool" else [program, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout

    def _spawn(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        with (self._folder / "output").open("ab") as output:  # -f: in the foreground, so that its id is known
            command = [program, "-c", self._conf, *args, "-f"]
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _answers(self) -> bool:
        if self._gateway is None or self._gateway.poll() is not None:
            raise RuntimeError(f"radosgw has ended: {(self._folder / 'output').read_text('utf-8')[-2000:]}")
        connection = http.client.HTTPConnection(self.bind, self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _free_port(bind: str) -> int:
    # below those that outgoing connections get, or a client that knocks at a stopped server may meet itself
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bind, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def _wait(what: str, done: Callable[[], bool]) -> None:
    until = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not start within {_START_S:.0f} s")
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL where that does not end it in time."""
    process.terminate()  # nothing happens where it has ended
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
