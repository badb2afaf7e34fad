"""What is said of traces and of made-up nodes, and what is not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.node_samples import BEGAN_S, GIB, gpu, loop, played, row, steady

from pharmclf.monitoring.alerts import QUIET_S, REPEAT_AFTER_S, AlertTracker, HardwareAlert
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.samples import GpuProcess, NodeSample
from pharmclf.monitoring.thresholds import THRESHOLDS, Threshold


def said(rows: Sequence[NodeSample], setting: RunContext | None = None) -> list[HardwareAlert]:
    """All that is said of rows, in order."""
    watch = AlertTracker(setting or RunContext())
    return [found for row in rows for found in watch.update(row)]


def rules(findings: Sequence[HardwareAlert]) -> list[tuple[str, str]]:
    return [(found.level, found.rule) for found in findings]


# ---------------------------------------------------------------------- traces


def test_a_card_at_its_power_cap_is_nothing_to_speak_of() -> None:
    """Idle, then at work at the power cap: both hold the clocks down, and neither is a fault."""
    rows = played("calm", loop=loop(), phase="phase1")
    reasons = {reason for row in rows for gpu in row.gpus for reason in gpu.throttle}
    assert reasons == {"idle", "power cap"}
    assert said(rows) == []


def test_a_card_that_overheats_is_warned_of_at_80_and_alarmed_at_85_degrees_and_when_it_slows_down() -> None:
    """Once each, although the temperature goes up and down between 79 and 86 °C four times."""
    rows = played("overheating")
    temperatures = [row.gpus[0].temperature_c or 0.0 for row in rows]
    found = said(rows)
    assert rules(found) == [("warning", "temperature"), ("alarm", "temperature"), ("alarm", "throttling")]
    hot, hotter, slow = found
    assert "GPU 0 (NVIDIA A100-SXM4-80GB) on 10.0.0.1 is at 80 °C (limit 80 °C). It will" in hot.text
    assert "is at 85 °C (limit 85 °C)" in hotter.text
    assert "thermal slowdown" in slow.text
    at = [round((found.at_s - BEGAN_S) / 5.0) - 1 for found in (hot, slow)]
    assert temperatures[at[0]] >= 80.0 > temperatures[at[0] - 1]
    assert at[1] > temperatures.index(85.0)


def test_an_alarm_that_has_passed_is_kept_with_its_worst_and_its_end() -> None:
    """The trace cools down in the end; then nothing lasts, and what was says from when to when."""
    watch, rows = AlertTracker(), played("overheating")
    for one in rows:
        watch.update(one)
    assert watch.active == []
    passed = {found.rule: found for found in watch.passed}
    assert set(passed) == {"temperature", "throttling"}
    heat = passed["temperature"]
    assert (heat.level, heat.value) == ("alarm", max(row.gpus[0].temperature_c or 0.0 for row in rows))
    assert heat.until_s is not None
    assert heat.at_s < heat.until_s <= rows[-1].at_s


def test_a_full_card_is_an_alarm_that_names_who_holds_its_memory() -> None:
    """From 95 % on; the holders come from the reading."""
    rows = played("full")
    assert rules(said(rows)) == [("alarm", "gpu memory")]
    processes = (GpuProcess(pid=4711, used_bytes=20 * GIB), GpuProcess(pid=12, used_bytes=None))
    full = dataclasses.replace(rows[-1].gpus[0], processes=processes)
    (found,) = said([row(gpus=(full,))])
    assert (
        "97 % of its memory in use (limit 95 %), 21.9 GiB of 22.5 GiB (held by process 4711 20.0 GiB, process 12)"
        in found.text
    )
    assert found.limit == 95.0


def test_a_card_that_dies_is_told_of_twice() -> None:
    """Memory errors that nobody can correct, and then that it is gone."""
    found = said(played("dying"))
    assert rules(found) == [("alarm", "gpu errors"), ("alarm", "gpu lost")]
    assert "2 memory errors" in found[0].text
    assert "does not answer any more" in found[1].text


def test_a_starving_card_is_told_of_with_the_slow_stage() -> None:
    """30 % utilisation while 64 % of the time a batch is waited for, with all processors busy: decoding."""
    rows = played("starving", loop=loop(0.64, gpu=0), phase="phase1", host_cpu_percent=97.0, host_tree_cpu_percent=94.0)
    (found,) = said(rows)
    assert (found.level, found.rule, round(found.value), found.limit) == ("warning", "waiting", 64, 10.0)
    assert "GPU 0 (Tesla T4) on 10.0.0.1 waits for data 64 % of the time (limit 10 %), its utilisation is" in found.text
    assert "; the slow stage is decoding, processors 97 % busy. Decode each image once" in found.text


# ---------------------------------------------------------------------- the wait


@pytest.mark.parametrize(
    ("host", "worker", "setting", "stage"),
    [
        ({"cpu_percent": 98.0, "tree_cpu_percent": 95.0}, 60.0, RunContext(), "decoding"),
        ({"cpu_percent": 98.0, "tree_cpu_percent": 20.0}, 60.0, RunContext(), "the processors, since other processes"),
        ({"cpu_percent": 98.0, "tree_cpu_percent": None}, 60.0, RunContext(), "decoding"),
        ({"network_in_bytes_per_s": 1.1e9}, 60.0, RunContext(remote_data=True), "the network (reading images)"),
        ({"iowait_percent": 30.0}, 60.0, RunContext(), "the disk (reading images)"),
        ({}, 98.0, RunContext(), "the transfer to the device"),
        ({}, 60.0, RunContext(remote_data=True), "the storage (reading images), 30.0 MB/s"),
        ({"network_link_bytes_per_s": None}, 60.0, RunContext(remote_data=True), "the storage (reading images)"),
        ({}, 60.0, RunContext(), "reading images, neither"),
        ({}, 60.0, RunContext(cached_phases=frozenset({"phase1"})), "reading cached features, neither"),
        (
            {"cpu_percent": 98.0, "tree_cpu_percent": 90.0},
            60.0,
            RunContext(cached_phases=frozenset({"phase1"})),
            "reading cached features",
        ),
        ({"iowait_percent": 30.0}, 60.0, RunContext(cached_phases=frozenset({"phase1"})), "the disk (reading cached"),
    ],
)
def test_the_slow_stage_is_the_one_whose_signs_are_there(
    host: dict[str, float | None], worker: float, setting: RunContext, stage: str
) -> None:
    """Processors, network, disk, the worker's own process; else the storage, or a pipeline that has too few CPUs."""
    values = {f"host_{name}": value for name, value in host.items()}
    rows = steady(12, [gpu()], loop=loop(0.3, cpu_percent=worker), phase="phase1", **values)
    (found,) = said(rows, setting)
    assert f"the slow stage is {stage}" in found.text


def test_a_wait_is_judged_over_most_of_a_minute_of_one_phase() -> None:
    """A batch that comes late once says nothing, nor does what came before in another phase."""
    assert said(steady(11, [gpu()], loop=loop(0.9), phase="phase1")) == []
    assert rules(said(steady(12, [gpu()], loop=loop(0.9), phase="phase1"))) == [("warning", "waiting")]
    border = [
        row(place, gpus=(gpu(),), loop=loop(0.9), phase="phase1" if place < 11 else "phase2") for place in range(22)
    ]
    assert said(border) == []
    once = [row(place, gpus=(gpu(),), loop=loop(1.0 if place == 3 else 0.0), phase="phase1") for place in range(24)]
    assert said(once) == []


def test_without_a_gpu_the_worker_is_named() -> None:
    (found,) = said(steady(12, loop=loop(0.3, rank=3), phase="phase1"))
    assert "warning: worker 3 on 10.0.0.1 waits for data 30 % of the time (limit 10 %);" in found.text


# ---------------------------------------------------------------------- other rules


def test_a_gpu_that_its_worker_does_not_use_is_told_of() -> None:
    """TensorFlow has found no CUDA and trains on the processor: a minute is enough to see it."""
    idle = gpu(utilisation_percent=0.0, throttle={"idle": 1.0})
    rows = steady(14, [idle], loop=loop(), phase="phase1", ours=(0,))
    (found,) = said(rows)
    assert (found.level, found.rule) == ("warning", "gpu unused")
    assert "pharmclf doctor" in found.text
    assert said(rows, RunContext(wants_gpus=False)) == []
    assert said(steady(14, [idle], loop=loop(steps=0), phase="phase1")) == []
    assert rules(said(steady(14, [idle], loop=loop(0.9), phase="phase1"))) == [("warning", "waiting")]


def test_gpus_of_others_are_nothing_to_us() -> None:
    """On a node that several runs share, only the GPUs that our workers drive are judged."""
    rows = steady(14, [gpu(0), gpu(1, temperature_c=90.0)], loop=loop(), phase="phase1", ours=(0,))
    assert said(rows) == []
    assert rules(said(steady(14, [gpu(0), gpu(1, temperature_c=90.0)]))) == [("alarm", "temperature")]


@pytest.mark.parametrize(
    ("values", "rule", "level", "part"),
    [
        ({"memory_used_bytes": 59 * GIB}, "memory", "warning", "node 10.0.0.1 has 92 % of its memory in use"),
        ({"memory_used_bytes": 61 * GIB}, "memory", "alarm", "of its memory in use (limit 95 %), 61.0 GiB of 64.0 GiB"),
        ({"disk_free_bytes": 80 * GIB}, "disk", "warning", "the disk of /tmp on 10.0.0.1 is 92 % full (limit 90 %)"),
        ({"disk_free_bytes": 10 * GIB}, "disk", "alarm", "10.7 GB are left"),
        ({"shm_total_bytes": GIB // 16}, "shared memory", "warning", "has 64 MiB (limit 1 GiB)"),
    ],
)
def test_a_node_without_room_is_told_of(values: dict[str, int], rule: str, level: str, part: str) -> None:
    (found,) = said([row(**{f"host_{name}": value for name, value in values.items()})])
    assert (found.rule, found.level) == (rule, level)
    assert part in found.text


def test_of_what_is_not_known_nothing_is_said() -> None:
    """A card, a system or a container that tells nothing gives no warning and no error."""
    bare = gpu(
        **dict.fromkeys(("utilisation_percent", "memory_used_bytes", "temperature_c", "ecc_errors")), throttle={}
    )
    unknown = {f"host_{name}": None for name in vars(row().host)}
    assert said(steady(30, [bare], loop=loop(), phase="phase1", **unknown)) == []


# ---------------------------------------------------------------------- how often


def temperatures(*values: float, step_s: float = 5.0) -> list[NodeSample]:
    return [row(place, gpus=(gpu(temperature_c=value),), seconds=step_s) for place, value in enumerate(values)]


def test_at_the_limit_a_warning_is_said_once() -> None:
    """79 and 80 °C in turn for ten minutes: it has passed below 77 °C only."""
    assert len(said(temperatures(*[80.0, 79.0] * 60))) == 1


def test_a_warning_has_passed_only_with_its_margin() -> None:
    """From 80 °C on it lasts down to 77 °C; where too little is bad, the other way round."""
    lasts = []
    for values in ([80.0, 79.0], [80.0, 77.0], [80.0, 76.9], [79.9]):
        watch = AlertTracker()
        for one in temperatures(*values):
            watch.update(one)
        lasts.append(bool(watch.active))
    assert lasts == [True, True, False, False]
    unused = THRESHOLDS["gpu unused"]
    assert [unused.level(value, "warning") for value in (1.0, 4.9, 5.0)] == ["warning", "warning", ""]
    assert [unused.level(value, "") for value in (1.9, 2.0)] == ["warning", ""]


def test_a_clock_that_is_set_back_leaves_the_old_rows_behind() -> None:
    """An hour back: what was read before, at times that are still to come, is not of the last minutes."""
    watch, slow = AlertTracker(), gpu(throttle={"power brake": 1.0})
    for one in steady(1000, [slow])[-12:]:
        watch.update(one)
    assert rules(watch.active) == [("alarm", "throttling")]
    for one in steady(12, [gpu()]):
        watch.update(one)
    assert watch.active == []


def test_what_lasts_is_said_again_after_an_hour() -> None:
    found = said(temperatures(*[82.0] * 150, step_s=60.0))
    assert [round(found.at_s - BEGAN_S) for found in found] == [60, 60, 60]
    small = said(steady(2000, host_shm_total_bytes=1 << 26))
    assert len(small) == 1, "the size of /dev/shm does not change"


def test_what_has_passed_and_comes_back_is_said_again_but_not_every_minute() -> None:
    """Sooner than ten minutes after it was said only if it is worse."""
    cycle = [*[81.0] * 6, *[70.0] * 6]  # a minute
    assert len(said(temperatures(*cycle * 9))) == 1
    assert len(said(temperatures(*cycle * 11))) == 2
    assert rules(said(temperatures(*cycle, *[86.0] * 3))) == [("warning", "temperature"), ("alarm", "temperature")]


def test_what_cannot_be_measured_for_a_moment_has_not_passed() -> None:
    """A worker that saves a checkpoint tells nothing of its loop for some rows."""
    watch = AlertTracker()
    rows = steady(24, [gpu()], loop=loop(0.5), phase="phase1")
    silent = [row(24 + place, gpus=(gpu(),), phase="phase1") for place in range(6)]
    again = [row(30 + place, gpus=(gpu(),), loop=loop(0.5), phase="phase1") for place in range(12)]
    assert len([found for one in (*rows, *silent, *again) for found in watch.update(one)]) == 1
    assert watch.passed == []
    for place in range(60):
        watch.update(row(50 + place, gpus=(gpu(),)))
    assert watch.active == []
    assert [found.rule for found in watch.passed] == ["waiting"]


def test_nodes_are_told_apart() -> None:
    """The same fault on two nodes is two warnings; a node that is left takes its own with it."""
    watch = AlertTracker()
    hot = gpu(temperature_c=90.0)
    found = [*watch.update(row(0, gpus=(hot,))), *watch.update(row(0, "10.0.0.2", gpus=(hot,)))]
    assert [one.node for one in found] == ["10.0.0.1", "10.0.0.2"]
    watch.reset(BEGAN_S + 99.0, but=["10.0.0.2"])
    assert [one.node for one in watch.active] == ["10.0.0.2"]
    assert [(one.node, one.until_s) for one in watch.passed] == [("10.0.0.1", BEGAN_S + 99.0)]


@given(st.lists(st.floats(60.0, 95.0), min_size=1, max_size=80))
def test_whatever_a_temperature_does_nothing_is_said_twice_within_ten_minutes(values: list[float]) -> None:
    """Each level at most once in that time; what is said is over its limit, and what lasts is not yet below margin."""
    watch, times = AlertTracker(), dict[str, list[float]]()
    for one in temperatures(*values):
        celsius = one.gpus[0].temperature_c or 0.0
        for found in watch.update(one):
            assert celsius >= found.limit
            times.setdefault(found.text.split(":")[0], []).append(one.at_s)
        lasts = {found.rule for found in watch.active}
        assert celsius >= 77.0 if lasts else celsius < 80.0
    for moments in times.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert all(gap >= min(QUIET_S, REPEAT_AFTER_S) for gap in gaps)


@given(
    st.floats(-10, 200),
    st.floats(-10, 200),
    st.sampled_from(sorted(THRESHOLDS)),
    st.sampled_from(["", "warning", "alarm"]),
)
def test_worse_is_never_judged_better(one: float, other: float, rule: str, before: str) -> None:
    """Levels follow the value, whatever was before; and without a margin to keep, none holds on to itself."""
    limit, order = THRESHOLDS[rule], ["", "warning", "alarm"]
    low, high = sorted((one, other), reverse=limit.below)
    assert order.index(limit.level(low, before)) <= order.index(limit.level(high, before))  # type: ignore[arg-type]
    plain = Threshold(warning=limit.warning, alarm=limit.alarm, below=limit.below)
    assert plain.level(one, before) == plain.level(one, "")  # type: ignore[arg-type]
