"""All checks of one node: collecting what is to be known of it, each with a time of its own, and judging it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import format_error
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.diagnostics.disk_check import Disk, check_disks, inspect_disks, paths_written_by
from pharmclf.diagnostics.gpu_check import DriverInfo, check_gpus, inspect_driver
from pharmclf.diagnostics.image_check import ImagesInfo, check_images, probe_images
from pharmclf.diagnostics.machine_check import (
    Machine,
    RayNodeInfo,
    check_cpus,
    check_memory,
    check_shared_memory,
    inspect_machine,
)
from pharmclf.diagnostics.proxy_check import ProxyInfo, check_proxies, inspect_proxies
from pharmclf.diagnostics.results import Finding, fail
from pharmclf.diagnostics.storage_check import BULK_BYTES, StorageInfo, check_storage_access, probe_storage
from pharmclf.diagnostics.tensorflow_check import PROBE_TIMEOUT_S, TensorflowInfo, check_tensorflow, probe_tensorflow

T = TypeVar("T")
_MACHINE_TIMEOUT_S, _DRIVER_TIMEOUT_S, _DISKS_TIMEOUT_S, _IMAGES_TIMEOUT_S, _PROXIES_TIMEOUT_S = (
    5.0,
    15.0,
    20.0,
    30.0,
    10.0,
)
STORAGE_TIMEOUT_S = 20.0
"""Patience with a storage that does not answer, of the whole examination."""
_SLACK_S = 5.0
FULL_CHECK_TIMEOUT_S = (
    _MACHINE_TIMEOUT_S
    + _PROXIES_TIMEOUT_S
    + _DRIVER_TIMEOUT_S
    + _DISKS_TIMEOUT_S
    + _IMAGES_TIMEOUT_S
    + STORAGE_TIMEOUT_S
    + PROBE_TIMEOUT_S
    + 2 * _SLACK_S
)
"""A node that has not answered by then does not answer."""


@dataclass(frozen=True, kw_only=True)
class NodeRequest:
    """What is asked of a node."""

    config: RunConfig
    """The run; its locations absolute."""
    whole: bool
    """All checks; otherwise those that take no time: storage, disk, shared memory."""
    beacon: str = ""
    """A file that the driver has written to the storage; "": none."""
    images: tuple[str, ...] = ()
    """Locations of some images."""
    patience_s: float = STORAGE_TIMEOUT_S
    """With a storage that does not answer."""


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """What is known of a node. What was not asked for, or did not answer, is None."""

    machine: Machine | None = None
    proxies: ProxyInfo | None = None
    disks: tuple[Disk, ...] | None = None
    storage: StorageInfo | None = None
    images: ImagesInfo | None = None
    driver: DriverInfo | None = None
    tensorflow: TensorflowInfo | None = None
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why a check has no facts, by the name of its field."""


def inspect_node(request: NodeRequest, ray_folder: str = "") -> NodeInfo:
    """Collect what is to be known of this node; ends in the time that the checks have, whatever hangs.

    Args:
        request: what is asked.
        ray_folder: where this node's Ray keeps its files; "": there is none yet.
    """
    config, whole, facts, silent = request.config, request.whole, dict[str, Any](), dict[str, str]()

    def collect(name: str, limit_s: float, work: Callable[[], T]) -> T | None:
        try:
            facts[name] = value = run_with_timeout(limit_s, work)
        except CallTimeoutError as error:
            silent[name] = str(error)
        except Exception as error:  # what a check could not expect must not hide what the others find
            silent[name] = format_error(error)
        else:
            return value
        return None

    collect("machine", _MACHINE_TIMEOUT_S, inspect_machine)
    collect("proxies", _PROXIES_TIMEOUT_S, inspect_proxies)
    with storage.timeout(request.patience_s):
        bulk = BULK_BYTES if whole else 0
        limit_s = request.patience_s + _SLACK_S
        collect("storage", limit_s, lambda: probe_storage(config.storage, bulk_bytes=bulk, beacon=request.beacon))
        if whole and request.images:
            collect("images", _IMAGES_TIMEOUT_S, lambda: probe_images(request.images))
    collect("disks", _DISKS_TIMEOUT_S, lambda: inspect_disks(paths_written_by(config, ray_folder), speed=whole))
    if whole:
        driver = collect("driver", _DRIVER_TIMEOUT_S, inspect_driver)
        gpus = config.accelerator != "cpu" and bool(driver and driver.gpus)
        limit_s = PROBE_TIMEOUT_S + _SLACK_S
        collect("tensorflow", limit_s, lambda: probe_tensorflow(config.precision, xla=config.xla, gpus=gpus))
    return NodeInfo(silent=silent, **facts)


_NO_ANSWER_FINDINGS = {
    "machine": ("machine", "see /proc and /sys on this node"),
    "proxies": ("proxy", "correct http_proxy and its like, or unset them"),
    "storage": ("storage", "see that this node reaches it; a mount whose server is gone must be mounted anew"),
    "images": ("data", "see that this node reaches the images; a mount whose server is gone must be mounted anew"),
    "disks": ("disk", "see the disk and its mounts; a broken one is left by TMPDIR"),
    "driver": ("GPU", "see `nvidia-smi` and `dmesg` on this node, and restart the machine"),
    "tensorflow": ("tensorflow", "see the package's dependencies on this node"),
}
"""Name of the check, and the remedy, where the facts of a field did not come."""


def check_node(facts: NodeInfo, request: NodeRequest, ray: RayNodeInfo | None) -> list[Finding]:
    """All findings of a node, in the order of the table; pure.

    Args:
        facts: of the node.
        request: what was asked.
        ray: what Ray takes it for; None: there is no Ray yet.
    """
    config, found, machine = request.config, list[Finding](), facts.machine
    driver = facts.driver or DriverInfo()
    if facts.driver is not None:
        found += check_gpus(facts.driver, ray, config.accelerator, config.precision)
    if facts.tensorflow is not None:
        found += check_tensorflow(facts.tensorflow, driver, config.accelerator)
    if machine is not None and request.whole:
        found += [check_cpus(machine, ray), check_memory(machine, ray)]
    if machine is not None:
        found.append(check_shared_memory(machine, ray))
    found += check_proxies(facts.proxies or ProxyInfo())
    found += check_disks(facts.disks or ())
    if facts.storage is not None:
        found += check_storage_access(facts.storage)
    if facts.images is not None:
        found.append(check_images(facts.images, config.data))
    found += [
        fail(_NO_ANSWER_FINDINGS[name][0], why, _NO_ANSWER_FINDINGS[name][1]) for name, why in facts.silent.items()
    ]
    return found
