"""Drains this Ray node on a pre-emption notice, so that its run writes a checkpoint in time.

python preemption_watch.py aws                 a spot machine of EC2: two minutes' notice
python preemption_watch.py gcp                 a spot machine of Compute Engine: 30 seconds' notice
python preemption_watch.py now --seconds 100   drains at once and waits, as in a preStop hook of Kubernetes

Runs on the node, next to its raylet, with RAY_AUTH_MODE and the token in its environment. It polls the machine's
metadata server until there is a notice, drains the node with the reason PREEMPTION and the time that is left, and ends.
It needs only Python and the `ray` command.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
POLL_S = {"aws": 5.0, "gcp": 1.0}
"""Seconds between two requests: Amazon recommends 5, and Google's notice is short."""
_GCP_NOTICE_S = 30
_TIMEOUT_S, _RETRY_S = 5.0, 2.0
_MARGIN_S = 5.0
"""Seconds before the end at which `now` stops waiting."""


def say(line: str) -> None:
    """Log a line."""
    print(line, flush=True)  # noqa: T201


def aws_notice(server: str) -> float | None:
    """Seconds until EC2 takes the machine back; None: no notice. Raises OSError when the server does not answer."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    # IMDSv2: every request needs a token
    token = _request(f"{server}/latest/api/token", lifetime, method="PUT")
    answer = _request(f"{server}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if answer is None:
        return None
    end = datetime.datetime.fromisoformat(json.loads(answer)["time"].replace("Z", "+00:00"))
    return max(0.0, end.timestamp() - time.time())


def gcp_notice(server: str) -> float | None:
    """Seconds until Compute Engine takes the machine back; None: no notice. Raises OSError without an answer."""
    answer = _request(f"{server}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return float(_GCP_NOTICE_S) if answer == "TRUE" else None


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """Text of the answer; None where there is no such page."""
    try:
        request = urllib.request.Request(url, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as page:
            return str(page.read().decode().strip())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def node_ids() -> set[str]:
    """Ray's ids of the nodes on this machine, from the command lines of their raylets."""
    ids = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if Path(words[0]).name == "raylet":
            ids |= {word.partition("=")[2] for word in words if word.startswith("--node_id=")}
    return ids


def own_node_id() -> str:
    """Id of the only node on this machine. Raises LookupError where there is none, or more than one."""
    ids = node_ids()
    if len(ids) != 1:
        raise LookupError(f"received {len(ids)} raylets on this machine, expected one: give --node-id")
    return ids.pop()


def drain(seconds: float, node_id: str, address: str | None) -> None:
    """Drain the node. Raises OSError or subprocess.SubprocessError when Ray does not."""
    ray = shutil.which("ray") or str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the machine is about to be taken away"]
    command += ["--deadline-remaining-seconds", str(int(seconds))]
    command += ["--address", address] if address else []
    subprocess.run(command, check=True, timeout=30)


def wait_for_notice(check: Callable[[str], float | None], server: str, poll_s: float) -> float:
    """Wait for a notice -> the seconds that are left."""
    failing = False
    while True:
        try:
            seconds = check(server)
            failing = False
        except (OSError, ValueError, KeyError) as error:  # HTTPError and time-outs are OSErrors
            seconds = None
            if not failing:
                say(f"{server} does not answer, polling continues: {error}")
            failing = True
        if seconds is not None:
            return seconds
        time.sleep(poll_s)


def main() -> int:
    """Exit code: 0, the node drains; 1, it could not be drained in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["aws", "gcp", "now"], help="source of the notice")
    parser.add_argument("--seconds", type=float, default=100.0, help="time left, with `now`")
    parser.add_argument("--node-id", help="Ray's id of the node; by default that of the one raylet on this machine")
    parser.add_argument("--address", help="address of Ray's GCS, host:port; by default that of the Ray on this machine")
    parser.add_argument("--metadata", help="URL of the metadata server; by default the cloud's")
    parser.add_argument("--poll", type=float, help="seconds between two requests; by default 5 (aws), 1 (gcp)")
    arguments = parser.parse_args()

    if arguments.source == "now":
        seconds = arguments.seconds
        if not node_ids():
            say("no raylet on this machine: nothing to drain")
            return 0
    else:
        check = aws_notice if arguments.source == "aws" else gcp_notice
        poll_s = arguments.poll if arguments.poll is not None else POLL_S[arguments.source]
        seconds = wait_for_notice(check, arguments.metadata or METADATA[arguments.source], poll_s)
    end = time.monotonic() + seconds
    say(f"this machine is taken back in {seconds:.0f} s: draining the node")
    while True:
        try:
            node_id = arguments.node_id or own_node_id()
            drain(max(0.0, end - time.monotonic()), node_id, arguments.address)
            break
        except (LookupError, OSError, subprocess.SubprocessError) as error:
            say(f"not drained yet: {error}")
            if time.monotonic() + _RETRY_S >= end:
                return 1
            time.sleep(_RETRY_S)
    # a preStop hook delays the SIGTERM until it ends; the raylet of a drained node ends when its work is done
    while arguments.source == "now" and node_id in node_ids() and time.monotonic() < end - _MARGIN_S:
        time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
