"""All checks of one node: facts are collected, each within a time limit, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.errors import format_error
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.core.usual_times import IMPORT_TENSORFLOW_S
from pharmclf.diagnostics.gpu_check import DriverInfo, check_gpus, inspect_driver
from pharmclf.diagnostics.image_check import ImagesInfo, check_images, probe_images
from pharmclf.diagnostics.machine_check import (
    Disk,
    Machine,
    RayNodeInfo,
    check_cpus,
    check_disk,
    check_memory,
    check_shared_memory,
    inspect_disks,
    inspect_machine,
    paths_written_by,
)
from pharmclf.diagnostics.network_check import ProxyInfo, check_proxies, inspect_proxies
from pharmclf.diagnostics.results import Finding, fail
from pharmclf.diagnostics.software_check import PROBE_TIMEOUT_S, check_tensorflow, probe_tensorflow
from pharmclf.diagnostics.storage_check import BULK_BYTES, StorageInfo, check_storage_access, probe_storage
from pharmclf.diagnostics.tensorflow_probe import TensorflowInfo

STORAGE_TIMEOUT_S = 20.0
"""For a storage that does not answer."""
_SLACK_S = 5.0
_REMOUNT = "; mount again where the server of a mount is gone"


class _Limit(NamedTuple):
    timeout_s: float
    check: str
    remedy: str


_LIMITS = {
    "machine": _Limit(5.0, "machine", "see /proc and /sys on this node"),
    "proxies": _Limit(10.0, "proxy", "correct http_proxy and the other proxy variables, or unset them"),
    "storage": _Limit(STORAGE_TIMEOUT_S + _SLACK_S, "storage", f"make it reachable from this node{_REMOUNT}"),
    "images": _Limit(30.0, "data", f"make the images readable from this node{_REMOUNT}"),
    "disks": _Limit(20.0, "disk", "see the disk and its mounts; TMPDIR names another one"),
    "driver": _Limit(15.0, "GPU", "see `nvidia-smi` and `dmesg` on this node, and restart the machine"),
    "tensorflow": _Limit(PROBE_TIMEOUT_S + _SLACK_S, "tensorflow", "see the dependencies of the package on this node"),
}
"""By field of NodeInfo: the time limit, and the check and remedy where its facts are missing."""
FULL_CHECK_TIMEOUT_S = sum(limit.timeout_s for limit in _LIMITS.values())
"""For all checks of a node."""


@dataclass(frozen=True, kw_only=True)
class NodeRequest:
    """What a node checks."""

    config: RunConfig
    """The run, with absolute locations."""
    full: bool
    """All checks; False: those that take no time: storage, disks, shared memory, proxies."""
    heartbeat_file: str = ""
    """A file that the driver has written to the storage; "": none."""
    images: tuple[str, ...] = ()
    storage_timeout_s: float = STORAGE_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """The facts of a node; None: not requested, or missing."""

    machine: Machine | None = None
    proxies: ProxyInfo | None = None
    disks: tuple[Disk, ...] | None = None
    storage: StorageInfo | None = None
    images: ImagesInfo | None = None
    driver: DriverInfo | None = None
    tensorflow: TensorflowInfo | None = None
    silent: Mapping[str, str] = field(default_factory=dict)
    """By name of a field, why its facts are missing."""


def inspect_node(request: NodeRequest, ray_folder: str = "") -> NodeInfo:
    """Collect the facts of this node; returns within the time limits, whatever hangs.

    Args:
        ray_folder: folder of this node's Ray; "": there is no Ray yet.
    """
    config, facts, silent = request.config, dict[str, Any](), dict[str, str]()

    def collect(name: str, work: Callable[[], object], timeout_s: float | None = None) -> None:
        usual_s = IMPORT_TENSORFLOW_S if name == "tensorflow" else 0.0
        try:
            with show_activity(f"examining {_LIMITS[name].check}", usual_s):
                facts[name] = run_with_timeout(timeout_s or _LIMITS[name].timeout_s, work)
        except CallTimeoutError as error:
            silent[name] = str(error)
        except Exception as error:  # an unexpected error of one check must not hide the results of the others
            silent[name] = format_error(error)

    collect("machine", inspect_machine)
    collect("proxies", inspect_proxies)
    with storage.timeout(request.storage_timeout_s):
        bulk_bytes = BULK_BYTES if request.full else 0
        probe = partial(probe_storage, config.storage, bulk_bytes=bulk_bytes, heartbeat_file=request.heartbeat_file)
        collect("storage", probe, request.storage_timeout_s + _SLACK_S)
        if request.full and request.images:
            collect("images", lambda: probe_images(request.images))
    collect("disks", lambda: inspect_disks(paths_written_by(config, ray_folder), speed=request.full))
    if request.full:
        collect("driver", inspect_driver)
        driver: DriverInfo = facts.get("driver", DriverInfo())
        gpus = config.accelerator != "cpu" and bool(driver.gpus)
        collect("tensorflow", lambda: probe_tensorflow(config, gpus=gpus))
    return NodeInfo(silent=silent, **facts)


def check_node(info: NodeInfo, request: NodeRequest, ray: RayNodeInfo | None) -> list[Finding]:
    """All findings of a node, in the order of the table; `ray` is None before Ray starts. Pure."""
    config, findings = request.config, list[Finding]()
    if info.driver is not None:
        findings += check_gpus(info.driver, ray, config)
    if info.tensorflow is not None:
        findings += check_tensorflow(info.tensorflow, info.driver or DriverInfo(), config)
    if info.machine is not None:
        findings += [check_cpus(info.machine, ray), check_memory(info.machine, ray)] if request.full else []
        findings.append(check_shared_memory(info.machine, ray))
    findings += check_proxies(info.proxies or ProxyInfo())
    findings += map(check_disk, info.disks or ())
    if info.storage is not None:
        findings += check_storage_access(info.storage)
    if info.images is not None:
        findings.append(check_images(info.images, config.data))
    return findings + [fail(_LIMITS[name].check, why, _LIMITS[name].remedy) for name, why in info.silent.items()]
