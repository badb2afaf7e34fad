"""Number of cores that a process may use; in a container or a Slurm job the host has more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pharmclf.monitoring.cgroup import ControlGroup

_RAY_MIN_CPUS = 2  # one for a worker, one to decode images: on a single core the two take turns


def schedulable_cores() -> int:
    """The cores that the system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(group: ControlGroup | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """The cores that this process and its children can keep busy: the tightest of all limits, 1 or more.

    Args:
        group: the limits of this container; None: they are read.
        environment: has the size of the job where Slurm started this process.
    """
    quota = (group or ControlGroup()).num_cpus
    limits = [float(schedulable_cores()), *([] if quota is None else [quota]), *_slurm_cores(environment)]
    return max(1, int(min(limits)))


def ray_cpus() -> int:
    """CPUs of a Ray that is started on this machine."""
    return max(_RAY_MIN_CPUS, usable_cores())


def _slurm_cores(environment: Mapping[str, str]) -> Iterator[float]:
    """Cores that Slurm gave to this process: to its task inside a step of srun, else to the job on this node."""
    if "SLURM_JOB_ID" not in environment:
        return
    names = ("SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK")
    for name in reversed(names) if "SLURM_STEP_ID" in environment else names:
        text = environment.get(name, "")
        if text.isdigit() and int(text):
            yield float(text)
            return
