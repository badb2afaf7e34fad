"""A Slurm of two nodes on this machine: munged, slurmctld and two slurmd on 127.0.0.1, on ports of their own.

Each node says that it has eight CPUs and a GPU, whatever the machine has: scripts are judged as on a real cluster.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from support.s3server import end

REPOSITORY = Path(__file__).parents[2]
NODES = ("one", "two")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
_START_S = 30.0
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that goes back to the queue waits for as long as credentials live; the default is 120 s
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
# no cgroups, which containers often lack
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
# jobs of two of these at once, and what a killed one has left in /tmp, shall not share a number
FirstJobId={first}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=90 DefMemPerCPU=1000
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


def missing() -> str:
    """What stands in the way of a Slurm here, and the remedy; "" when nothing does."""
    if absent := [name for name in _PROGRAMS if not shutil.which(name)]:
        remedy = "apt-get install --no-install-recommends slurm-wlm munge"
        return f"no {', '.join(absent)} on this machine; Debian: {remedy}"
    return "daemons of Slurm need root" if os.geteuid() else ""


class Slurm:
    """The daemons, and what a user does with them."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        hidden = ("RAY_", "AWS_", "PHARMCLF_", "SLURM_", "SBATCH_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment["SLURM_CONF"] = str(self._folder / "slurm.conf")

    def start(self) -> Slurm:
        """Start all of it; two seconds."""
        try:
            self._configure()
            munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
            munge |= {"seed-file": "munged.seed", "log-file": "munged.log"}
            names = [f"--{name}={self._folder / file}" for name, file in munge.items()]
            self._spawn("munged", "--foreground", "--force", *names)
            self._wait("munged", (self._folder / "munge.socket").exists)
            self._spawn("slurmctld", "-D", "-i")
            for node in NODES:
                self._spawn("slurmd", "-D", "-N", node)
            idle = ["--noheader", "--Node", "--partition=low", "--states=idle"]
            self._wait("Slurm", lambda: len(self._try("sinfo", *idle).splitlines()) == len(NODES))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all jobs and daemons, and delete the folder."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while self._daemons:
            end(self._daemons.pop())
        shutil.rmtree(self._folder, ignore_errors=True)

    def sbatch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`sbatch` in the repository."""
        return subprocess.run(
            ["sbatch", *arguments],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=_START_S,
        )  # fmt: skip

    def submit(self, *arguments: str) -> Job:
        """`sbatch`, whose output goes to a file of the folder.

        Raises:
            RuntimeError: the job was not taken.
        """
        done = self.sbatch("--parsable", f"--output={self._folder}/job-%j.log", *arguments)
        if done.returncode:
            raise RuntimeError(f"sbatch {' '.join(arguments)}: {done.stderr}")
        return Job(self, done.stdout.strip(), self._folder / f"job-{done.stdout.strip()}.log")

    def command(self, program: str, *arguments: str) -> str:
        """A program of Slurm -> what it prints.

        Raises:
            RuntimeError: it ended with an error.
        """
        done = subprocess.run(
            [program, *arguments], env=self.environment, capture_output=True, text=True, timeout=_START_S
        )
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout

    def processes(self, job: str = "") -> list[psutil.Process]:
        """The living processes of one job, or of all jobs of this Slurm, without its daemons."""
        daemons = {daemon.pid for daemon in self._daemons}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid in daemons or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                variables = process.environ()
                ours = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and (variables.get("SLURM_JOB_ID") == job if job else True):
                    found.append(process)
        return found

    def _configure(self) -> None:
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={name} Port={port} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:1"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        first = 1_000_000 + secrets.randbelow(50_000_000)
        text = _CONF.format(host=host, port=ports[0], folder=self._folder, first=first, nodes="\n".join(nodes))
        (self._folder / "slurm.conf").write_text(text, "utf-8")
        (self._folder / "gres.conf").write_text("Name=gpu File=/dev/null\n", "utf-8")  # nothing opens it
        (self._folder / "state").mkdir()
        key = self._folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _spawn(self, *command: str) -> None:
        with (self._folder / f"{command[0]}-{command[-1]}.out".replace("/", "-")).open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._folder,
                    env=self.environment, start_new_session=True,
                )
            )  # fmt: skip

    def _try(self, program: str, *arguments: str) -> str:
        try:
            return self.command(program, *arguments)
        except RuntimeError:
            return ""

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _START_S
        while not done():
            ended = [str(daemon.args) for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > until:
                texts = [file.read_text("utf-8", "replace")[-1500:] for file in self._folder.glob("*.out")]
                raise RuntimeError(f"{what} did not start; ended: {ended}\n" + "\n".join(texts))
            time.sleep(0.05)


class Job:
    """A submitted job."""

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.number, self._slurm, self._log = number, slurm, log

    @property
    def output(self) -> str:
        """All that it has printed, in all of its starts."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def describe(self) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode as "code:signal", Restarts, ..."""
        text = self._slurm.command("scontrol", "show", "job", "--oneliner", self.number)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, within: float) -> int:
        """Wait for the end -> the exit code.

        Raises:
            TimeoutError: it still runs, or waits.
        """
        self.wait_for("the end", lambda: self.describe()["JobState"] in _ENDED, within=within)
        return int(self.describe()["ExitCode"].split(":")[0])

    def wait_for(self, what: str, happened: Callable[[], bool], *, within: float) -> None:
        """Wait until something is true.

        Raises:
            TimeoutError: it has not come, or the job has ended without it.
        """
        until, asked = time.monotonic() + within, time.monotonic()
        while not happened():
            now, state = time.monotonic(), ""
            if now - asked > 2:
                asked, state = now, self.describe()["JobState"]
            if now > until or (state in _ENDED and not happened()):
                raise TimeoutError(
                    f"job {self.number} ({state}): no {what} within {within:.0f} s\n{self.output[-5000:]}"
                )
            time.sleep(0.1)

    def signal(self, *arguments: str) -> None:
        """`scancel` with these options."""
        self._slurm.command("scancel", *arguments, self.number)

    def left_behind(self, within: float = 20.0) -> list[str]:
        """Processes and folders that are still there so long after the end."""
        until = time.monotonic() + within
        while (left := [*self._remains()]) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def _remains(self) -> Iterator[str]:
        for process in self._slurm.processes(self.number):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield f"{process.pid} {' '.join(process.cmdline())}"
        yield from map(str, Path("/tmp").glob(f"pharmclf-{self.number}-*"))


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 below those that outgoing connections get."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
