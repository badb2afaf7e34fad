"""Rows and their files: merged, bounded, written and read again, with nothing lost that a summary needs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.node_samples import BEGAN_S, STEP_S, gpu, loop, played, row, steady

from pharmclf import storage
from pharmclf.monitoring import sample_log
from pharmclf.monitoring.alerts import AlertTracker
from pharmclf.monitoring.sample_log import SampleLog, read_alerts, read_samples, write_alerts, write_samples
from pharmclf.monitoring.samples import GpuReading, HostReading, LoopReading, NodeSample, merge_loops, merge_samples
from pharmclf.monitoring.summary import summarise, summary_line

maybe = st.none() | st.floats(0.0, 100.0)
gpus = st.builds(
    GpuReading,
    index=st.integers(0, 2),
    utilisation_percent=maybe,
    temperature_c=maybe,
    power_w=maybe,
    throttle=st.dictionaries(st.sampled_from(["power cap", "power brake", "idle"]), st.floats(0.0, 1.0)),
    ecc_errors=st.none() | st.integers(0, 9),
    lost=st.booleans(),
)
loops = st.builds(LoopReading, rank=st.integers(0, 3), seconds=st.floats(0.1, 60.0), wait_share=st.floats(0.0, 1.0))


@st.composite
def rows_of_a_node(draw: st.DrawFn) -> list[NodeSample]:
    """One after the other, perhaps with pauses and phases."""
    made, at_s = [], BEGAN_S
    for _ in range(draw(st.integers(1, 6))):
        seconds = draw(st.sampled_from([4.9, 5.0, 5.1]))
        at_s += seconds + draw(st.sampled_from([0.0, 0.0, 0.0, 4000.0]))
        found = {one.index: one for one in draw(st.lists(gpus, max_size=2))}
        made.append(
            NodeSample(
                at_s=at_s,
                seconds=seconds,
                node="10.0.0.1",
                phase=draw(st.sampled_from(["", "phase1"])),
                host=HostReading(cpu_percent=draw(maybe), memory_used_bytes=draw(st.none() | st.integers(0, 1 << 40))),
                gpus=tuple(found[index] for index in sorted(found)),
                loop=draw(st.none() | loops),
            )
        )
    return made


def totals(rows: list[NodeSample]) -> dict[str, Any]:
    """What must stay when rows are merged: sums, and peaks."""
    waited = [row.loop.wait_share * row.loop.seconds for row in rows if row.loop]
    return {
        "seconds": sum(row.seconds for row in rows),
        "end": rows[-1].at_s,
        "waited": sum(waited),
        "hottest": max([gpu.temperature_c or 0.0 for row in rows for gpu in row.gpus], default=0.0),
        "memory": max(row.host.memory_used_bytes or 0 for row in rows),
        "lost": any(gpu.lost for row in rows for gpu in row.gpus),
    }


@settings(max_examples=50)
@given(rows_of_a_node())
def test_rows_that_become_one_keep_sums_and_peaks(rows: list[NodeSample]) -> None:
    """However many are merged: seconds, waited time, the hottest, the fullest, and what was lost."""
    whole = rows[0]
    for other in rows[1:]:
        whole = merge_samples(whole, other)
    assert totals([whole]) == pytest.approx(totals(rows))


def test_means_are_weighted_by_time_and_what_is_unknown_does_not_count() -> None:
    first = (gpu(power_w=100.0, utilisation_percent=None),)
    second = (gpu(power_w=300.0, utilisation_percent=80.0, throttle={}),)
    one = row(0, gpus=first, seconds=15.0, loop=loop(0.5, 15.0, rank=1), ours=(0,), host_disk_free_bytes=1)
    other = row(1, gpus=second, seconds=5.0, loop=loop(0.1, 5.0))
    whole = merge_samples(one, other)
    assert (whole.ours, whole.host.disk_free_bytes, whole.phase) == ((0,), 1, "")
    assert whole.gpus[0].power_w == pytest.approx(150.0)
    assert whole.gpus[0].utilisation_percent == 80.0
    assert whole.gpus[0].throttle == {"power cap": 0.75}
    assert whole.loop is not None
    assert (whole.loop.seconds, whole.loop.wait_share, whole.loop.steps) == (20.0, pytest.approx(0.4), 40)
    assert merge_loops(None, None) is None
    assert merge_samples(dataclasses.replace(one, loop=None), other).loop == other.loop


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.booleans()), min_size=1, max_size=60), st.integers(4, 20))
def test_a_log_never_grows_beyond_its_bound(places: list[tuple[float, bool]], most: int) -> None:
    """Whatever pauses and phases there are; its sums and peaks stay those of all readings."""
    rows, at_s = [], BEGAN_S
    for number, (pause_s, second) in enumerate(places):
        at_s += STEP_S + pause_s
        made = row(gpus=(gpu(temperature_c=float(number)),), loop=loop(pause_s / 20.0), phase=f"phase{1 + second}")
        rows.append(dataclasses.replace(made, at_s=at_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_log, "MAX_SAMPLES", most)
        kept = SampleLog()
        for one in rows:
            kept.append(one)
            assert 1 <= len(kept.samples) <= most
        found = totals(kept.samples)
        assert found == pytest.approx(totals(rows))
        assert kept.seconds == pytest.approx(found["seconds"])
        assert [row.at_s for row in kept.samples] == sorted(row.at_s for row in kept.samples)


def test_two_days_are_as_many_rows_as_an_hour_and_even() -> None:
    """Readings every half minute: a row for five minutes in the end, all alike but for the last."""
    kept = SampleLog()
    for one in steady(2 * 24 * 120, [gpu()], seconds=30.0):
        kept.append(one)
    lengths = [row.seconds for row in kept.samples]
    assert sample_log.MAX_SAMPLES / 2 <= len(lengths) <= sample_log.MAX_SAMPLES
    assert max(lengths) <= 2 * min(lengths[:-1])
    assert sum(lengths) == pytest.approx(2 * 24 * 3600.0)


def test_borders_of_phases_and_pauses_are_kept_while_rows_are_merged() -> None:
    """A pause of an hour, and another phase after a thousand readings: no row lies over either."""
    kept = SampleLog()
    first, second = steady(1001, phase="phase1"), steady(1001, phase="phase2")
    later = [dataclasses.replace(one, at_s=one.at_s + 1001 * STEP_S) for one in second]
    resumed = [dataclasses.replace(one, at_s=one.at_s + 2002 * STEP_S + 3600.0) for one in second]
    for one in (*first, *later, *resumed):
        kept.append(one)
    rows = kept.samples
    assert sum(row.seconds for row in rows if row.phase == "phase1") == pytest.approx(1001 * STEP_S)
    pauses = [one for one, other in itertools.pairwise(rows) if sample_log.has_pause(one, other)]
    assert len(pauses) == 1
    assert pauses[0].at_s == later[-1].at_s


def test_a_resumed_run_goes_on_behind_the_rows_of_before(root: str) -> None:
    """Written, read, and gone on with; on disk and in an object store."""
    before = played("calm", loop=loop(0.25, gpu=1), phase="phase1", ours=(0, 1))
    write_samples(root, "10.0.0.1", before)
    write_samples(root, "fd00::2", steady(3, node="fd00::2"))
    assert storage.is_file(storage.join(root, "hardware", "fd00__2.jsonl"))
    again = read_samples(root, "10.0.0.1")
    assert len(again) == len(before)
    for one, other in zip(again, before, strict=True):
        assert one.to_dict() == other.to_dict()
        assert (one.loop, one.ours, one.phase) == (other.loop, other.ours, other.phase)
    assert {found.node for found in read_samples(root)} == {"10.0.0.1", "fd00::2"}
    assert read_samples(root, "10.0.0.9") == []
    assert read_samples(storage.join(root, "nothing")) == []


def test_lines_that_are_no_rows_are_left_out(tmp_path: Any) -> None:
    """Torn, alien, or of a later version with fields that are not known here."""
    line = json.dumps(row(gpus=(gpu(),)).to_dict() | {"later": 1, "host": {"cpu_percent": 5.0, "later": 2}})
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "a.jsonl").write_text(
        f'{line}\n[]\n{{"node": 3}}\n{line[:40]}\n\n"text"\n', encoding="utf-8"
    )
    (found,) = read_samples(str(tmp_path))
    assert found.host.cpu_percent == 5.0
    assert found.gpus[0].name == "NVIDIA L4"


def test_a_file_holds_no_number_that_json_does_not_know() -> None:
    """And is small: half a kilobyte for a row with one GPU."""
    content = row(gpus=(gpu(power_w=math.nan, temperature_c=math.inf),), host_cpu_percent=1 / 3).to_dict()
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    assert content["host"]["cpu_percent"] == 0.33333
    assert len(text) < 1000


def test_warnings_are_kept_as_they_were(tmp_path: Any) -> None:
    watch = AlertTracker()
    for one in played("overheating"):
        watch.update(one)
    assert read_alerts(str(tmp_path)) == []
    write_alerts(str(tmp_path), watch.passed)
    assert read_alerts(str(tmp_path)) == watch.passed
    (tmp_path / "hardware" / "warnings.json").write_text('[{"rule": 1}]', encoding="utf-8")
    assert read_alerts(str(tmp_path)) == []


# ---------------------------------------------------------------------- the summary


def test_a_summary_tells_peaks_means_sums_and_the_waited_time() -> None:
    """Of the trace that overheats: from the rows as they are, and from a tenth of them."""
    rows = played("overheating", loop=loop(0.2), phase="phase1")
    slowed = [one for one in rows if {"hardware slowdown", "thermal slowdown (driver)"} & set(one.gpus[0].throttle)]
    for some in (rows, SampleLog(rows).samples):
        (node,) = summarise(some)
        (card,) = node.gpus
        assert card.peak_temperature_c == max(one.gpus[0].temperature_c or 0 for one in rows)
        assert card.throttled_s["hardware slowdown"] == pytest.approx(80.0)
        assert set(card.throttled_s) == {
            "hardware slowdown", "thermal slowdown (hardware)", "thermal slowdown (driver)"
        }  # fmt: skip
        assert card.slowed_s == pytest.approx(80.0)
        assert len(slowed) == 23
        watts = [one.gpus[0].power_w or 0.0 for one in rows]
        assert card.energy_kwh == pytest.approx(sum(watts) * STEP_S / 3.6e6)
        assert node.wait_share == pytest.approx(0.2)
        assert (node.trained_s, node.seconds) == (600.0, 600.0)


def test_utilisation_counts_while_steps_are_taken() -> None:
    """What a GPU does while data is prepared says nothing of the training."""
    idle, busy = gpu(utilisation_percent=0.0), gpu(utilisation_percent=90.0)
    rows = [*steady(10, [idle]), *(row(10 + place, gpus=(busy,), loop=loop()) for place in range(10))]
    assert summarise(rows)[0].gpus[0].mean_utilisation_percent == pytest.approx(90.0)
    assert summarise(rows[:10])[0].gpus[0].mean_utilisation_percent == 0.0


def test_the_line_for_the_console_names_what_is_known() -> None:
    rows = played("overheating", loop=loop(0.2), phase="phase1")
    line = summary_line(summarise(rows))
    assert line == (
        "hardware: 1 GPU, 65 % busy, at most 86 °C, slowed down for 80 s, processors 40 % busy, "
        "memory at most 31 % full, waited for data 20 % of the training"
    )
    bare = NodeSample(at_s=BEGAN_S, seconds=5.0, node="a", host=HostReading(cpu_percent=50.0))
    assert summary_line(summarise([bare])) == "hardware: processors 50 % busy"
    assert summary_line(summarise([])) == ""
