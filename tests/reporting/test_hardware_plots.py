"""The hardware of a run in pictures and words: PNG that opens, with every text readable, and facts that are true."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from figure_checks import check_texts, opened
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.node_samples import BEGAN_S, GIB, gpu, loop, played, row, steady

from pharmclf.monitoring.alerts import AlertTracker, HardwareAlert
from pharmclf.monitoring.samples import GpuReading, HostReading, NodeSample
from pharmclf.reporting.figures import INK
from pharmclf.reporting.hardware_plots import hardware_curves, node_figures
from pharmclf.reporting.hardware_text import hardware_lines


def judged(rows: Sequence[NodeSample]) -> list[HardwareAlert]:
    """All that is wrong in rows."""
    watch = AlertTracker()
    for one in rows:
        watch.update(one)
    return [*watch.passed, *watch.active]


def overheating() -> list[NodeSample]:
    """The trace with two phases and a pause of a night."""
    rows = played("overheating", loop=loop(0.2))
    phases = ["", *["phase1"] * 49, *["phase2"] * 60, *["test"] * 10]
    named = [dataclasses.replace(one, phase=phase) for one, phase in zip(rows, phases, strict=True)]
    return named[:80] + [dataclasses.replace(one, at_s=one.at_s + 30_000.0) for one in named[80:]]


def eight_gpus() -> list[NodeSample]:
    """Two days of a large node, of which one card runs hot for some hours."""
    rows = []
    for place in range(240):
        cards = [gpu(index, name="NVIDIA H100 80GB HBM3", temperature_c=60.0 + index) for index in range(8)]
        if 100 < place < 120:
            cards[5] = dataclasses.replace(cards[5], temperature_c=91.0, throttle={"power brake": 1.0})
        phase = "" if place < 3 else "phase1" if place < 70 else "phase2"
        rows.append(row(place, gpus=tuple(cards), seconds=720.0, loop=loop(0.04, 720.0), phase=phase))
    return rows


def bare() -> list[NodeSample]:
    """One reading of a node that tells nearly nothing."""
    cards = (GpuReading(index=0, name="NVIDIA GeForce RTX 4090", temperature_c=50.0),)
    return [
        NodeSample(
            at_s=BEGAN_S, seconds=5.0, node="node-with-a-long-name", host=HostReading(cpu_percent=5.0), gpus=cards
        )
    ]


SHEETS: dict[str, list[NodeSample]] = {
    "one GPU": overheating(),
    "eight GPUs for two days": eight_gpus(),
    "four GPUs that do not train": steady(50, [gpu(index) for index in range(4)]),
    "no GPU for two minutes": steady(24, loop=loop(), phase="phase1", no_gpus="no NVIDIA driver"),
    "no GPU and no training": steady(24, no_gpus="no NVIDIA driver"),
    "one bare reading": bare(),
    "all but a second of a phase": [row(0, phase="phase1"), *steady(500, phase="phase2")[1:]],
}


WARNINGS = {name: judged(rows) for name, rows in SHEETS.items()}


@pytest.mark.parametrize("name", list(SHEETS))
def test_a_panel_is_a_picture(name: str) -> None:
    panels = hardware_curves(SHEETS[name], WARNINGS[name])
    for _, png in panels:
        opened(png)
    assert panels == hardware_curves(SHEETS[name], WARNINGS[name])


@pytest.mark.parametrize("name", list(SHEETS))
def test_no_text_is_clipped_or_covered_by_another(name: str) -> None:
    for _, figure in node_figures(SHEETS[name], WARNINGS[name]):
        check_texts(figure)


def lines(figures: Sequence[tuple[str, Figure]], title: str) -> tuple[Axes, list[Any]]:
    (axes,) = next(figure.axes for heading, figure in figures if heading.startswith(title))
    return axes, axes.get_lines()


def test_pauses_are_cut_out_and_marked() -> None:
    """Ten minutes were watched, before and after a night: the axis is ten minutes long, and the curve has a gap."""
    axes, found = lines(node_figures(SHEETS["one GPU"]), "GPU temperature")
    assert axes.get_xlim() == (0.0, 10.0)
    values = found[0].get_ydata()
    assert sum(value != value for value in values) == 1
    assert max(value for value in values if value == value) == 86.0
    pauses = [line.get_xdata()[0] for line in found if line.get_color() == INK]
    assert pauses == [pytest.approx(400 / 60)]


def test_warnings_are_shaded_where_they_lasted() -> None:
    """From when to when, in the panel of what they are of, alarms apart from warnings; also behind a pause."""
    rows, findings = SHEETS["one GPU"], WARNINGS["one GPU"]
    heat = next(found for found in findings if found.rule == "temperature" and found.level == "alarm")
    figures = node_figures(rows, findings)
    axes, _ = lines(figures, "GPU temperature")
    spans = sorted(patch.get_x() for patch in axes.patches)
    mine = [found for found in findings if found.rule == "temperature"]
    assert len(spans) == len(mine)
    assert spans[0] == pytest.approx((heat.at_s - BEGAN_S) / 60.0 - 5.0 / 60.0, abs=0.1)
    assert list(lines(figures, "Network")[0].patches) == []
    marks = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "v"]
    assert marks == ["#c0330b"] * len(mine)


def test_of_many_gpus_the_one_with_the_warning_stands_out() -> None:
    name = "eight GPUs for two days"
    axes, found = lines(node_figures(SHEETS[name], WARNINGS[name]), "GPU temperature")
    assert [line.get_color() for line in found[:8]].count("#c0330b") == 1
    assert found[5].get_color() == "#c0330b"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["each of 8 GPUs", "GPU 5"]


def test_a_report_gets_panels_of_the_nodes_that_have_most_to_tell() -> None:
    """Those with warnings first, then those with GPUs; two nodes at most, each panel with its title."""
    rows = [*steady(5, node="a"), *steady(5, [gpu()], node="b"), *steady(5, [gpu()], node="c"),
            *steady(5, [gpu(temperature_c=90.0)], node="d")]  # fmt: skip
    pictures = hardware_curves(rows, judged(rows))
    titles = [title for title, _ in pictures]
    assert len(titles) == 16
    assert {title.rsplit(", ", 1)[1] for title in titles} == {"b", "d"}
    assert titles[0] == "GPU utilisation, %, d"
    for _, png in pictures:
        assert opened(png).size == (990, 375)
    alone = hardware_curves(steady(5, node="a"))
    assert [title for title, _ in alone] == [
        "Processors, %",
        "Memory and disk in use, %",
        "Network, MB/s",
        "Disk, MB/s",
    ]
    assert hardware_curves([]) == []


# ---------------------------------------------------------------------- facts


def test_the_facts_name_devices_counts_and_peaks() -> None:
    assert hardware_lines(SHEETS["one GPU"], WARNINGS["one GPU"][:1]) == [
        ("GPUs", "NVIDIA A100-SXM4-80GB"),
        ("GPU utilisation", "mean 65 %, while steps were taken"),
        ("GPU temperature", "at most 86 °C"),
        (
            "GPUs slowed down by heat or power",
            "1:20: hardware slowdown, thermal slowdown (driver), thermal slowdown (hardware)",
        ),
        ("GPU memory", "at most 51.2 GiB of 80.0 GiB"),
        ("GPU energy", "44.2 Wh"),
        ("waited for data", "20 % of the training"),
        ("processors", "16 CPUs, mean 40 % busy"),
        ("memory", "at most 20.0 GiB of 64.0 GiB"),
        ("warnings", "1 alarm"),
    ]


def test_the_facts_of_several_nodes_say_where_the_worst_was() -> None:
    big = {"host_num_cpus": 96.0, "host_memory_total_bytes": 1200 * GIB, "host_memory_used_bytes": 1024 * GIB}
    one = steady(5, [gpu(), gpu(1, temperature_c=70.0, utilisation_percent=55.0)], loop=loop(0.3), **big)
    other = steady(5, [gpu(throttle={"power brake": 1.0}, memory_used_bytes=20 * GIB)], node="10.0.0.2", loop=loop())
    facts = dict(hardware_lines([*one, *other, *steady(5, node="10.0.0.3", no_gpus="no NVIDIA driver")]))
    assert facts["GPUs"] == "3 × NVIDIA L4, on 2 of 3 nodes"
    assert facts["GPU utilisation"] == "mean 82 %, 55 to 95 %, while steps were taken"
    assert facts["GPU temperature"] == "at most 70 °C (GPU 1 on 10.0.0.1)"
    assert facts["GPUs slowed down by heat or power"] == "0:25 (GPU 0 on 10.0.0.2): power brake"
    assert facts["GPU memory"] == "at most 20.0 GiB of 24.0 GiB (GPU 0 on 10.0.0.2)"
    assert facts["nodes"] == "3"
    assert facts["waited for data"] == "30 % of the training on 10.0.0.1, where it was most"
    assert facts["processors"] == "2 × 16 CPUs, 1 × 96 CPUs, mean 40 % busy"
    assert facts["memory"] == "at most 1.0 TiB of 1.2 TiB on 10.0.0.1"
    assert facts["warnings"] == "none"


def test_the_facts_leave_out_what_was_never_told() -> None:
    facts = dict(hardware_lines(bare()))
    assert facts["GPUs"] == "NVIDIA GeForce RTX 4090"
    assert set(facts) == {"GPUs", "GPU temperature", "GPUs slowed down by heat or power", "processors", "warnings"}
    assert hardware_lines([]) == []
    assert dict(hardware_lines(SHEETS["no GPU and no training"]))["GPUs"] == "none"
