"""What is collected: what the driver and TensorFlow have said, clocks, code, hung work."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import psutil
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nvml_library import Library

from pharmclf.config import ConfigError, RunConfig
from pharmclf.diagnostics import software_check
from pharmclf.diagnostics.gpu_check import DriverInfo, Gpu, inspect_driver
from pharmclf.diagnostics.image_check import probe_images, sample_locations
from pharmclf.diagnostics.machine_check import inspect_disks, inspect_machine, paths_written_by
from pharmclf.diagnostics.network_check import Endpoint, min_clock_offset_s, open_port, try_connect
from pharmclf.diagnostics.software_check import code_fingerprint, find_complaints, inspect_packages

ROOT = Path(__file__).parents[2]


def test_this_machine_is_described() -> None:
    found = inspect_machine()
    assert found.host == socket.gethostname()
    assert found.cores >= 1
    assert 0 < found.available_bytes <= found.usable_bytes <= found.memory_bytes


@given(st.floats(0, 2e9), st.floats(0, 100), st.floats(-1e4, 1e4), st.floats(0, 1), st.sampled_from([0.0, 1.0]))
def test_a_clock_offset_is_never_told_larger_than_it_is(
    began: float, took: float, offset: float, at: float, grain: float
):
    """Wherever in the interval the other clock was read, and however it is rounded down; and never of another sign."""
    seen = began + at * took + offset
    seen -= seen % grain if grain else 0.0
    least = min_clock_offset_s(began, began + took, seen, grain)
    assert abs(least) <= abs(offset) + 1e-6
    assert least * offset >= 0
    assert abs(least) >= abs(offset) - took - grain - 1e-6


def test_what_the_driver_says_of_its_gpus_is_kept(library: Library) -> None:
    """Two cards with a process of this machine and one that is not seen here."""
    library.processes = [(os.getpid(), 5 << 30), (2**22 + 1, 1 << 30)]
    found = inspect_driver()
    holders = (f"{psutil.Process().name()} {os.getpid()} (5.0 GiB)", f"process {2**22 + 1} (1.0 GiB)")
    card = Gpu(index=0, name="NVIDIA L4", capability=(8, 9), used_bytes=20 << 30, total_bytes=24 << 30, holders=holders)
    assert found == DriverInfo(gpus=(card, dataclasses.replace(card, index=1)), version="550.54.15")


def test_a_card_that_is_lost_is_listed_and_says_nothing_of_its_memory(library: Library) -> None:
    """A driver that does not work says so."""
    library.broken = {"nvmlDeviceGetHandleByIndex_v2": pynvml.NVML_ERROR_GPU_IS_LOST}
    gpu = inspect_driver().gpus[1]
    assert gpu == Gpu(index=1, name="", capability=None, used_bytes=None, total_bytes=None)
    library.broken = {"nvmlInitWithFlags": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
    assert "version mismatch" in inspect_driver().missing


ERRORS = """2026-11-25 22:01:01.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
2026-11-25 22:01:02.1: W tensorflow/core/common_runtime/gpu/gpu_device.cc:2430] Cannot dlopen some GPU libraries. Please
E0000 00:00:1764108062.1 77 cuda_dnn.cc:454] Loaded runtime CuDNN library: 9.1.0 but source was compiled with: 9.3.0.
"""


def test_complaints_about_libraries_are_found_without_time_and_file() -> None:
    """Each once; other lines of the log are none."""
    assert find_complaints(ERRORS + ERRORS) == (
        "Cannot dlopen some GPU libraries. Please",
        "Loaded runtime CuDNN library: 9.1.0 but source was compiled with: 9.3.0.",
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.kill(os.getpid(), 4)", "signal SIGILL"),
        ("raise ModuleNotFoundError(\"No module named 'x'\")", "ModuleNotFoundError: No module named 'x'"),
        ("import time; time.sleep(60)", "no answer within 4 s"),
    ],
)
def test_a_tensorflow_that_does_not_start_is_an_error_of_the_probe(
    code: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name that crashes, lacks a module, or hangs; what it has said before is kept."""
    log = ERRORS.splitlines()[1]
    (tmp_path / "tensorflow.py").write_text(f"import sys\nprint({log!r}, file=sys.stderr, flush=True)\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(software_check, "PROBE_TIMEOUT_S", 4.0)
    info = software_check.probe_tensorflow(RunConfig(), gpus=False)
    assert info.error.startswith(error)
    assert info.complaints == ("Cannot dlopen some GPU libraries. Please",)


def test_the_code_has_another_fingerprint_when_any_of_it_changes(tmp_path: Path) -> None:
    """A file's content, its name, and one that is gone; not what is no code."""
    (tmp_path / "a.py").write_text("x = 1\n")
    first = code_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert code_fingerprint(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = code_fingerprint(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_fingerprint(tmp_path)}) == 3


def test_the_versions_here_are_those_that_are_installed() -> None:
    import numpy

    found = inspect_packages()
    assert found.versions["numpy"] == numpy.__version__
    assert all(found.versions.values())
    assert found.code == code_fingerprint(ROOT / "pharmclf")


def test_disks_are_grouped_and_nothing_is_left_on_them(tmp_path: Path) -> None:
    """Folders of one file system, which need not be there, are one line; its speed is measured without a trace."""
    places = {"Ray": str(tmp_path / "none" / "yet"), "spool": str(tmp_path)}
    (disk,) = inspect_disks(places, speed=True)
    assert (disk.path, disk.uses, disk.error) == (str(tmp_path), ("Ray", "spool"), "")
    assert disk.write_bytes_per_s
    assert disk.read_bytes_per_s
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert list(tmp_path.iterdir()) == []


def test_only_a_remote_storage_needs_a_spool_and_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHARMCLF_STORAGE_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE", str(tmp_path / "cache"))
    assert set(paths_written_by(RunConfig(storage="runs"), "/ray")) == {"temporary files", "Ray"}
    remote = paths_written_by(RunConfig(storage="s3://b/runs"), "/ray")
    assert remote["Ray"] == "/ray"
    assert {str(tmp_path / "spool"), str(tmp_path / "cache")} <= set(remote.values())
    assert str(tmp_path / "cache") not in paths_written_by(RunConfig(storage="s3://b", feature_cache="never")).values()


def test_a_damaged_image_is_named_and_one_that_is_gone_too(drawn_images: str, tmp_path: Path) -> None:
    """The sample is of whole images; a cut one and a lost one say what they are."""
    sample = sample_locations(RunConfig(data=drawn_images))
    assert len(sample) == 16
    assert probe_images(sample).bad == ()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(sample[0]).read_bytes()[:300])
    found = probe_images([str(cut), str(tmp_path / "gone.jpg"), *sample])
    assert [Path(location).name for location, _ in found.bad] == ["cut.jpg", "gone.jpg"]
    assert found.bad[1][1] == "not read: No such file or directory"
    assert found.num_read == 18


def test_a_list_gives_images_from_all_over_it(drawn_images: str, tmp_path: Path) -> None:
    images = sorted(Path(drawn_images).rglob("*.*"))
    rows = [f"{path},{path.parent.name}" for path in images if path.suffix in (".jpg", ".png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    sample = sample_locations(RunConfig(data=str(tmp_path / "list.csv")))
    assert len({Path(location).parent for location in sample}) > 5


@pytest.mark.parametrize("content", [None, "empty"])
def test_data_that_is_not_there_is_refused_by_name(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    if content:
        folder.mkdir()
        (folder / "readme.txt").write_text("none")
    with pytest.raises(ConfigError, match=str(folder)):
        sample_locations(RunConfig(data=str(folder)))
    assert sample_locations(RunConfig(data="demo")) == []


def test_an_open_port_is_reached_and_a_closed_one_is_not() -> None:
    server = open_port("127.0.0.1")
    door = Endpoint(address="127.0.0.1", port=server.getsockname()[1], what="x")
    assert try_connect([door, door]) == ["", ""]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    assert try_connect([door]) == ["Connection refused"]
    assert try_connect([]) == []
