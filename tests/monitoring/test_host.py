"""The host of a node: real readings of this machine, and the limits of containers from made-up control groups."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.host import HostSampler


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n", encoding="utf-8")


def group(tmp_path: Path, membership: str) -> ControlGroup:
    (tmp_path / "self").write_text(membership, encoding="utf-8")
    return ControlGroup(tmp_path / "cgroup", tmp_path / "self")


def test_a_reading_of_this_machine_is_plausible(tmp_path: Path) -> None:
    """Shares of what there is, and no more memory, disk or CPUs than psutil tells of."""
    reader = HostSampler([str(tmp_path)])
    time.sleep(0.1)
    reading = reader.read()
    assert reading.num_cpus is not None
    assert 0 < reading.num_cpus <= (psutil.cpu_count() or 1)
    for percent in (reading.cpu_percent, reading.tree_cpu_percent, reading.iowait_percent):
        assert percent is not None
        assert 0.0 <= percent <= 100.0
    assert reading.memory_total_bytes is not None
    assert reading.memory_used_bytes is not None
    assert 0 < reading.memory_used_bytes < reading.memory_total_bytes <= psutil.virtual_memory().total
    assert reading.disk_folder == str(tmp_path)
    assert reading.disk_free_bytes is not None
    assert reading.disk_total_bytes is not None
    assert 0 < reading.disk_free_bytes < reading.disk_total_bytes
    assert reading.network_in_bytes_per_s is not None


def test_the_fullest_disk_is_the_one_that_is_shown() -> None:
    """Of several watched folders; one that is not there is left out."""
    reader = HostSampler(["/proc/none", "/dev/shm", "/"])
    usages = {folder: psutil.disk_usage(folder) for folder in ("/dev/shm", "/")}
    fullest = min(usages, key=lambda folder: usages[folder].free / max(1, usages[folder].free + usages[folder].used))
    assert reader.read().disk_folder == fullest


def test_the_work_of_processes_below_this_one_is_counted() -> None:
    """Also of those that begin later: a child's half second of processor time is all there."""
    reader = HostSampler()
    began = time.monotonic()
    code = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as worker:
        process = psutil.Process(worker.pid)
        while sum(process.cpu_times()[:2]) < 0.5:
            time.sleep(0.05)
        reader._tree._num_readings = 0  # the turn to look for new processes
        reading = reader.read()
        seconds = time.monotonic() - began
        worker.communicate(b"\n")
    assert reading.tree_cpu_percent is not None
    assert reading.num_cpus is not None
    used_s = reading.tree_cpu_percent / 100.0 * reading.num_cpus * seconds
    assert used_s >= 0.45


def test_the_limits_of_a_container_count_of_version_2(tmp_path: Path) -> None:
    """The tightest on the way up; files that were read and could be given back are not in use."""
    pod = tmp_path / "cgroup" / "kubepods" / "pod1"
    write(pod, memory__max=8 << 30, memory__current=5 << 30, cpu__max="800000 100000")
    write(pod / "box", memory__max="max", memory__current=4 << 30, cpu__max="max 100000")
    (pod / "memory.stat").write_text(f"anon 1\ninactive_file {1 << 30}\n", encoding="utf-8")
    (pod / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n", encoding="utf-8")
    found = group(tmp_path, "0::/kubepods/pod1/box\n")
    assert found.num_cpus == 8.0
    assert found.memory() == (4 << 30, 8 << 30)
    assert found.cpu_seconds() == 2.5


def test_the_limits_of_a_container_count_of_version_1(tmp_path: Path) -> None:
    box = tmp_path / "cgroup"
    write(box / "memory" / "docker" / "a", memory__limit_in_bytes=2 << 30, memory__usage_in_bytes=2 << 30)
    (box / "memory/docker/a/memory.stat").write_text(f"total_inactive_file {1 << 29}\n", encoding="utf-8")
    write(box / "memory", memory__limit_in_bytes=(1 << 63) - 4096, memory__usage_in_bytes=9 << 30)
    write(box / "cpu" / "docker" / "a", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000, cpuacct__usage=3 * 10**9)
    write(box / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    found = group(tmp_path, "4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n0::/\n")
    assert found.num_cpus == 1.5
    assert found.memory() == (3 << 29, 2 << 30)
    assert found.cpu_seconds() == 3.0


def test_without_limits_nothing_is_said_of_them(tmp_path: Path) -> None:
    """Neither where the groups set none, nor where there are no groups."""
    write(tmp_path / "cgroup" / "a", memory__max="max", memory__current=1, cpu__max="max 100000")
    for found in (group(tmp_path, "0::/a\n"), ControlGroup(tmp_path / "none", tmp_path / "none")):
        assert (found.num_cpus, found.memory(), found.cpu_seconds()) == (None, None, None)


@pytest.mark.parametrize(
    ("membership", "quotas", "num_cpus"),
    [
        ("0::/a/b", {"a/b": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/b": "400000 100000", "a": "100000 100000"}, 1.0),  # the tightest of those around it counts
        ("0::/../pod", {"": "200000 100000"}, 2.0),
        ("0::/", {"": "max 100000"}, None),
    ],
)
def test_the_tightest_quota_on_the_way_up_is_the_number_of_cpus(
    tmp_path: Path, membership: str, quotas: dict[str, str], num_cpus: float | None
) -> None:
    """Also for a group that is named from another root, as in a container."""
    for folder, quota in quotas.items():
        write(tmp_path / "cgroup" / folder, cpu__max=quota)
    assert group(tmp_path, membership).num_cpus == num_cpus


def test_memory_is_limited_where_the_control_groups_of_version_1_are_mounted(tmp_path: Path) -> None:
    """A container sees its own group as the root of the mount, whatever the group is called outside."""
    write(tmp_path / "cgroup" / "memory", memory__limit_in_bytes=4096, memory__usage_in_bytes=96)
    write(tmp_path / "cgroup" / "cpu", cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
    found = group(tmp_path, "2:memory:/docker/a\n1:cpu:/docker/a\n")
    assert (found.num_cpus, found.memory()) == (0.5, (96, 4096))


def test_in_a_container_processors_and_memory_are_those_of_its_limits(tmp_path: Path) -> None:
    """A quarter of a CPU that is used up is all of what there is, whatever the rest of the machine does."""
    box = tmp_path / "cgroup" / "box"
    write(box, memory__max=1000 << 20, memory__current=990 << 20, cpu__max="25000 100000")
    write(box, cpu__stat="usage_usec 0", memory__stat="inactive_file 0")
    reader = HostSampler(group=group(tmp_path, "0::/box\n"))
    idle = reader.read()
    write(box, cpu__stat="usage_usec 3600000000")
    reading = reader.read()
    assert (idle.cpu_percent, reading.cpu_percent) == (0.0, 100.0)
    assert reading.num_cpus == 0.25
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (990 << 20, 1000 << 20)
