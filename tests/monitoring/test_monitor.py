"""The driver's side and the threads that read: on this machine, with traces for GPUs, on disk and in a bucket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.node_samples import gpu, loop, played, row, steady, trace

from pharmclf.core.events import (
    Event,
    FeatureCacheReady,
    FinalEvaluationStarted,
    Note,
    StepEnd,
    WorkerFailure,
    WorkersStarted,
)
from pharmclf.monitoring import (
    HardwareAlertsChanged,
    HardwareMonitor,
    LoopSampled,
    NodeSampled,
    RunContext,
    read_alerts,
    read_samples,
    sampling,
)
from pharmclf.monitoring.sampler import LoopSampler, NodeSampler, start_sampling, visible_gpu
from pharmclf.monitoring.samples import GpuProcess, GpuReading, NodeSample

NODE = "10.0.0.1"
E = TypeVar("E", bound=Event)
FAILURE = WorkerFailure(kind="crash", reason="it crashed", position=None, num_failures=1, max_failures=3)


def step(phase: str) -> StepEnd:
    return StepEnd(
        phase=phase, epoch=0, epochs=2, step=1, steps=10, loss=1.0, accuracy=0.5, images_per_second=10.0, eta_s=1.0
    )


class Heard:
    """Takes events, and can wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.new = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self.new:
            self.events.append(event)
            self.new.notify_all()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def texts(self) -> list[str]:
        return [note.text for note in self.of(Note)]

    def wait_for(self, kind: type[E], count: int = 1) -> list[E]:
        with self.new:
            assert self.new.wait_for(lambda: len(self.of(kind)) >= count, timeout=60.0), kind
        return self.of(kind)


class Clock:
    """A loop that a test drives."""

    def __init__(self) -> None:
        self.beats, self.waited = 0, 0.0

    def waited_s(self) -> float:
        return self.waited


class Stub:
    """GPUs that do what a test says."""

    num_gpus = 1

    def __init__(self, act: Callable[[], GpuReading]) -> None:
        self._act = act

    def read(self, _index: int) -> GpuReading:
        return self._act()

    def processes(self, _index: int) -> Sequence[GpuProcess]:
        return [GpuProcess(pid=99, used_bytes=1 << 30)]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Callable[..., tuple[HardwareMonitor, Heard]]]:
    """Makes monitors that read nothing by themselves, so that a test gives them their rows."""
    made: list[HardwareMonitor] = []

    def make(folder: str = str(tmp_path / "run"), **values: Any) -> tuple[HardwareMonitor, Heard]:
        heard = Heard()
        made.append(HardwareMonitor(folder, node=NODE, every_s=3600.0, send=heard, **values))
        return made[-1], heard

    yield make
    for one in made:
        one.close()


def give(monitor: HardwareMonitor, rows: Sequence[NodeSample]) -> None:
    for one in rows:
        monitor.on_event(NodeSampled(sample=one))


# ---------------------------------------------------------------------- the monitor


def test_warnings_reach_console_status_and_files(monitor: Any, root: str) -> None:
    """Said once, told as lasting while they last, and kept with the rows of each node; nothing lasts after the end."""
    watching, heard = monitor(root)
    give(watching, played("overheating"))
    give(watching, steady(2, node="10.0.0.2", host_memory_used_bytes=63 << 30))
    said = [text.split(" on ")[0] for text in heard.texts()]
    card = "GPU 0 (NVIDIA A100-SXM4-80GB)"
    assert said[:3] == [f"warning: {card}", f"alarm: {card}", f"alarm: {card}"]
    assert [text.split("%")[0] for text in said[3:]] == ["alarm: node 10.0.0.2 has 98 "]
    lasting = [[alert.rule for alert in event.alerts] for event in heard.of(HardwareAlertsChanged)]
    assert lasting[0] == ["temperature"]
    assert ["temperature", "throttling"] in lasting or ["throttling", "temperature"] in lasting
    assert lasting[-1] == ["memory"]
    watching.close()
    assert {found.node for found in read_samples(root)} == {NODE, "10.0.0.2"}
    kept = read_alerts(root)
    assert {found.rule for found in kept} == {"memory", "temperature", "throttling"}
    assert all(found.until_s is not None for found in kept)


def test_rows_carry_phase_and_loop_and_the_gpus_of_the_workers(monitor: Any, tmp_path: Path) -> None:
    """The worker that waited most stands for its node; what two readings of a loop told is in one row."""
    watching, _ = monitor()
    cards = (gpu(0), gpu(1), gpu(2))
    give(watching, [row(0, gpus=cards)])
    watching.on_event(step("phase1"))
    watching.on_event(LoopSampled(node=NODE, reading=loop(0.1, rank=0, gpu=0)))
    watching.on_event(LoopSampled(node=NODE, reading=loop(0.5, rank=1, gpu=2)))
    watching.on_event(LoopSampled(node=NODE, reading=loop(0.3, rank=1, gpu=2)))
    watching.on_event(LoopSampled(node="10.0.0.2", reading=loop(0.9, rank=2, gpu=0)))
    give(watching, [row(1, gpus=cards), row(2, gpus=cards)])
    watching.on_event(FinalEvaluationStarted())
    give(watching, [row(3, gpus=cards)])
    watching.close()
    first, second, third, last = read_samples(str(tmp_path / "run"))
    assert (first.phase, first.loop, first.ours) == ("", None, ())
    assert second.loop is not None
    assert (second.phase, second.ours, second.loop.rank, second.loop.wait_share) == (
        "phase1",
        (0, 2),
        1,
        pytest.approx(0.4),
    )
    assert (third.phase, third.loop, third.ours) == ("phase1", None, (0, 2))
    assert (last.phase, last.ours) == ("test", ())


def test_a_machine_without_gpus_is_told_of_once(monitor: Any) -> None:
    watching, heard = monitor()
    for node in (NODE, "10.0.0.2"):
        give(watching, steady(3, node=node, no_gpus="no NVIDIA driver"))
    assert heard.texts() == [f"hardware: no GPU on {NODE} (no NVIDIA driver); the rest of the node is monitored"]


def test_the_remedy_follows_what_a_phase_trains_on(monitor: Any) -> None:
    """An event tells which phases train on kept activations: then it is not the decoding."""
    watching, heard = monitor(context=RunContext(remote_data=True))
    watching.on_event(FeatureCacheReady(phases=("phase2",)))
    for place, phase in enumerate(["phase1"] * 12 + ["phase2"] * 36):
        watching.on_event(step(phase))
        watching.on_event(LoopSampled(node=NODE, reading=loop(0.4)))
        give(watching, [row(place, gpus=(gpu(),))])
    (text,) = heard.texts()
    assert "the slow stage is the storage (reading images)" in text
    assert "reading cached features" in heard.of(HardwareAlertsChanged)[-1].alerts[0].text


def test_nodes_that_are_left_take_their_warnings_along(monitor: Any) -> None:
    """Workers start elsewhere after a failure; what was wrong with the lost node is wrong no more."""
    watching, heard = monitor()
    give(watching, [row(0, "10.0.0.2", host_memory_used_bytes=63 << 30)])
    assert [alert.node for alert in heard.of(HardwareAlertsChanged)[-1].alerts] == ["10.0.0.2"]
    watching.on_event(FAILURE)
    watching.on_event(WorkersStarted(workers=1, nodes=("10.0.0.3",), attempt=2))
    give(watching, [row(1)])
    assert heard.of(HardwareAlertsChanged)[-1].alerts == ()


def test_a_resumed_run_keeps_rows_and_warnings_of_before(monitor: Any, tmp_path: Path) -> None:
    for begin in (0, 1000):
        watching, _ = monitor()
        give(watching, [row(begin + place, host_memory_used_bytes=63 << 30) for place in range(3)])
        watching.close()
    rows = read_samples(str(tmp_path / "run"))
    assert [one.at_s for one in rows] == sorted(one.at_s for one in rows)
    assert len(rows) == 6
    assert [found.rule for found in read_alerts(str(tmp_path / "run"))] == ["memory", "memory"]


def test_what_was_read_so_far_can_be_written_at_once(monitor: Any, tmp_path: Path) -> None:
    """For the report, which is made while the run is still watched; what comes later is written at the end."""
    watching, _ = monitor()
    give(watching, steady(3, host_memory_used_bytes=63 << 30))
    watching.flush()
    assert len(read_samples(str(tmp_path / "run"))) == 3
    assert [found.until_s for found in read_alerts(str(tmp_path / "run"))] == [None]
    give(watching, [row(3)])
    watching.flush()
    assert len(read_samples(str(tmp_path / "run"))) == 4


def test_what_cannot_be_read_is_not_written_over(
    monitor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that does not give the rows of before, here a folder in their place, keeps them; it is said once."""
    place = tmp_path / "run" / "hardware" / f"{NODE}.jsonl"
    place.mkdir(parents=True)
    watching, heard = monitor()
    with caplog.at_level(logging.WARNING):
        give(watching, steady(3))
        watching.close()
    assert place.is_dir()
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    assert heard.texts() == []


def test_without_the_lease_nothing_is_written(monitor: Any, tmp_path: Path) -> None:
    watching, _ = monitor(is_lost=lambda: "another process")
    give(watching, steady(3, host_memory_used_bytes=63 << 30))
    watching.close()
    assert not (tmp_path / "run").exists()


def test_switched_off_nothing_is_read_or_written(tmp_path: Path) -> None:
    """every_s 0; and events change nothing."""
    heard = Heard()
    watching = HardwareMonitor(str(tmp_path / "run"), node=NODE, every_s=0.0, send=heard)
    watching.on_event(step("phase1"))
    watching.close()
    with sampling(heard, node=NODE, every_s=0.0, whole_node=True):
        pass
    assert heard.events == []
    assert not (tmp_path / "run").exists()
    assert watching.line() == ""


# ---------------------------------------------------------------------- the threads


def test_this_machine_is_read_and_the_trace_is_alarmed_of(tmp_path: Path) -> None:
    """From NVML to the files: real psutil, a trace for the GPUs, many readings a second."""
    heard = Heard()
    watching = HardwareMonitor(
        str(tmp_path),
        node=NODE,
        every_s=0.02,
        send=heard,
        open_node=lambda: NodeSampler(NODE, [str(tmp_path)], nvml=trace("overheating")),
    )
    heard.wait_for(Note, 2)
    watching.close()
    assert "is at 85 °C" in heard.texts()[1]
    rows = read_samples(str(tmp_path))
    assert rows[0].host.disk_folder == str(tmp_path)
    assert {one.gpus[0].name for one in rows} == {"NVIDIA A100-SXM4-80GB"}
    assert watching.line().startswith("hardware: 1 GPU, ")


def test_a_worker_tells_of_its_loop_and_of_its_node_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing before the first batch; then steps, waited share and the GPU that it was given."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    heard, clock = Heard(), Clock()
    with sampling(heard, node=NODE, every_s=0.05, clock=clock, rank=5, whole_node=True):
        heard.wait_for(NodeSampled, 2)
        assert heard.of(LoopSampled) == []
        clock.beats = 7
        first = heard.wait_for(LoopSampled)[0]
        clock.waited = 1e9
        for _ in range(500):
            if heard.of(LoopSampled)[-1].reading.wait_share == 1.0:
                break
            time.sleep(0.01)
    assert (first.node, first.reading.rank, first.reading.gpu, first.reading.steps) == (NODE, 5, 3, 7)
    assert any(event.reading.wait_share == 1.0 for event in heard.of(LoopSampled))
    assert all(event.sample.node == NODE for event in heard.of(NodeSampled))


def test_a_wait_is_a_share_of_the_time() -> None:
    clock = Clock()
    reader = LoopSampler(clock)
    assert reader.read(5.0) is None
    clock.beats, clock.waited = 10, 2.0
    found = reader.read(5.0)
    assert found is not None
    assert (found.steps, found.wait_share, found.seconds) == (10, 0.4, 5.0)
    found = reader.read(5.0)
    assert found is not None
    assert (found.steps, found.wait_share) == (0, 0.0)


@pytest.mark.parametrize(
    ("given", "expected"), [("2", 2), ("", None), ("0,1", None), ("GPU-1a", None), ("-1", None), (None, None)]
)
def test_the_gpu_of_a_process_is_the_one_it_was_given(
    given: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpu() == expected


def test_who_holds_the_memory_is_asked_where_it_is_nearly_full() -> None:
    used = [gpu(memory_used_bytes=23 << 30), gpu(memory_used_bytes=10 << 30)]
    reader = NodeSampler(NODE, nvml=Stub(lambda: used.pop(0)))
    assert reader.read(5.0).gpus[0].processes == (GpuProcess(pid=99, used_bytes=1 << 30),)
    assert reader.read(5.0).gpus[0].processes == ()


def test_a_driver_that_breaks_costs_its_gpus_and_nothing_else() -> None:
    """The rows of the host go on, and say why there are no GPUs any more."""

    def broken() -> GpuReading:
        raise RuntimeError("the driver is gone")

    found = NodeSampler(NODE, nvml=Stub(broken)).read(5.0)
    assert found.gpus == ()
    assert found.no_gpus == "the driver cannot be queried any more: RuntimeError: the driver is gone"
    assert found.host.memory_total_bytes is not None


def test_a_reader_that_raises_is_said_once_and_the_loop_is_told_of_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever cannot be opened or read: one line in the log, and the next reading follows."""

    class Broken(NodeSampler):
        def read(self, seconds: float) -> NodeSample:
            raise RuntimeError(f"nothing for {seconds > 0}")

    heard, clock = Heard(), Clock()
    clock.beats = 1
    with caplog.at_level(logging.WARNING):
        task = start_sampling(heard, node=NODE, every_s=0.02, open_node=lambda: Broken(NODE), loop=LoopSampler(clock))
        heard.wait_for(LoopSampled, 3)
        task.close(60.0)
    (message,) = caplog.messages
    assert f"the hardware of {NODE} cannot be read" in message
    assert "RuntimeError: nothing for True" in message
    assert heard.of(NodeSampled) == []


def test_a_row_that_cannot_be_judged_ends_nothing(monitor: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What workers of another version send may be anything: the driver's loop goes on."""
    watching, heard = monitor()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            watching.on_event(NodeSampled(sample="no row"))  # type: ignore[arg-type]
        give(watching, steady(1, host_memory_used_bytes=63 << 30))
    assert len([line for line in caplog.messages if "AttributeError" in line]) == 1
    assert len(heard.texts()) == 1


def test_a_warning_that_lasts_is_not_written_again_and_again(monitor: Any, tmp_path: Path) -> None:
    """Its text changes with every row; the file is written when it comes, gets worse, or has passed."""
    watching, _ = monitor()
    written: list[int] = []
    for place in range(5):
        give(watching, [row(place, host_memory_used_bytes=(59 << 30) + place)])
        watching._files.write()
        written.append((tmp_path / "run" / "hardware" / "warnings.json").stat().st_mtime_ns)
    assert len(set(written)) == 1
    give(watching, [row(5, host_memory_used_bytes=62 << 30)])
    watching._files.write()
    assert [(found.level, found.until_s) for found in read_alerts(str(tmp_path / "run"))] == [("alarm", None)]


def test_a_driver_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    """Neither what the process does nor its end: the thread is left behind, and dies with the process."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang() -> GpuReading:
        hangs.set()
        go_on.wait(60.0)
        return gpu()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmclf.monitoring.monitor.SHUTDOWN_TIMEOUT_S", 0.05)
        watching = HardwareMonitor(
            str(tmp_path),
            node=NODE,
            every_s=0.01,
            send=Heard(),
            open_node=lambda: NodeSampler(NODE, nvml=Stub(hang)),
        )
        assert hangs.wait(60.0)
        watching.close()
    task = watching._sampler
    assert task is not None
    assert not task.close(0.0)
    go_on.set()
    assert task.close(60.0)
