"""What is found good, what draws a warning and what fails, for every check: tables of facts and judgements."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pharmclf.config import RunConfig
from pharmclf.diagnostics.allreduce_check import AllreduceInfo, check_allreduce
from pharmclf.diagnostics.gpu_check import DriverInfo, Gpu, check_gpus
from pharmclf.diagnostics.image_check import ImagesInfo, check_images
from pharmclf.diagnostics.machine_check import (
    Disk,
    Machine,
    RayNodeInfo,
    check_cpus,
    check_disk,
    check_memory,
    check_shared_memory,
)
from pharmclf.diagnostics.network_check import Endpoint, ProxyInfo, check_clock_skew, check_network, check_proxies
from pharmclf.diagnostics.node_check import NodeInfo, NodeRequest, check_node
from pharmclf.diagnostics.results import Finding, Section, exit_code, fail, format_section, ok, to_dict, verdict, warn
from pharmclf.diagnostics.runner import check_resources
from pharmclf.diagnostics.software_check import Packages, check_packages, check_tensorflow
from pharmclf.diagnostics.storage_check import StorageInfo, check_storage_access
from pharmclf.diagnostics.tensorflow_probe import TensorflowInfo, VisibleGpu
from pharmclf.distributed.scaling_policy import ClusterNode

GB = 10**9
MACHINE = Machine(
    host="a", cores=8, quota_cpus=None, memory_bytes=64 * GB, limit_bytes=None, available_bytes=60 * GB,
    shared_bytes=32 * GB,
)  # fmt: skip
RAY = RayNodeInfo(cpus=8, gpus=0, memory_bytes=40 * GB, store_bytes=19 * GB)
GPU = Gpu(index=0, name="NVIDIA A100", capability=(8, 0), used_bytes=1 * GB, total_bytes=80 * GB)
DRIVER = DriverInfo(gpus=(GPU,), version="550.54.15")
TENSORFLOW = TensorflowInfo(
    version="2.21.0", cuda_built="12.5.1", cudnn_built="9", cudnn_loaded="9.3.0", precision="mixed_bfloat16",
    capabilities_built=("sm_60", "sm_70", "sm_80", "sm_89", "compute_90"),
    gpus=(VisibleGpu(name="NVIDIA A100", capability=(8, 0)),),
)  # fmt: skip
DISK = Disk(path="/tmp", uses=("Ray",), free_bytes=100 * GB, total_bytes=200 * GB)
STORAGE = StorageInfo(location="s3://b/runs", request_s=0.01, write_bytes_per_s=1e8, read_bytes_per_s=1e8)
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.1.3"}
PACKAGES = Packages(versions=VERSIONS, code="a")


def change(facts: Any, **values: Any) -> Any:
    return dataclasses.replace(facts, **values)


def check(finding: Finding, level: str, *words: str) -> None:
    """Of this level, with these words in text or remedy; a remedy wherever something is not well, and only there."""
    assert finding.level == level, finding
    assert bool(finding.remedy) is (level != "OK"), finding
    assert "\n" not in finding.text + finding.remedy
    for word in words:
        assert word in f"{finding.text} | {finding.remedy}"


@pytest.mark.parametrize(
    ("machine", "ray", "level", "words"),
    [
        (MACHINE, None, "OK", "8 cores"),
        (MACHINE, RAY, "OK", "Ray counts 8"),
        (MACHINE, change(RAY, cpus=0), "OK", "Ray counts 0"),  # a head that computes nothing
        (MACHINE, change(RAY, cpus=16), "warn", "--num-cpus=8"),
        (change(MACHINE, quota_cpus=2.5), RAY, "warn", "--num-cpus=2"),
        (change(MACHINE, quota_cpus=8.0), RAY, "OK", "8 cores;"),
        (change(MACHINE, cores=1, quota_cpus=0.5), change(RAY, cpus=1), "OK", "may use 0.5"),
    ],
)
def test_cores_that_ray_counts_and_the_container_may_not_use_draw_a_warning(machine, ray, level, words):
    check(check_cpus(machine, ray), level, words)


@pytest.mark.parametrize(
    ("machine", "ray", "level", "words"),
    [
        (MACHINE, None, "OK", "59.6 GiB, 55.9 GiB of it free"),
        (MACHINE, RAY, "OK", ""),
        (change(MACHINE, limit_bytes=8 * GB, available_bytes=7 * GB), None, "OK", "limit of the container"),
        (change(MACHINE, limit_bytes=8 * GB, available_bytes=7 * GB), RAY, "warn", "--object-store-memory"),
        (change(MACHINE, available_bytes=2 * GB), RAY, "warn", "--batch-size"),
        (change(MACHINE, available_bytes=GB // 2), RAY, "FAIL", "larger machine"),
    ],
)
def test_memory_that_is_not_there_fails_and_memory_that_ray_does_not_know_to_be_bound_warns(machine, ray, level, words):
    check(check_memory(machine, ray), level, words)


@pytest.mark.parametrize(
    ("shared", "ray", "level", "words"),
    [
        (32 * GB, None, "OK", "17.9 GiB"),  # 30 % of the memory, as a Ray would take that is started now
        (64 << 20, None, "warn", "--shm-size=10g"),  # no more than 10 GB, where /dev/shm has less
        (64 << 20, RAY, "warn", "emptyDir"),
        (19 * GB, RAY, "OK", ""),
        (0, RAY, "warn", ""),
    ],
)
def test_an_object_store_that_does_not_fit_the_shared_memory_draws_a_warning(shared, ray, level, words):
    check(check_shared_memory(change(MACHINE, shared_bytes=shared), ray), level, words)


@pytest.mark.parametrize(
    ("disk", "level", "words"),
    [
        (DISK, "OK", "/tmp (Ray): 100.0 GB of 200.0 GB free"),
        (change(DISK, write_bytes_per_s=1e9, read_bytes_per_s=2e9), "OK", "writes 1.0 GB/s, reads 2.0 GB/s"),
        (change(DISK, free_bytes=50 << 20), "FAIL", "make room"),
        (change(DISK, free_bytes=50 << 20, error="No space left on device"), "FAIL", "make room"),
        (change(DISK, error="Read-only file system"), "FAIL", "cannot be written: Read-only file system"),
        (change(DISK, free_bytes=9 * GB), "warn", "96% full"),
        (change(DISK, free_bytes=9 * GB, uses=("temporary files",)), "OK", ""),
        (change(DISK, free_bytes=GB, total_bytes=2 * GB), "warn", "make room"),
        (change(DISK, write_bytes_per_s=1e6, read_bytes_per_s=1e9), "warn", "slow"),
    ],
)
def test_a_full_or_broken_disk_fails_and_a_slow_or_nearly_full_one_warns(disk, level, words):
    check(check_disk(disk), level, words)


@pytest.mark.parametrize(
    ("offset_s", "level", "words"),
    [
        (0.0, "OK", "agrees"), (4.9, "OK", ""), (-4.9, "OK", ""), (5.0, "warn", "5 s ahead of"),
        (-29.0, "warn", "29 s behind"), (30.0, "FAIL", "from 30 s"), (-3600.0, "FAIL", "3600 s behind"),
    ],
)  # fmt: skip
def test_clocks_that_disagree_by_half_a_lease_fail(offset_s, level, words):
    check(check_clock_skew(offset_s, "the storage"), level, words)


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "OK", "write, read, delete work; 10.0 ms a request, writes 100.0 MB/s, reads 100.0 MB/s"),
        ({"free_bytes": 500 * GB}, "OK", "500.0 GB free"),
        ({"free_bytes": 50 << 20}, "FAIL", "pharmclf cache"),
        ({"free_bytes": 1 * GB}, "warn", "pharmclf cache"),
        ({"request_s": 0.9}, "warn", "slow"),
        ({"write_bytes_per_s": 1e6}, "warn", "slow"),
        ({"failed": "write", "kind": "wrong credentials", "reason": "x"}, "FAIL", "AWS_SECRET_ACCESS_KEY"),
        ({"failed": "write", "kind": "no credentials", "reason": "x"}, "FAIL", "a role"),
        ({"failed": "write", "kind": "no bucket", "reason": "x"}, "FAIL", "AWS_ENDPOINT_URL"),
        ({"failed": "write", "kind": "no rights", "reason": "x"}, "FAIL", "list, read, write and delete"),
        ({"failed": "write", "kind": "read-only", "reason": "x"}, "FAIL", "read-only: could not write: x"),
        ({"failed": "write", "kind": "not reachable", "reason": "x"}, "FAIL", "AWS_ENDPOINT_URL"),
        ({"failed": "write", "kind": "full", "reason": "x"}, "FAIL", "pharmclf cache"),
        ({"failed": "write", "kind": "wrong clock", "reason": "x"}, "FAIL", "chrony"),
        ({"failed": "write", "kind": "another region", "reason": "x"}, "FAIL", "AWS_REGION"),
        ({"failed": "find", "kind": "another place", "reason": "x"}, "FAIL", "all nodes mount"),
        ({"failed": "read", "kind": "other", "reason": "x", "left": "s3://b/p"}, "FAIL", "delete s3://b/p"),
        ({"failed": "delete", "kind": "no rights", "reason": "x", "left": "s3://b/p"}, "warn", "delete s3://b/p"),
        ({"failed": "delete", "kind": "not reachable", "reason": "x", "left": "s3://b/p"}, "FAIL", "s3://b/p"),
    ],
)
def test_each_trouble_of_the_storage_has_its_name_and_its_remedy(changed, level, words):
    """What may not be deleted is a warning: a run lives on, and its old checkpoints pile up."""
    finding = check_storage_access(change(STORAGE, **changed))[0]
    check(finding, level, words, "s3://b/runs")


def test_the_clock_of_the_storage_is_judged_where_the_storage_works():
    assert [finding.check for finding in check_storage_access(STORAGE)] == ["storage", "clock"]
    assert check_storage_access(change(STORAGE, offset_s=-90.0))[1].level == "FAIL"


@pytest.mark.parametrize(
    ("data", "facts", "level", "words"),
    [
        ("demo", ImagesInfo(num_read=0, seconds=0), "OK", "draws its images itself"),
        ("/d", ImagesInfo(num_read=16, seconds=0.3), "OK", "16 images read and decoded in 0.3 s"),
        ("/d", ImagesInfo(num_read=16, seconds=0, bad=(("/d/x/a.jpg", "truncated"),)), "warn", "x/a.jpg: truncated"),
        ("/d", ImagesInfo(num_read=1, seconds=0, bad=(("/d/a.jpg", "not read: gone"),)), "FAIL", "all nodes mount"),
        ("/d", ImagesInfo(num_read=1, seconds=0, bad=(("/d/a.jpg", "truncated"),)), "FAIL", "can be decoded"),
        ("s3://b", ImagesInfo(num_read=0, seconds=9, unavailable="no connection"), "FAIL", "no connection"),
    ],
)  # fmt: skip
def test_one_bad_image_warns_and_none_that_can_be_read_fails(data, facts, level, words):
    check(check_images(facts, data), level, words)


@pytest.mark.parametrize(
    ("versions", "code", "level", "words"),
    [
        ({}, "a", "OK", "tensorflow 2.21.0"),
        ({"python": "3.11.9"}, "a", "warn", "python 3.11.9, the driver has 3.11.7"),
        ({"python": "3.12.1"}, "a", "FAIL", "python 3.12.1"),
        ({"keras": "3.14.0"}, "a", "FAIL", "keras 3.14.0, the driver has 3.15.1"),
        ({"numpy": ""}, "a", "FAIL", "numpy missing"),
        ({"numpy": "2.1.9", "keras": "3.14.0"}, "a", "FAIL", "numpy 2.1.9"),
        ({}, "b", "FAIL", "pharmclf's code b, the driver has a"),
    ],
)
def test_a_third_number_that_differs_warns_and_any_other_difference_fails(versions, code, level, words):
    other = Packages(versions={**PACKAGES.versions, **versions}, code=code)
    check(check_packages(PACKAGES, other), level, words)


@pytest.mark.parametrize(
    ("facts", "ray", "accelerator", "precision", "levels", "words"),
    [
        (DriverInfo(missing="no driver"), None, "auto", "auto", ["OK"], "no GPU here: no driver"),
        (DriverInfo(missing="no driver"), RAY, "gpu", "auto", ["OK"], "processors"),  # the room for workers fails
        (DriverInfo(missing="no driver"), change(RAY, gpus=1), "auto", "auto", ["FAIL"], "Ray counts 1"),
        (DRIVER, None, "cpu", "auto", ["OK"], "--accelerator cpu"),
        (DRIVER, change(RAY, gpus=1), "auto", "auto", ["OK"], "capability 8.0, 73.6 GiB of 74.5 GiB free"),
        (DRIVER, RAY, "auto", "auto", ["OK", "warn"], "--num-gpus=1"),
        (DRIVER, change(RAY, gpus=2), "auto", "auto", ["OK", "FAIL"], "Ray counts 2 GPUs, the driver 1"),
        (
            change(DRIVER, gpus=(change(GPU, used_bytes=79 * GB, holders=("python 12 (78.0 GB)",)),)),
            None, "auto", "auto", ["FAIL"], "held by python 12 (78.0 GB)",
        ),
        (change(DRIVER, gpus=(change(GPU, used_bytes=20 * GB),)), None, "auto", "auto", ["warn"], "does not name"),
        (change(DRIVER, gpus=(change(GPU, used_bytes=None),)), None, "auto", "auto", ["warn"], "dmesg"),
        (change(DRIVER, gpus=(change(GPU, capability=(7, 5)),)), None, "auto", "mixed_bfloat16", ["warn"], "below 8.0"),
        (change(DRIVER, gpus=(change(GPU, capability=(7, 5)),)), None, "auto", "mixed_float16", ["OK"], "7.5"),
        (change(DRIVER, gpus=(change(GPU, capability=(6, 1)),)), None, "auto", "mixed_float16", ["warn"], "auto"),
        (change(DRIVER, gpus=(change(GPU, capability=None),)), None, "auto", "mixed_float16", ["OK"], "A100"),
    ],
)  # fmt: skip
def test_gpus_must_be_free_known_to_ray_and_new_enough(facts, ray, accelerator, precision, levels, words):
    found = check_gpus(facts, ray, RunConfig(accelerator=accelerator, precision=precision))
    assert [finding.level for finding in found] == levels
    assert words.replace("below 8.0", "below capability 8.0") in " | ".join(f"{f.text} {f.remedy}" for f in found)


@pytest.mark.parametrize(
    ("changed", "driver", "levels", "words"),
    [
        ({}, {}, ["OK", "OK"], "cuDNN 9.3.0, finds NVIDIA A100"),
        ({"error": "signal SIGILL"}, {}, ["FAIL"], "AVX"),
        ({"error": "no answer within 150 s"}, {}, ["FAIL"], "dmesg"),
        ({"error": "No module named 'keras'"}, {}, ["FAIL"], "dependencies"),
        ({"cuda_built": "", "gpus": ()}, {}, ["FAIL", "OK"], "built without CUDA"),
        ({}, {"version": "470.82"}, ["FAIL", "OK"], "470.82, too old"),
        ({}, {"version": "525.60.13"}, ["OK", "OK"], ""),
        (
            {"gpus": (), "complaints": ("Cannot dlopen some GPU libraries",)},
            {},
            ["FAIL", "OK"],
            "of 1 GPUs: Cannot",
        ),
        ({"cudnn_built": "9.3.0", "cudnn_loaded": "9.1.0"}, {}, ["FAIL", "OK"], "finds cuDNN 9.1.0"),
        ({"cudnn_built": "9.3.0", "cudnn_loaded": "8.9.7"}, {}, ["FAIL", "OK"], "LD_LIBRARY_PATH"),
        ({"cudnn_built": "9.3.0", "cudnn_loaded": "10.1.0"}, {}, ["FAIL", "OK"], "finds cuDNN 10.1.0"),
        ({"cudnn_built": "9.3.0", "cudnn_loaded": "9.10.2"}, {}, ["OK", "OK"], ""),
        ({"cudnn_loaded": ""}, {}, ["OK", "OK"], ""),
        ({"gpus": (VisibleGpu(name="G", capability=(8, 6)),)}, {}, ["OK", "OK"], ""),  # the kernels of sm_80
        ({"gpus": (VisibleGpu(name="G", capability=(9, 0)),)}, {}, ["OK", "OK"], ""),
        ({"gpus": (VisibleGpu(name="G", capability=(12, 0)),)}, {}, ["warn", "OK"], "compiles all kernels"),
        ({"gpus": (VisibleGpu(name="G", capability=(5, 2)),)}, {}, ["FAIL", "OK"], "G has compute capability 5.2"),
        ({}, {"gpus": (GPU, change(GPU, index=1))}, ["warn", "OK"], "finds 1 of 2 GPUs"),
        ({"step_error": "no ptxas"}, {}, ["OK", "FAIL"], "a step in mixed_bfloat16 on the GPU fails: no ptxas"),
    ],
)
def test_tensorflow_must_find_the_gpus_with_the_libraries_it_was_built_for(changed, driver, levels, words):
    found = check_tensorflow(change(TENSORFLOW, **changed), change(DRIVER, **driver), RunConfig())
    assert [finding.level for finding in found] == levels
    assert words in " | ".join(f"{finding.text} {finding.remedy}" for finding in found)


def test_a_gpu_that_is_not_wanted_is_not_missed():
    """Neither without one, nor with --accelerator cpu."""
    without = change(TENSORFLOW, gpus=(), precision="float32")
    for driver, accelerator in ((DriverInfo(), "auto"), (DRIVER, "cpu")):
        (finding,) = check_tensorflow(without, driver, RunConfig(accelerator=accelerator))
        check(finding, "OK", "a step in float32 on the processors")


def test_the_network_names_who_cannot_reach_whom_by_which_port():
    """Pairs by direction, with the port and what was seen; all others are not named."""
    door = Endpoint(address="10.0.0.2", port=40123, what="of a worker")
    other = Endpoint(address="10.0.0.1", port=40124, what="of a worker")
    check(check_network({"10.0.0.1": [(door, "")], "10.0.0.2": [(other, "")]}), "OK", "2 connections")
    finding = check_network({"10.0.0.1": [(door, "no answer within 3 s")], "10.0.0.2": [(other, "")]})
    check(finding, "FAIL", "10.0.0.1 cannot reach 10.0.0.2 (port 40123 of a worker: no answer within 3 s)")
    assert "10.0.0.2 cannot reach" not in finding.text
    many = {f"10.0.1.{number}": [(door, "refused")] for number in range(20)}
    check(check_network(many), "FAIL", "and 14 more")


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (AllreduceInfo(start_s=9, small_s=0.001, bulk_s=0.0144), "OK", "on two nodes: 10.0 Gbit/s each way, 1.0 ms"),
        (AllreduceInfo(start_s=9, small_s=0.001, bulk_s=0.5), "warn", "0.3 Gbit/s"),
        (AllreduceInfo(start_s=9, small_s=0.001, bulk_s=0.5, on_one_node=True), "OK", "both on one node"),
        (AllreduceInfo(error="no sum within 240 s"), "FAIL", "no sum within 240 s"),
    ],
)
def test_an_exchange_that_fails_fails_and_a_slow_link_warns(facts, level, words):
    check(check_allreduce(facts), level, words)


def node(cpus: float, gpus: float = 0.0) -> ClusterNode:
    return ClusterNode("n", "10.0.0.1", 1, cpus, gpus)


@pytest.mark.parametrize(
    ("settings", "nodes", "waits", "level", "words"),
    [
        ({"num_workers": "0"}, [node(2)], False, "OK", "its own process"),
        ({"num_workers": "2"}, [node(4), node(4)], True, "OK", "2 of 2"),
        ({"num_workers": "4"}, [node(8, 2)], False, "FAIL", "the cluster has 2 GPUs"),
        ({"num_workers": "4"}, [node(8, 2)], True, "warn", "--node-timeout 10m"),
        ({"num_workers": "1", "accelerator": "gpu"}, [node(8)], False, "FAIL", "0 GPUs"),
        ({"num_workers": "1-8"}, [node(8, 2)], False, "OK", "2 of 1-8"),
    ],
)
def test_workers_without_room_fail_where_no_node_can_come(settings, nodes, waits, level, words):
    check(check_resources(RunConfig(**settings), nodes, waits=waits), level, words)


def test_what_did_not_answer_fails_with_its_reason():
    """A hung check is a finding of its own, and the others stay."""
    facts = NodeInfo(machine=MACHINE, disks=(DISK,), silent={"storage": "no answer within 20 s"})
    found = check_node(facts, NodeRequest(config=RunConfig(), full=True), RAY)
    assert [finding.check for finding in found] == ["processors", "memory", "shm", "disk", "storage"]
    check(found[-1], "FAIL", "no answer within 20 s", "mount")


def test_a_table_has_a_line_for_each_check_and_the_remedy_below_what_is_not_well():
    section = Section(title="node 10.0.0.1", findings=(ok("memory", "64 GB"), fail("disk", "full", "make room")))
    assert format_section(section).splitlines() == [
        "node 10.0.0.1",
        "  OK    memory      64 GB",
        "  FAIL  disk        full",
        "                    remedy: make room",
    ]


def test_a_table_has_80_columns_and_breaks_no_word():
    location = f"/{'folder' * 15}"
    lines = format_section(Section(title="here", findings=(ok("disk", f"{'word ' * 30}{location}"),))).splitlines()
    assert all(len(line) <= 80 for line in lines if location not in line)
    assert [line.split()[0] for line in lines[2:]] == ["word", "word", location]
    assert all(line.startswith(" " * 20) for line in lines[2:])


@pytest.mark.parametrize(
    ("findings", "code", "text"),
    [
        ((ok("a", "x"),), 0, "1 check OK, 0 warnings, 0 failed: training can start"),
        ((ok("a", "x"), warn("b", "y", "z")), 0, "1 warning, 0 failed: training can start"),
        ((warn("b", "y", "z"), fail("c", "v", "w")), 1, "1 failed: training would fail. See c (here)"),
    ],
)
def test_only_a_failure_makes_the_exit_code_1(findings, code, text):
    sections = [Section(title="here", findings=findings)]
    assert exit_code(sections) == to_dict(sections)["exit_code"] == code
    assert text in verdict(sections)


def test_a_proxy_is_named_and_no_danger_to_the_ways_between_nodes() -> None:
    """A warning where it takes no connection, or where Ray would send its own connections there."""
    assert check_proxies(ProxyInfo()) == []
    url = "http://proxy:3128"
    facts = ProxyInfo(urls={"http_proxy": url})
    (finding,) = check_proxies(facts)
    check(finding, "OK", "http_proxy=http://proxy:3128", "nodes reach each other without it")
    (finding,) = check_proxies(change(facts, silent={url: "Connection refused"}))
    check(finding, "warn", "http_proxy=http://proxy:3128", "Connection refused", "s3://")
    (finding,) = check_proxies(change(facts, used_by_ray=True))
    check(finding, "warn", "unset RAY_grpc_enable_http_proxy wherever Ray is started")
