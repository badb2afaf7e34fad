"""The files of cluster/ fit their real schemas and our rules; a mistake planted in one is found and named."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import checks
import pytest

CLUSTER = checks.REPOSITORY / "cluster"
KUBERAY_FILES = ("raycluster", "rayjob", "rayservice")
FILES = ["aws.yaml", "gcp.yaml", *(f"kuberay/{name}.yaml" for name in KUBERAY_FILES), "Dockerfile", "local.sh"]


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_its_schema_and_our_rules(name):
    assert checks.problems(name, text_of(name)) == []


def test_every_file_pins_the_ray_that_the_package_is_tested_with():
    version = checks.ray_version()
    assert checks.ray_version_fits(version)
    for name in FILES:
        assert set(re.findall(r"\bray(\d+\.\d+\.\d+)\b", text_of(name))) <= {version}
        assert set(re.findall(r"(?m)^\s*rayVersion: (\S+)$", text_of(name))) <= {version}


# --- mistakes


@dataclass(frozen=True)
class Mistake:
    name: str
    old: str
    new: str
    said: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old.strip()[:40]} -> {self.new.strip()[:40]}"


LAUNCHER = [
    ("idle_timeout_minutes: 10", "idle_timeout_minutes: ten", "Ray's schema: idle_timeout_minutes"),
    ("idle_timeout_minutes: 10", "idle_timeout: 10", "Ray's schema: .*idle_timeout"),
    ("idle_timeout_minutes: 10", "idle_timeout_minutes: 600", "idle machines stay"),
    ("    max_workers: 4\n", "    max_worker: 4\n", "Ray's schema: .*max_worker"),
    ("head_node_type: head", "head_node_type: heads", "Ray's validator"),
    ("    min_workers: 0\n    max_workers: 4", "    min_workers: 9\n    max_workers: 9", "smaller than the"),
    ("resources: {CPU: 0, GPU: 0}", "resources: {CPU: 4, GPU: 0}", "head must train nothing"),
    ("--num-cpus=0 --num-gpus=0", "", "head must train nothing"),
    ("resources: {CPU: 8, GPU: 1}", "resources: {CPU: 8}", "with a GPU"),
    (":0.1.0-ray2.60.0-gpu", ":latest", "not pinned"),
    (":0.1.0-ray2.60.0-cpu", ":0.1.0-ray2.59.0-cpu", "not the one with Ray"),
    ("  image: ", "  worker_image: ", "Ray's validator: KeyError"),
    ("    - --env RAY_AUTH_MODE=token\n", "", "token authentication is off"),
    ("  ~/.ray/auth_token: ~/.ray/auth_token", "  {}", "token is not mounted"),
    ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "not bound to 127.0.0.1"),
    ("use_internal_ips: true", "use_internal_ips: false", "public addresses"),
    ("RAY_health_check_timeout_ms=3000", "RAY_health_check_timeout_ms=30000", "noticed only after 93 s"),
    ("preemption_watch.py", "alerts.py", "notice of a pre-emption"),
    ("type: external", "type: aws", "falls back"),
    ("# Tear down", "# Tear", "does not say Tear down"),
    ("# Costs ", "# Cost ", "does not say Costs"),
]
KUBERAY = [
    ("mode: token", "mode: disabled", "token authentication"),
    ("secretName: pharmclf-token", "", "token authentication"),
    ('num-cpus: "0"', 'num-cpus: "3"', "head must train nothing"),
    ("rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion"),
    ("version: v2", "version: v1", "autoscaler v2 is off"),
    ("idleTimeoutSeconds: 600", "", "idleTimeoutSeconds"),
    ("priority: 10", "priority: 0", "no order among the groups"),
    (":0.1.0-ray2.60.0-gpu", ":latest", "not pinned"),
    ("runAsNonRoot: true", "runAsNonRoot: false", "runs as root"),
    ("capabilities: {drop: [ALL]}", "capabilities: {}", "may become more"),
    ('limits: {cpu: "3", memory: 12Gi}', "limits: {memory: 12Gi}", "no limits"),
    ("medium: Memory, sizeLimit: 8Gi", "sizeLimit: 8Gi", "/dev/shm"),
    ("readinessProbe: &ready", "startupProbe: &ready", "readinessProbe"),
    ('now, --seconds, "110"', 'now, --seconds, "300"', "shorter than the preStop hook"),
    ("preStop:\n", "postStart:\n", "without draining"),
    ("serviceAccountName: pharmclf-worker", "serviceAccountName: default", "no role"),
    ("serviceType: ClusterIP", "serviceType: LoadBalancer", "open to the outside"),
    (
        "- podSelector: {matchLabels: {app.kubernetes.io/part-of: pharmclf}}",
        "- ipBlock: {cidr: 0.0.0.0/0}",
        "port is open",
    ),
    ("kind: NetworkPolicy", "kind: Service", "every pod of the Kubernetes cluster"),
    ("{name: AWS_REGION, value: us-west-2}", "{name: AWS_SECRET_ACCESS_KEY, value: abcdefgh}", "stands in the file"),
    ("RAY_health_check_failure_threshold", "RAY_health_check_failures", "noticed late"),
    ("# Watch", "# Look", "does not say Watch"),
]
KUBERAY_SCHEMA = [
    ("maxReplicas: 4", 'maxReplicas: "4"', "KubeRay's schema: .*maxReplicas"),
    ("maxReplicas: 4", "maxReplica: 4", "KubeRay's schema: .*maxReplica"),
    ("upscalingMode: Default", "upscaling: Default", "KubeRay's schema: .*upscaling'"),
    ("terminationGracePeriodSeconds: 120", "terminationGracePeriod: 120", "KubeRay's schema: .*terminationGracePeriod"),
    ("mode: token", "mode: tokens", "KubeRay's schema: .*'tokens' is not one of"),
    ("upscalingMode: Default", "upscalingMode: Fast", "KubeRay's schema: .*'Fast' is not one of"),
    ("containerPort: 6379", "containerPort: gcs", "KubeRay's schema: .*'gcs' is not of type"),
    ("allowPrivilegeEscalation: false", "allowPrivilegeEscalations: false", "allowPrivilegeEscalations"),
]
MISTAKES = {
    "aws.yaml": [
        *LAUNCHER,
        ("HttpTokens: required", "HttpTokens: optional", "IMDSv2 is not required"),
        (
            "MetadataOptions: {HttpTokens: required, ",
            "MetadataOption: {HttpTokens: required, ",
            "EC2's RunInstances: .*MetadataO",
        ),
        ("HttpPutResponseHopLimit: 1", "HttpPutResponseHopLimit: 2", "take the machine's role"),
        ("HttpPutResponseHopLimit: 1", "HttpPutResponseHopLimit: one", "EC2's RunInstances: .*Invalid type"),
        ("InstanceType: g6.2xlarge", "InstanceType: [g6.2xlarge]", "EC2's RunInstances: .*Invalid type"),
        ("      SecurityGroupIds: [sg-FILL_IN]\n", "", "opens port 22 to the world"),
        (
            "  use_internal_ips: true",
            "  use_internal_ips: true\n  security_group: {IpPermissions: [{IpRanges: [{CidrIp: 0.0.0.0/0}]}]}",
            "a port is open to the world",
        ),
        ("IamInstanceProfile: {Name: pharmclf-worker}", "Monitoring: {Enabled: true}", "no role"),
        ("ImageId: ami-FILL_IN", "ImageId: latest_dlami", "machine image latest_dlami is not pinned"),
        ("VolumeType: gp3, Encrypted: true", "VolumeType: gp3", "encrypted disk"),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: true", "disks cost on"),
        ("AWS_REGION=us-west-2", "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI", "contains a secret"),
    ],
    "gcp.yaml": [
        *LAUNCHER,
        ("machineType: g2-standard-8", "machineTyp: g2-standard-8", "takes no .*machineTyp"),
        ("provisioningModel: SPOT", "provisioning: SPOT", "takes no .*provisioning"),
        ("provisioningModel: SPOT", "provisioningModel: STANDARD", "GPU machines on spot"),
        ("subnetworks/pharmclf\n", "subnetworks/pharmclf\n          accessConfigs: []\n", "public address"),
        ("images/FILL_IN_IMAGE", "images/family/common-cu128", "not pinned"),
        ("      serviceAccounts:", "      labels: {a: b}\n      disks:\n      serviceAccount:", "no role"),
        ("diskSizeGb: 200", "diskSizeGb: 20", "at least 100 GB"),
        ("  project_id:", "  gcp_credentials: {type: service_account}\n  project_id:", "contains credentials"),
    ],
    "kuberay/raycluster.yaml": KUBERAY,
    "kuberay/rayjob.yaml": [
        *KUBERAY,
        ("backoffLimit: 3", "backoffLimit: 0", "no retry policy"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "stays after the job"),
        ("activeDeadlineSeconds: 86400", "suspend: false", "bounds what it costs"),
        ("--name tablets", "", "begins anew"),
        ('RAY_JOB_STOP_WAIT_TIME_S: "120"', 'RAY_JOB_STOP_WAIT_TIME_S: "3"', "RAY_JOB_STOP_WAIT_TIME_S"),
    ],
    "kuberay/rayservice.yaml": [
        *(tuple(text.replace(": &ready", ":") for text in mistake) for mistake in KUBERAY),
        ("import_path: pharmclf.serving", "import_pth: pharmclf.serving", "serveConfigV2: .*import_path"),
        (":from_arguments", ":from_argument", "there is no"),
        ("replicas: 1-4", "replicas: 4-1", "serveConfigV2: --replicas"),
        ("replicas: 1-4", "replica: 1-4", "serveConfigV2: .*replica"),
        ("replicas: 1-4", "no_token: true", "answers everyone"),
        ("tablets=s3://FILL_IN_BUCKET/best", "runs/tablets", "not in the storage"),
        ("excludeHeadPodFromServeSvc: true", "excludeHeadPodFromServeSvc: false", "go to the head"),
        ("valueFrom: {secretKeyRef: {name: pharmclf-serve, key: token}}", "value: abcdefgh", "no token for requests"),
        ("path: /-/healthz, port: 8000", "path: /api/healthz, port: 52365", "readinessProbe"),
        ("serveConfigV2: |", "serveConfig: |", "KubeRay's schema: .*serveConfig"),
    ],
    "Dockerfile": [
        ("python:3.11.13-slim-bookworm", "python:latest", "not pinned"),
        ("python:3.11.13-slim-bookworm", "python", "not pinned"),
        ("ARG RAY_VERSION=2.60.0", "ARG RAY_VERSION=2.59.0", "is not pyproject.toml's"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000\n", "", "runs as root"),
        ("COPY tune ./tune", "COPY tunes ./tune", "there is no tunes"),
        ("WORKDIR /opt", "WORKIDR /opt", "WORKIDR: no instruction"),
        ('"google-auth-httplib2==0.4.4"', '"google-auth-httplib2"', "google-auth-httplib2 is not pinned"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "token authentication is off"),
        ("ENV HOME=/home/ray", "ENV HOUSE=/home/ray", "by the image's HOME"),
        ("# Fetch", "# Get", "does not say Fetch"),
    ],
    "local.sh": [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "not bound to 127.0.0.1"),
        ("export RAY_AUTH_MODE=token PATH", "export PATH", "token authentication is off"),
        ("(umask 077 && ray get-auth-token --generate)", "ray get-auth-token --generate", "can be read by others"),
        ("set -euo pipefail", "set -u", "goes on after an error"),
        ('  kill -TERM "$pid"\n', "  ray stop\n", "did not start"),
        ("RAY_health_check_period_ms=1000", "RAY_health_check_period_ms=60000", "noticed only after"),
        ("# Submit", "# Send", "does not say Submit"),
    ],
}


def found_in(name: str, old: str, new: str) -> list[str]:
    text = text_of(name)
    assert old in text, "the file has changed: plant the mistake anew"
    return checks.problems(name, text.replace(old, new))


@pytest.mark.parametrize(
    "mistake", [Mistake(name, *rest) for name, mistakes in MISTAKES.items() for rest in mistakes], ids=str
)
def test_a_planted_mistake_is_found_and_named(mistake):
    found = found_in(mistake.name, mistake.old, mistake.new)
    assert any(re.search(mistake.said, problem, re.DOTALL) for problem in found), found


@pytest.mark.parametrize(
    "mistake",
    [Mistake(f"kuberay/{name}.yaml", *rest) for name in KUBERAY_FILES for rest in KUBERAY_SCHEMA],
    ids=str,
)
def test_what_kuberay_does_not_know_is_found_and_named(mistake):
    found = found_in(mistake.name, mistake.old, mistake.new)
    assert any(re.search(mistake.said, problem, re.DOTALL) for problem in found), found


def test_local_sh_is_clean_for_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck on this machine")
    subprocess.run(["shellcheck", CLUSTER / "local.sh"], check=True)


def test_every_file_stands_in_the_table():
    readme = text_of("README.md")
    here = {path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file()}
    for name in here - {"README.md", "Dockerfile.dockerignore"}:
        if "__pycache__" not in name:
            assert f"| `{name}`" in readme, name


# --- spot first


@pytest.fixture
def spot_first() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("spot_first", CLUSTER / "spot_first.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ray_by_itself_asks_for_a_refused_machine_again():
    """Why spot_first is there: in Ray only a machine that never joined loses its priority, not a launch that failed."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    def less_wanted(status: int) -> dict[str, float]:
        monitor = CloudResourceMonitor()
        monitor.notify([InstanceUpdateEvent(instance_id="i", instance_type="spot", new_instance_status=status)])
        return monitor.get_recoverable_resource_availabilities()

    assert less_wanted(Instance.ALLOCATION_FAILED) == {}
    assert less_wanted(Instance.ALLOCATION_TIMEOUT) == {"spot": 0.0}


def aws_provider(
    spot_first: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Ray's provider with our fall-back, a stub of its EC2 client, and what that client is asked to run."""
    import yaml
    from botocore.stub import Stubber

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    provider = spot_first.Aws(yaml.safe_load(text_of("aws.yaml"))["provider"], "pharmclf")
    client = provider.ec2_fail_fast.meta.client
    asked: list[dict[str, Any]] = []
    client.meta.events.register(
        "provide-client-params.ec2.RunInstances", lambda params, **_: asked.append(dict(params))
    )
    return provider, Stubber(client), asked


def gpu_machine() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(text_of("aws.yaml"))["available_node_types"]["gpu"]["node_config"]


def test_where_ec2_has_no_spot_machine_one_on_demand_is_launched(spot_first, monkeypatch):
    provider, stub, asked = aws_provider(spot_first, monkeypatch)
    from ray.autoscaler._private.aws.node_provider import BOTO_CREATE_MAX_RETRIES

    tries = max(BOTO_CREATE_MAX_RETRIES, len(gpu_machine()["SubnetIds"]))
    for _ in range(tries):
        stub.add_client_error("run_instances", "InsufficientInstanceCapacity", "no capacity")
    stub.add_response("run_instances", {"Instances": [{"InstanceId": "i-1", "State": {"Name": "pending"}}]})
    with stub:
        made = provider.create_node(gpu_machine(), {"ray-node-type": "worker"}, 1)
        stub.assert_no_pending_responses()
    assert list(made) == ["i-1"]
    assert ["InstanceMarketOptions" in call for call in asked] == [True] * tries + [False]
    assert asked[-1]["MetadataOptions"]["HttpTokens"] == "required"


def test_a_mistake_in_what_is_asked_for_is_not_paid_for_on_demand(spot_first, monkeypatch):
    provider, stub, asked = aws_provider(spot_first, monkeypatch)
    for _ in range(20):
        stub.add_client_error("run_instances", "InvalidAMIID.NotFound", "no such image")
    with stub, pytest.raises(Exception, match="InvalidAMIID"):
        provider.create_node(gpu_machine(), {"ray-node-type": "worker"}, 1)
    assert all("InstanceMarketOptions" in call for call in asked)


def test_what_google_gave_before_it_refused_is_not_launched_again(spot_first):
    class Google:
        """Gives one spot machine, refuses the others as Compute Engine does, and has any number on demand."""

        def __init__(self) -> None:
            self.machines: list[str] = []

        def create_node(self, node_config: dict[str, Any], _tags: dict[str, str], count: int) -> dict[str, Any]:
            spot = node_config["scheduling"].get("provisioningModel") == "SPOT"
            self.machines += ["spot"] if spot else ["on demand"] * count
            if spot:
                raise Exception({"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "no capacity"}]})
            return dict.fromkeys(self.machines)

        def non_terminated_nodes(self, tags: dict[str, str]) -> list[str]:
            assert tags == {"ray-launch-request": "r"}
            return self.machines

    import yaml

    machine = yaml.safe_load(text_of("gcp.yaml"))["available_node_types"]["gpu"]["node_config"]
    cloud = spot_first.spot_first(Google)()
    cloud.create_node(machine, {"ray-launch-request": "r"}, 3)
    assert cloud.machines == ["spot", "on demand", "on demand"]
    plain = spot_first.on_demand(machine)
    assert plain["scheduling"] == {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    assert spot_first.on_demand(plain) is None


# --- the notice of a pre-emption


class Metadata:
    """The metadata servers of both clouds, as strict as they are; `notice` is what they answer."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.broken = False
        self.asked = 0
        metadata = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self, code: int, text: str = "") -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(*((200, "token") if wanted else (400,)))

            def do_GET(self) -> None:
                metadata.asked += 1
                if metadata.broken:
                    self._answer(500)
                elif self.path == "/latest/meta-data/spot/instance-action":
                    if self.headers["X-aws-ec2-metadata-token"] != "token":
                        self._answer(401)
                    else:
                        self._answer(*((404,) if metadata.notice is None else (200, metadata.notice)))
                elif self.path == "/computeMetadata/v1/instance/preempted":
                    if self.headers["Metadata-Flavor"] != "Google":
                        self._answer(403)
                    else:
                        self._answer(200, metadata.notice or "FALSE")
                else:
                    self._answer(404)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    yield server
    server.stop()


@pytest.fixture
def watch(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the watcher beside a `ray` that writes down what it is told, and fails while the file `fail` is there."""
    (tmp_path / "bin").mkdir()
    ray = tmp_path / "bin" / "ray"
    ray.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/fail ] && {{ rm {tmp_path}/fail; exit 1; }}\necho "$@" >>{tmp_path}/told\n'
    )
    ray.chmod(0o755)
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, CLUSTER / "preemption_watch.py", *words],
                env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def told(tmp_path: Path) -> list[str]:
    path = tmp_path / "told"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def aws_notice(seconds: float) -> str:
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


@pytest.mark.parametrize(
    ("cloud", "notice", "left"), [("aws", aws_notice, (60, 120)), ("gcp", lambda _: "TRUE", (10, 30))]
)
def test_a_notice_drains_the_node_with_the_time_that_is_left(cloud, notice, left, metadata, watch, tmp_path):
    process = watch(cloud, "--metadata", metadata.url, "--poll", "0.05", "--node-id", "abc", "--address", "h:1")
    until(lambda: metadata.asked >= 3)
    assert process.poll() is None
    assert told(tmp_path) == []
    metadata.notice = notice(120.0)
    assert process.wait(30) == 0
    (line,) = told(tmp_path)
    assert line.startswith("drain-node --node-id abc --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    assert line.endswith("--address h:1")
    assert left[0] <= int(re.search(r"--deadline-remaining-seconds (\d+)", line)[1]) <= left[1]


def test_a_metadata_server_that_fails_is_asked_on_and_a_ray_that_fails_is_told_again(metadata, watch, tmp_path):
    metadata.broken, metadata.notice = True, aws_notice(120.0)
    (tmp_path / "fail").touch()
    process = watch("aws", "--metadata", metadata.url, "--poll", "0.05", "--node-id", "abc")
    until(lambda: metadata.asked >= 3)
    assert process.poll() is None
    metadata.broken = False
    assert process.wait(30) == 0
    assert len(told(tmp_path)) == 1


def test_a_pod_that_goes_drains_its_node_and_waits_until_its_raylet_has_ended(watch, tmp_path):
    # a process with the name and the argument of a raylet; its id is its own, whatever else runs on this machine
    words = ["raylet", "-c", "import time; time.sleep(600)", "--node_id=0f0f0f"]
    raylet = subprocess.Popen(words, executable=sys.executable)
    try:
        process = watch("now", "--seconds", "100", "--node-id", "0f0f0f")
        until(lambda: len(told(tmp_path)) == 1)
        time.sleep(1.5)
        assert process.poll() is None
    finally:
        raylet.kill()
        raylet.wait()
    assert process.wait(30) == 0
