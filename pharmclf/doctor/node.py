"""All checks of one node: collecting what is to be known of it, each with a time of its own, and judging it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import format_error
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.doctor.disks import Disk, disks_here, judge_disks, places_of
from pharmclf.doctor.findings import Finding, fail
from pharmclf.doctor.framework import TRIAL_S, TensorflowFacts, judge_tensorflow, try_tensorflow
from pharmclf.doctor.gpus import DriverFacts, driver_here, judge_gpus
from pharmclf.doctor.images import ImagesFacts, judge_images, try_images
from pharmclf.doctor.machine import (
    Machine,
    RayView,
    judge_cpus,
    judge_memory,
    judge_shared_memory,
    machine_here,
)
from pharmclf.doctor.proxies import ProxyFacts, judge_proxies, proxies_here
from pharmclf.doctor.store import BULK_BYTES, StorageFacts, judge_storage, try_storage

T = TypeVar("T")
_MACHINE_S, _DRIVER_S, _DISKS_S, _IMAGES_S, _PROXIES_S = 5.0, 15.0, 20.0, 30.0, 10.0
STORAGE_S = 20.0
"""Patience with a storage that does not answer, of the whole examination."""
_SLACK_S = 5.0
WHOLE_S = _MACHINE_S + _PROXIES_S + _DRIVER_S + _DISKS_S + _IMAGES_S + STORAGE_S + TRIAL_S + 2 * _SLACK_S
"""A node that has not answered by then does not answer."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a node."""

    config: RunConfig
    """The run; its locations absolute."""
    whole: bool
    """All checks; otherwise those that take no time: storage, disk, shared memory."""
    beacon: str = ""
    """A file that the driver has written to the storage; "": none."""
    images: tuple[str, ...] = ()
    """Locations of some images."""
    patience_s: float = STORAGE_S
    """With a storage that does not answer."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What is known of a node. What was not asked for, or did not answer, is None."""

    machine: Machine | None = None
    proxies: ProxyFacts | None = None
    disks: tuple[Disk, ...] | None = None
    storage: StorageFacts | None = None
    images: ImagesFacts | None = None
    driver: DriverFacts | None = None
    tensorflow: TensorflowFacts | None = None
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why a check has no facts, by the name of its field."""


def examine(request: Request, ray_folder: str = "") -> NodeFacts:
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

    collect("machine", _MACHINE_S, machine_here)
    collect("proxies", _PROXIES_S, proxies_here)
    with storage.timeout(request.patience_s):
        bulk = BULK_BYTES if whole else 0
        limit_s = request.patience_s + _SLACK_S
        collect("storage", limit_s, lambda: try_storage(config.storage, bulk_bytes=bulk, beacon=request.beacon))
        if whole and request.images:
            collect("images", _IMAGES_S, lambda: try_images(request.images))
    collect("disks", _DISKS_S, lambda: disks_here(places_of(config, ray_folder), speed=whole))
    if whole:
        driver = collect("driver", _DRIVER_S, driver_here)
        gpus = config.accelerator != "cpu" and bool(driver and driver.gpus)
        limit_s = TRIAL_S + _SLACK_S
        collect("tensorflow", limit_s, lambda: try_tensorflow(config.precision, xla=config.xla, gpus=gpus))
    return NodeFacts(silent=silent, **facts)


_SILENT = {
    "machine": ("machine", "see /proc and /sys on this node"),
    "proxies": ("proxy", "correct http_proxy and its like, or unset them"),
    "storage": ("storage", "see that this node reaches it; a mount whose server is gone must be mounted anew"),
    "images": ("data", "see that this node reaches the images; a mount whose server is gone must be mounted anew"),
    "disks": ("disk", "see the disk and its mounts; a broken one is left by TMPDIR"),
    "driver": ("GPU", "see `nvidia-smi` and `dmesg` on this node, and restart the machine"),
    "tensorflow": ("tensorflow", "see the package's dependencies on this node"),
}
"""Name of the check, and the remedy, where the facts of a field did not come."""


def judge_node(facts: NodeFacts, request: Request, ray: RayView | None) -> list[Finding]:
    """All findings of a node, in the order of the table; pure.

    Args:
        facts: of the node.
        request: what was asked.
        ray: what Ray takes it for; None: there is no Ray yet.
    """
    config, found, machine = request.config, list[Finding](), facts.machine
    driver = facts.driver or DriverFacts()
    if facts.driver is not None:
        found += judge_gpus(facts.driver, ray, config.accelerator, config.precision)
    if facts.tensorflow is not None:
        found += judge_tensorflow(facts.tensorflow, driver, config.accelerator)
    if machine is not None and request.whole:
        found += [judge_cpus(machine, ray), judge_memory(machine, ray)]
    if machine is not None:
        found.append(judge_shared_memory(machine, ray))
    found += judge_proxies(facts.proxies or ProxyFacts())
    found += judge_disks(facts.disks or ())
    if facts.storage is not None:
        found += judge_storage(facts.storage)
    if facts.images is not None:
        found.append(judge_images(facts.images, config.data))
    found += [fail(_SILENT[name][0], why, _SILENT[name][1]) for name, why in facts.silent.items()]
    return found
