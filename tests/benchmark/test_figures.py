"""Ratios, tables and pictures of the benchmarks, from figures that are given: nothing is measured here."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pharmclf.benchmark.devices import DeviceRow, devices_table, with_ratios
from pharmclf.benchmark.measure import MeasureOptions, PhaseTime, SideResult, measure_energy, throughput
from pharmclf.benchmark.plots import plot_report
from pharmclf.benchmark.vs_keras import Side, compare, comparison_table, is_comparable, link_splits, side_to_dict
from pharmclf.config import ConfigError
from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.metrics import Estimate
from pharmclf.monitoring import GpuReading


def side(
    whole: float, phase1: float, phase2: float, accuracy: float, input_per_s: float = 100.0, **more: float
) -> Side:
    seconds = {"phase1": phase1, "phase2": phase2}
    phases = {name: PhaseTime(seconds=value, epochs=4, images_per_second=1.0) for name, value in seconds.items()}
    result = SideResult(
        whole_s=whole, parts_s={"start": 10.0, **more, **seconds}, phases=phases, hits={}, input_per_s=input_per_s
    )
    return Side(result, Estimate(accuracy, accuracy - 0.05, accuracy + 0.05))


SIDES = {"plain": side(210.0, 100.0, 90.0, 0.9), "ours": side(60.0, 5.0, 15.0, 0.87, activations=18.0)}


def test_the_activations_count_to_our_training_and_the_start_to_both():
    rows = {row.what: row for row in compare(SIDES)}
    assert rows["phase1"].ratios["plain"] == 20.0
    assert rows["training: phases and feature cache"].values == {"plain": 190.0, "ours": 38.0}
    assert rows["training: phases and feature cache"].ratios["plain"] == 5.0
    assert rows["all, from the start of the process"].ratios["plain"] == 3.5
    assert rows["phase1: epochs"].ratios == {}  # more epochs are not faster ones
    assert {"what", "unit", "values", "ratios"} == set(dataclasses.asdict(rows["phase2"]))


def test_more_images_a_second_are_a_ratio_above_one_and_fewer_seconds_too():
    faster = {**SIDES, "ours": side(60.0, 5.0, 15.0, 0.87, input_per_s=300.0)}
    assert compare(faster)[0].ratios["plain"] == 3.0


def test_sides_whose_intervals_do_not_meet_are_marked_as_not_comparable():
    assert is_comparable(SIDES) == {"plain": True}
    worse = {**SIDES, "ours": side(60.0, 5.0, 15.0, 0.7)}
    assert is_comparable(worse) == {"plain": False}
    assert any("not comparable" in line for line in comparison_table(worse, compare(worse)))
    assert not any("not comparable" in line for line in comparison_table(SIDES, compare(SIDES)))


def step(gpu: int | None, precision: str, rate: float | None, phase: str = "phase1") -> DeviceRow:
    return DeviceRow(
        device="card" if gpu is not None else "processor", gpu=gpu, precision=precision, phase=phase, batch_size=8,
        images_per_second=rate, memory_bytes=None if rate is None else 5_000_000, skipped="" if rate else "no units",
    )  # fmt: skip


ROWS = with_ratios([step(None, "float32", 50.0), step(None, "mixed_float16", None), step(0, "float32", 400.0),
                    step(0, "float32", 300.0, "phase2")])  # fmt: skip


def test_a_device_is_compared_with_the_processors_in_float32_in_the_same_phase():
    assert [row.ratio for row in ROWS] == [1.0, None, 8.0, None]  # phase 2 has nothing to be compared with
    text = "\n".join(devices_table(ROWS))
    assert "8.00x" in text
    assert "processor, mixed_float16: skipped, no units" in text


@pytest.mark.parametrize(
    ("name", "report"),
    [
        (
            "plain",
            {
                "sides": {name: side_to_dict(each) for name, each in SIDES.items()},
                "rows": [dataclasses.asdict(row) for row in compare(SIDES)],
                "comparable": is_comparable(SIDES),
            },
        ),
        ("devices", {"rows": [dataclasses.asdict(row) for row in ROWS]}),
        ("monitor", {"rows": [{"share": 0.004, "without": 50.0, "with_often": 49.0}]}),
        ("stages", {"rows": [{"backbone": "lite", "phase": "phase1", "stream": 90.0, "step": 40.0, "loop": 38.0}]}),
    ],
)
def test_each_report_is_drawn(name: str, report: dict[str, Any]):
    drawn = plot_report(name, report | {"backbone": "lite", "machine": {"processor": "one", "cores": 2}})
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(image.convert("L").getcolors()) > 20  # something stands on it


def test_a_benchmark_that_draws_its_own_picture_is_left_alone():
    assert plot_report("scaling", {"rows": []}) is None


def test_the_pace_counts_from_behind_the_first_epoch():
    clock = iter([10.0, 11.0, 12.0, 13.0, 13.0])
    # two batches of the first epoch, then three of 8 images in three seconds
    assert throughput(iter([5, 5, 8, 8, 8, 8]), 2, 3.0, lambda: next(clock)) == 8.0


class Card:
    num_gpus = 1

    def read(self, index: int) -> GpuReading:
        return GpuReading(index=index, name="card", power_w=200.0)

    def processes(self, index: int) -> list[Any]:  # noqa: ARG002
        return []


def test_energy_is_what_the_counters_have_risen_by_also_over_their_end(tmp_path: Path):
    package = tmp_path / "intel-rapl:0"
    part = tmp_path / "intel-rapl:0:0"
    for folder in (package, part):
        folder.mkdir()
        (folder / "energy_uj").write_text("9000000")
        (folder / "max_energy_range_uj").write_text("10000000")
    with measure_energy(None, 0, tmp_path) as energy:
        (package / "energy_uj").write_text("2000000")
        (part / "energy_uj").write_text("9900000")  # is in the package's already
    assert energy.joules == 3.0
    with measure_energy(None, 0, tmp_path / "none") as unknown:
        pass
    assert unknown.joules is None


def test_energy_of_a_card_is_its_power_over_the_time():
    import time

    with measure_energy(Card(), 0) as energy:
        began = time.perf_counter()
        time.sleep(0.15)
        took = time.perf_counter() - began
    assert energy.joules is not None
    assert 200 * took <= energy.joules < 200 * took + 40


def test_the_plain_side_is_given_the_same_rows_in_each_split(drawn_manifest: Manifest, tmp_path: Path):
    link_splits(drawn_manifest, tmp_path)
    table = drawn_manifest.table
    for split in ("train", "validation", "test"):
        links = list((tmp_path / split).glob("*/*"))
        assert sorted(int(link.stem) for link in links) == sorted(drawn_manifest.rows(split).tolist())
        for link in links:
            row = int(link.stem)
            assert drawn_manifest.class_names[int(link.parent.name)] == table["label"][row]
            assert link.resolve() == Path(table["path"][row]).resolve()


def test_images_that_plain_keras_cannot_read_are_named(drawn_manifest: Manifest, tmp_path: Path):
    table = drawn_manifest.table.copy()
    table.loc[3, "path"] = "/images/one.webp"
    with pytest.raises(ConfigError, match=r"/images/one.webp and 1 images in all: plain Keras reads"):
        link_splits(Manifest(table, drawn_manifest.class_names), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 0.0}, "--seconds: received 0, expected a number above 0"),
        ({"seconds": float("nan")}, "--seconds: received nan, expected a number above 0"),
        ({"sides": ()}, "--sides: received none, expected plain, cached or both"),
    ],
)
def test_options_with_which_nothing_is_measured_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        MeasureOptions(**values)
