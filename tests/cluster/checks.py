"""What must hold of the files in cluster/: the real schemas, and rules of our own. Each check names what is wrong."""

from __future__ import annotations

import copy
import functools
import gzip
import importlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import yaml

from pharmclf.serving.options import TOKEN_VARIABLE, ServeOptions

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = Path(__file__).with_name("kuberay")
"""The schemas of KubeRay 1.7 (github.com/ray-project/kuberay, Apache-2.0), without their descriptions."""
HEADER = ("Costs", "Start", "Submit", "Watch", "Fetch", "Tear down")
_HEALTH = {f"RAY_health_check_{name}" for name in ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")}
_NOTICED_S = 15.0  # in which a lost node must be noticed: threshold x (period + time-out)
_SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a secret": r"(?i)\b(aws_secret_access_key|aws_session_token|ray_auth_token|password)\b\W{1,4}[\w/+]{8,}",
    "credentials": r"\bgcp_credentials\b",
    "a token": r"\b[0-9a-f]{40,}\b",
}
_AGENT_HEALTH = {"path": "/api/healthz", "port": 52365}
_SERVE_READY = {"path": "/-/healthz", "port": 8000}
_PINNED = re.compile(r"[^:@]+(:\d+/[^:@]+)?:[\w.-]+(@sha256:[0-9a-f]{64})?")
# keys of Compute Engine's instances.insert, and of its scheduling, that these files may use
_GCP_KEYS = {"machineType", "tags", "networkInterfaces", "disks", "scheduling", "serviceAccounts", "metadata", "labels"}
_GCP_SCHEDULING = {"provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"}
_INSTRUCTIONS = (
    r"ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)


def problems(name: str, text: str) -> list[str]:
    """What is wrong with a file of cluster/, given its path there and its text; empty: nothing was found."""
    found = [*_header(text), *_no_secrets(text)]
    if name in ("aws.yaml", "gcp.yaml"):
        found += _launcher(yaml.safe_load(text))
    elif name.startswith("kuberay/"):
        found += _kuberay(list(yaml.safe_load_all(text)))
    elif name == "Dockerfile":
        found += _dockerfile(text)
    elif name == "local.sh":
        found += _local(text)
    return found


def ray_version() -> str:
    """The Ray that the image pins, such as 2.60.0."""
    text = (REPOSITORY / "cluster" / "Dockerfile").read_text()
    return re.search(r"^ARG RAY_VERSION=(\S+)$", text, re.MULTILINE)[1]


def least_ray() -> str:
    """The oldest Ray that the package takes, such as 2.60."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return next(re.search(r">=([\d.]+)", line)[1] for line in project["dependencies"] if line.startswith("ray["))


def _header(text: str) -> Iterator[str]:
    lines = text.split("\n")
    start = 1 if lines[0].startswith("#!") else 0
    end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("#"))
    opening = lines[start:end]
    for word in HEADER:
        if not any(re.match(rf"# {word}\s+\S", line) for line in opening):
            yield f"header: does not say {word}"
    if "$" not in " ".join(opening) and "nothing beyond" not in " ".join(opening):
        yield "header: Costs has no price"


def _no_secrets(text: str) -> Iterator[str]:
    for what, pattern in _SECRETS.items():
        if re.search(pattern, text):
            yield f"contains {what}"


def _image(where: str, image: object) -> Iterator[str]:
    if not isinstance(image, str) or not _PINNED.fullmatch(image) or image.endswith(":latest"):
        yield f"{where}: the image {image} is not pinned"
    elif "pharmclf" in image and f"-ray{ray_version()}-" not in image:
        yield f"{where}: the image {image} is not the one with Ray {ray_version()}"


# --- Ray's cluster launcher


def _launcher(config: dict[str, Any]) -> Iterator[str]:
    yield from _as_ray_reads(config)
    provider, head_type = config.get("provider", {}), config.get("head_node_type")
    if provider.get("type") != "external" or not str(provider.get("module")).startswith("spot_first."):
        yield "provider: is not spot_first, so nothing falls back to on-demand machines"
    if not provider.get("use_internal_ips"):
        yield "provider: machines get public addresses"
    if provider.get("cache_stopped_nodes", True):
        yield "provider: stopped machines are kept, and their disks cost on"
    if "security_group" in provider:
        yield "provider: a security group that Ray makes opens port 22 to the world"
    if not _between(config.get("idle_timeout_minutes"), 1, 30):
        yield "idle_timeout_minutes: idle machines stay too long, or for ever"
    docker = config.get("docker", {})
    for key in ("image", "head_image"):
        yield from _image(f"docker: {key}", docker.get(key))
    options = docker.get("run_options", [])
    if "--env RAY_AUTH_MODE=token" not in options or "~/.ray/auth_token" not in config.get("file_mounts", {}):
        yield "docker: token authentication is off, or the token is not mounted"
    yield from _noticed(dict(re.findall(r"--env (\w+)=(\S+)", "\n".join(map(str, options)))))
    yield from _no_world(config)
    yield from _start_commands(config)
    for name, kind in config.get("available_node_types", {}).items():
        head = name == head_type
        resources, machine = kind.get("resources", {}), kind.get("node_config", {})
        if head and (resources.get("CPU") != 0 or resources.get("GPU") != 0):
            yield f"{name}: the head must train nothing: CPU 0 and GPU 0"
        if not head and not (kind.get("min_workers") == 0 < kind.get("max_workers", 0) and resources.get("GPU", 0) > 0):
            yield f"{name}: expected 0 to N machines with a GPU"
        yield from _aws(name, machine, head) if "InstanceType" in machine else _gcp(name, machine, head)


def _as_ray_reads(config: dict[str, Any]) -> Iterator[str]:
    """Ray's schema, its validator, and its autoscaler, after it has filled in what is not given."""
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
        read = AutoscalingConfig(prepared, skip_content_hash=True)  # of files that only their user has
        for name in read.get_node_type_configs():
            read.get_docker_config(name)
    except jsonschema.ValidationError as error:
        yield f"Ray's schema: {'/'.join(map(str, error.absolute_path))}: {error.message}"
    except (ValueError, RuntimeError, AssertionError, KeyError, click.ClickException) as error:
        yield f"Ray's validator: {error!r}"


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high


def _start_commands(config: dict[str, Any]) -> Iterator[str]:
    head, worker = (" ".join(config.get(f"{who}_start_ray_commands", [])) for who in ("head", "worker"))
    if "--num-cpus=0" not in head or "--num-gpus=0" not in head:
        yield "head_start_ray_commands: the head must train nothing: --num-cpus=0 --num-gpus=0"
    if "--dashboard-host=127.0.0.1" not in head:
        yield "head_start_ray_commands: the job server is not bound to 127.0.0.1"
    if "--autoscaling-config=" not in head:
        yield "head_start_ray_commands: no autoscaler"
    if "preemption_watch.py" not in worker:
        yield "worker_start_ray_commands: nobody waits for the notice of a pre-emption"


def _no_world(value: object, where: str = "") -> Iterator[str]:
    """No address range of everybody anywhere in the file."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _no_world(item, f"{where}/{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _no_world(item, where)
    elif isinstance(value, str) and re.search(r"\b0\.0\.0\.0/0|::/0", value):
        yield f"{where}: a port is open to the world"


def _noticed(settings: Mapping[str, str]) -> Iterator[str]:
    if missing := _HEALTH - settings.keys():
        yield f"RAY_health_check_*: a lost node is noticed late: {sorted(missing)} are not set"
        return
    period, timeout = (float(settings[f"RAY_health_check_{name}_ms"]) / 1000 for name in ("period", "timeout"))
    after = float(settings["RAY_health_check_failure_threshold"]) * (period + timeout)
    if after > _NOTICED_S:
        yield f"RAY_health_check_*: a lost node is noticed only after {after:.0f} s"


@functools.cache
def _run_instances() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _aws(name: str, machine: dict[str, Any], head: bool) -> Iterator[str]:
    """Against what EC2's RunInstances takes, as Ray calls it, and our rules."""
    import botocore.validate

    call = {key: value for key, value in machine.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(call, _run_instances())
    if report.has_errors():
        yield f"{name}: EC2's RunInstances: {report.generate_report()}"
    if machine.get("MetadataOptions", {}).get("HttpTokens") != "required":
        yield f"{name}: IMDSv2 is not required (MetadataOptions: HttpTokens)"
    elif machine["MetadataOptions"].get("HttpPutResponseHopLimit") != 1:
        yield f"{name}: containers can take the machine's role (MetadataOptions: HttpPutResponseHopLimit)"
    if not machine.get("IamInstanceProfile"):
        yield f"{name}: no role, so storage would need keys (IamInstanceProfile)"
    if not machine.get("SecurityGroupIds"):
        yield f"{name}: without SecurityGroupIds Ray makes a group that opens port 22 to the world"
    if "NetworkInterfaces" in machine:
        yield f"{name}: NetworkInterfaces may give a public address"
    if not re.fullmatch(r"ami-\w+", str(machine.get("ImageId"))):
        yield f"{name}: the machine image {machine.get('ImageId')} is not pinned"
    if head == ("InstanceMarketOptions" in machine):
        yield f"{name}: expected the head on demand and GPU machines on spot"
    disks = [disk.get("Ebs", {}) for disk in machine.get("BlockDeviceMappings", [])]
    if not disks or any(disk.get("VolumeSize", 0) < 100 or not disk.get("Encrypted") for disk in disks):
        yield f"{name}: expected an encrypted disk of at least 100 GB"


def _gcp(name: str, machine: dict[str, Any], head: bool) -> Iterator[str]:
    scheduling = machine.get("scheduling", {})
    if unknown := (machine.keys() - _GCP_KEYS) | (scheduling.keys() - _GCP_SCHEDULING):
        yield f"{name}: Compute Engine takes no {sorted(unknown)} here"
    if "machineType" not in machine:
        yield f"{name}: no machineType"
    interfaces = machine.get("networkInterfaces", [])
    if not interfaces or any("accessConfigs" in interface for interface in interfaces):
        yield f"{name}: the machine gets a public address"
    disks = [disk.get("initializeParams", {}) for disk in machine.get("disks", [])]
    for disk in disks or [{}]:
        if not re.fullmatch(r"projects/[^/]+/global/images/[^/]+", disk.get("sourceImage", "")):
            yield f"{name}: the machine image {disk.get('sourceImage')} is not pinned"
        if disk.get("diskSizeGb", 0) < 100:
            yield f"{name}: expected a disk of at least 100 GB"
    if head == (scheduling.get("provisioningModel") == "SPOT"):
        yield f"{name}: expected the head on demand and GPU machines on spot"
    if not head and not machine.get("serviceAccounts"):
        yield f"{name}: no role, so storage would need keys (serviceAccounts)"


# --- KubeRay


def _kuberay(documents: list[dict[str, Any]]) -> Iterator[str]:
    kinds = {"RayCluster", "RayJob", "RayService", "ServiceAccount", "NetworkPolicy"}
    for document in documents:
        kind = str(document.get("kind"))
        if kind not in kinds:
            yield f"{kind}: not expected here; services to the outside and secrets stay out of the file"
        elif kind.startswith("Ray"):
            yield from (f"{kind}: {problem}" for problem in _against_schema(document))
    yield from _network(documents)
    accounts = {item["metadata"]["name"] for item in documents if item.get("kind") == "ServiceAccount"}
    for document in documents:
        spec = document.get("spec", {})
        if document.get("kind") == "RayJob":
            yield from _job(spec)
            yield from _pod("submitter", spec.get("submitterPodTemplate", {}), account=None)
            spec = spec.get("rayClusterSpec", {})
        elif document.get("kind") == "RayService":
            yield from _service(spec)
            spec = spec.get("rayClusterConfig", {})
        elif document.get("kind") != "RayCluster":
            continue
        ready = _SERVE_READY if document["kind"] == "RayService" else _AGENT_HEALTH
        yield from _cluster(spec, document["metadata"]["name"], accounts, ready)


@functools.cache
def _kuberay_schema(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's definition, without room for fields that it does not know."""
    with gzip.open(SCHEMAS / f"{kind.lower()}.json.gz") as file:
        return jsonschema.Draft202012Validator(_strict(json.load(file)))


def _strict(schema: Any) -> Any:
    """Kubernetes drops unknown fields in silence; here they are mistakes."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    properties = schema.get("properties")
    # a field that is itself called `properties` holds schemas, and is no schema
    closed = isinstance(properties, dict) and schema.get("type") == "object" and "additionalProperties" not in schema
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def _against_schema(document: dict[str, Any]) -> Iterator[str]:
    for error in _kuberay_schema(document["kind"]).iter_errors(document):
        yield f"KubeRay's schema: {'/'.join(map(str, error.absolute_path))}: {error.message}"


def _network(documents: list[dict[str, Any]]) -> Iterator[str]:
    policies = [document["spec"] for document in documents if document.get("kind") == "NetworkPolicy"]
    if not policies:
        yield "NetworkPolicy: none, so every pod of the Kubernetes cluster reaches Ray"
    for policy in policies:
        if "Ingress" not in policy.get("policyTypes", []) or not policy.get("podSelector", {}).get("matchLabels"):
            yield "NetworkPolicy: does not close the pods of this cluster"
        for rule in policy.get("ingress", []):
            if not rule.get("from") or any("ipBlock" in peer or "podSelector" not in peer for peer in rule["from"]):
                yield "NetworkPolicy: a port is open to more than named pods"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    if not spec.get("backoffLimit", 0) >= 1:
        yield "RayJob: no retry policy (backoffLimit)"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "RayJob: the cluster stays after the job (shutdownAfterJobFinishes)"
    if not spec.get("activeDeadlineSeconds"):
        yield "RayJob: nothing bounds what it costs (activeDeadlineSeconds)"
    entrypoint = spec.get("entrypoint", "")
    if not re.search(r"--storage (s3|gs)://\S+", entrypoint) or "--name " not in entrypoint:
        yield "RayJob: without --name and shared --storage a second attempt begins anew"
    variables = (yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}).get("env_vars", {})
    given = yaml.safe_load((REPOSITORY / "jobs" / "runtime-env.yaml").read_text())["env_vars"]
    if variables.get("RAY_JOB_STOP_WAIT_TIME_S") != given["RAY_JOB_STOP_WAIT_TIME_S"]:
        yield "RayJob: RAY_JOB_STOP_WAIT_TIME_S is not that of jobs/runtime-env.yaml"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    """The application: Ray's schema, our options, and the token by a secret on every pod."""
    from ray.serve.schema import ServeDeploySchema  # takes seconds to import

    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(spec.get("serveConfigV2", "")))
        (application,) = config.applications
        options = ServeOptions(**{**application.args, "model": tuple(application.args["model"])})
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        yield f"serveConfigV2: {error}"
        return
    module, _, function = application.import_path.partition(":")
    if not hasattr(importlib.import_module(module), function):
        yield f"serveConfigV2: there is no {application.import_path}"
    if options.no_token:
        yield "serveConfigV2: answers everyone who reaches the port"
    if not all(location.startswith(("s3://", "gs://")) for location in options.models.values()):
        yield "serveConfigV2: a model is not in the storage, which every pod sees"
    if not spec.get("excludeHeadPodFromServeSvc"):
        yield "RayService: requests go to the head (excludeHeadPodFromServeSvc)"
    cluster = spec.get("rayClusterConfig", {})
    for group in (cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])):
        container = group.get("template", {}).get("spec", {}).get("containers", [{}])[0]
        given = {each["name"]: each.get("valueFrom", {}) for each in container.get("env", [])}
        if "secretKeyRef" not in given.get(TOKEN_VARIABLE, {}):
            yield f"RayService: no token for requests ({TOKEN_VARIABLE} by a secret)"


def _cluster(spec: dict[str, Any], name: str, accounts: set[str], worker_ready: dict[str, Any]) -> Iterator[str]:
    auth, scaler = spec.get("authOptions", {}), spec.get("autoscalerOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield "authOptions: token authentication by a secret is off"
    if spec.get("rayVersion") != ray_version():
        yield f"rayVersion: {spec.get('rayVersion')} is not the image's {ray_version()}"
    if not spec.get("enableInTreeAutoscaling") or scaler.get("version") != "v2":
        yield "autoscalerOptions: the autoscaler v2 is off"
    if not _between(scaler.get("idleTimeoutSeconds"), 60, 1800):
        yield "autoscalerOptions: idle pods stay too long, or a minute only (idleTimeoutSeconds)"
    yield from _container("autoscaler", scaler)
    head = spec.get("headGroupSpec", {})
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress") or "headService" in head:
        yield "headGroupSpec: a port is open to the outside of the Kubernetes cluster"
    yield from _resources(spec, name)
    yield from _ray_pod("head", head.get("template", {}), accounts)
    for group in spec.get("workerGroupSpecs", []):
        yield from _ray_pod(group["groupName"], group["template"], accounts, worker_ready)
        yield from _leaves(group["groupName"], group["template"]["spec"])


def _resources(spec: dict[str, Any], name: str) -> Iterator[str]:
    """What Ray's autoscaler makes of the groups."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    try:
        config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": name, "namespace": "n"}, "spec": spec})
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        yield f"Ray's autoscaler cannot read the groups: {error!r}"
        return
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])["resources"]
    if head["CPU"] != 0 or head.get("GPU"):
        yield "headGroupSpec: the head must train nothing: num-cpus 0 and num-gpus 0"
    if not types or any(
        kind["min_workers"] != 0 or kind["max_workers"] < 1 or not kind["resources"].get("GPU")
        for kind in types.values()
    ):
        yield "workerGroupSpecs: expected 0 to N pods with a GPU"
    if len({kind.get("priority") for kind in types.values()}) != len(types):
        yield "workerGroupSpecs: no order among the groups (priority)"


def _pod(where: str, template: dict[str, Any], account: set[str] | None) -> Iterator[str]:
    spec = template.get("spec", {})
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
        yield f"{where}: runs as root (securityContext)"
    if spec.get("hostNetwork") or spec.get("hostPID"):
        yield f"{where}: shares the machine's network or processes"
    if "app.kubernetes.io/part-of" not in template.get("metadata", {}).get("labels", {}):
        yield f"{where}: the NetworkPolicy does not know it (label app.kubernetes.io/part-of)"
    if account is not None and spec.get("serviceAccountName") not in account:
        yield f"{where}: no role, so storage would need keys (serviceAccountName)"
    for container in spec.get("containers", [{}]):
        yield from _image(where, container.get("image"))
        yield from _container(where, container)
        for variable in container.get("env", []):
            if re.search(r"(?i)secret|token|password|access_key", variable["name"]) and "value" in variable:
                yield f"{where}: {variable['name']} stands in the file"


def _container(where: str, container: dict[str, Any]) -> Iterator[str]:
    security, limits = container.get("securityContext", {}), container.get("resources", {}).get("limits", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{where}: may become more than it is (securityContext of the container)"
    if security.get("privileged"):
        yield f"{where}: is privileged"
    if not {"cpu", "memory"} <= limits.keys():
        yield f"{where}: no limits of cpu and memory"


def _ray_pod(
    where: str, template: dict[str, Any], accounts: set[str], ready: dict[str, Any] = _AGENT_HEALTH
) -> Iterator[str]:
    yield from _pod(where, template, accounts)
    spec = template.get("spec", {})
    container = spec.get("containers", [{}])[0]
    memory = [item["name"] for item in spec.get("volumes", []) if item.get("emptyDir", {}).get("medium") == "Memory"]
    mounts = {item["name"] for item in container.get("volumeMounts", []) if item["mountPath"] == "/dev/shm"}
    if not mounts & set(memory):
        yield f"{where}: /dev/shm is not in memory, so Ray's object store would lie on disk"
    for probe, expected in (("readinessProbe", ready), ("livenessProbe", _AGENT_HEALTH)):
        if container.get(probe, {}).get("httpGet") != expected:
            yield f"{where}: {probe} does not ask {expected['path']} at {expected['port']}"
    yield from (f"{where}: {said}" for said in _noticed({e["name"]: e.get("value") for e in container.get("env", [])}))


def _leaves(where: str, spec: dict[str, Any]) -> Iterator[str]:
    """A worker's pod drains its node before it goes, within the time that it is given."""
    hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if "/opt/pharmclf/cluster/preemption_watch.py" not in hook or "--seconds" not in hook:
        yield f"{where}: the pod goes without draining its node (preStop)"
    elif float(hook[hook.index("--seconds") + 1]) + 5 > spec.get("terminationGracePeriodSeconds", 30):
        yield f"{where}: terminationGracePeriodSeconds is shorter than the preStop hook"


# --- the image and the script


def _dockerfile(text: str) -> Iterator[str]:
    plain = re.sub(r"(?m)^\s*#.*\n", "", text)
    steps = [line.split(None, 1) for line in re.sub(r"\\\n\s*", " ", plain).splitlines() if line.strip()]
    for step in steps:
        if not re.fullmatch(_INSTRUCTIONS, step[0]) or len(step) == 1:
            yield f"{step[0]}: no instruction of a Dockerfile"
    arguments = dict(step[1].partition("=")[::2] for step in steps if step[0] == "ARG" and len(step) == 2)
    yield from _image("FROM", arguments.get("PYTHON_IMAGE"))
    if [step for step in steps if step[0] == "FROM"] != [["FROM", "${PYTHON_IMAGE}"]]:
        yield "FROM: expected the image of ARG PYTHON_IMAGE, and no other"
    if not ray_version_fits(arguments.get("RAY_VERSION", "")):
        yield f"RAY_VERSION: {arguments.get('RAY_VERSION')} is not pyproject.toml's {least_ray()}"
    users = [step[1] for step in steps if step[0] == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield "USER: the image runs as root"
    runs = " ".join(step[1] for step in steps if step[0] == "RUN")
    if "ray[data,default,train,tune]==${RAY_VERSION}" not in runs or '".${EXTRA}"' not in runs:
        yield "RUN: does not install the package with its extra and the pinned Ray"
    for package in re.findall(r'"([\w-]+(?:\[[\w,]+\])?)([^"]*)"', runs):
        if not package[1].startswith("==") and not package[0].startswith("."):
            yield f"RUN: {package[0]} is not pinned"
    for step in steps:
        for source in step[1].split()[:-1] if step[0] == "COPY" else ():
            if not (REPOSITORY / source).exists():
                yield f"COPY: there is no {source}"
    environment = " ".join(step[1] for step in steps if step[0] == "ENV")
    if "HOME=/home/ray" not in environment:
        yield "ENV: Ray's launcher mounts the token by the image's HOME"
    if "RAY_AUTH_MODE=token" not in environment:
        yield "ENV: token authentication is off"


def ray_version_fits(version: str) -> bool:
    """Whether it is a release of the oldest Ray that the package takes, with which it is tested."""
    return re.fullmatch(rf"{re.escape(least_ray())}\.\d+", version) is not None


def _local(text: str) -> Iterator[str]:
    if not text.startswith("#!/usr/bin/env bash\n") or "\nset -euo pipefail\n" not in text:
        yield "local.sh: goes on after an error"
    if not re.search(r"^export RAY_AUTH_MODE=token\b", text, re.MULTILINE):
        yield "local.sh: token authentication is off"
    if "--dashboard-host=127.0.0.1" not in text:
        yield "local.sh: the job server is not bound to 127.0.0.1"
    if "umask 077 && ray get-auth-token --generate" not in text:
        yield "local.sh: the token can be read by others"
    if re.search(r"^[^#\n]*\b(pkill|killall|ray stop)\b", text, re.MULTILINE):
        yield "local.sh: ends processes that it did not start"
    yield from _noticed(dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", text)))
