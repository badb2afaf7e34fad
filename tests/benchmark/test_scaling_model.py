"""The model of a step on many workers: its parts, what they give for many, and the check that it can fail."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.benchmark.scaling_model import (
    GPUS,
    Compute,
    Link,
    Network,
    PhaseMeasurement,
    StepModel,
    compute_from_rate,
    efficiency,
    fit_compute,
    fit_link,
    fit_phase,
    forecast,
    images_each,
    worst_error,
)
from pharmclf.benchmark.scaling_options import ScalingOptions, assumptions
from pharmclf.config import ConfigError

SLOW, FAST = Link(1e9, 1e-4), Link(1e11, 1e-6)
MB = 1_000_000
times = st.floats(1e-6, 10)


def on(link: Link, per_node: int = 1, inside: Link = FAST) -> Network:
    return Network(link, inside, per_node)


@given(fixed_s=times, image_s=times)
def test_a_line_that_is_one_is_found(fixed_s: float, image_s: float):
    truth = Compute(fixed_s, image_s)
    found = fit_compute([(images, truth.seconds(images)) for images in (1, 4, 16, 64)])
    for images in (1, 10, 256):
        assert found.seconds(images) == pytest.approx(truth.seconds(images), rel=1e-6)


@given(st.lists(times, min_size=3, max_size=3))
def test_no_part_of_a_step_takes_less_than_nothing(seconds: list[float]):
    """Whatever is measured, also where the larger batch was the faster one."""
    points = list(zip((2, 4, 8), seconds, strict=True))
    found = fit_compute(points)
    assert found.fixed_s >= 0
    assert found.image_s >= 0
    nothing_fixed, all_fixed = Compute(0, seconds[2] / 8), Compute(seconds[0], 0)
    off = [sum((line.seconds(x) / y - 1) ** 2 for x, y in points) for line in (found, nothing_fixed, all_fixed)]
    assert off[0] <= min(off[1:]) + 1e-9


def test_two_batch_sizes_make_no_line_that_could_be_wrong():
    with pytest.raises(ValueError, match="three batch sizes"):
        fit_compute([(8, 0.1), (16, 0.2), (8, 0.1)])


@pytest.mark.parametrize("members", [2, 3, 8])
def test_a_link_is_found_by_its_all_reduces(members: int):
    points = [(size, SLOW.ring_s(size, members)) for size in (4, MB, 16 * MB)]
    found = fit_link(points, members)
    assert found.bytes_per_s == pytest.approx(SLOW.bytes_per_s)
    assert found.latency_s == pytest.approx(SLOW.latency_s)
    assert worst_error(points, [found.ring_s(size, members) for size, _ in points]) < 1e-9


def test_a_link_without_measurable_speed_has_none():
    found = fit_link([(4, 0.003), (8, 0.002)], 2)
    assert math.isinf(found.bytes_per_s)
    assert found.ring_s(1e9, 2) == 2 * found.latency_s > 0


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7])
def test_a_ring_takes_the_time_of_its_messages(members: int):
    """Played through: parts of numbers go round until everyone has every sum; one message of each at a time."""
    held = [[member * 100 + part for part in range(members)] for member in range(members)]
    wanted = [sum(row[part] for row in held) for part in range(members)]
    seconds, size = 0.0, 8.0 * members
    for turn in range(2 * (members - 1)):
        sent = []
        for member in range(members):
            part = (member - turn) % members if turn < members - 1 else (member + 1 - (turn - members + 1)) % members
            sent.append((part, held[member][part]))
        for member, (part, value) in enumerate(sent):
            neighbour = held[(member + 1) % members]
            neighbour[part] = neighbour[part] + value if turn < members - 1 else value
        seconds += size / members / SLOW.bytes_per_s + SLOW.latency_s
    assert all(row == wanted for row in held)
    assert SLOW.ring_s(size, members) == pytest.approx(seconds)


def test_the_bytes_of_a_ring_do_not_grow_with_it_for_ever():
    """Each sends less than twice the bytes, however many there are."""
    swift = Link(1e9, 0.0)
    seconds = [swift.ring_s(8 * MB, members) for members in GPUS]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert seconds[1] == pytest.approx(8 * MB / 1e9)
    assert seconds[-1] < 2 * 8 * MB / 1e9


def test_gpus_of_a_node_do_not_use_the_network():
    inside = Link(5e10, 1e-6)
    network = on(SLOW, 8, inside)
    assert network.all_reduce_s(MB, 8) == pytest.approx(inside.ring_s(MB, 8))
    assert network.all_reduce_s(MB, 9) == pytest.approx(inside.ring_s(MB, 8) + SLOW.ring_s(MB, 2))
    assert network.all_reduce_s(MB, 32) == pytest.approx(inside.ring_s(MB, 8) + SLOW.ring_s(MB, 4))
    assert on(SLOW).all_reduce_s(MB, 32) == pytest.approx(SLOW.ring_s(MB, 32))


def test_images_are_read_while_a_step_computes():
    """The longer of both counts, and the all-reduce comes on top."""
    compute, network = Compute(0.01, 0.001), on(SLOW)
    exchange = network.all_reduce_s(MB, 4)
    assert StepModel(compute, network, MB, 1e6).step_s(32, 4) == pytest.approx(0.042 + exchange)
    assert StepModel(compute, network, MB, 100.0).step_s(32, 4) == pytest.approx(0.32 + exchange)


def test_a_fixed_batch_is_shared_and_a_grown_one_is_not():
    assert [images_each(64, workers, "fixed") for workers in (1, 2, 3, 64, 128)] == [64, 32, 22, 1, None]
    assert [images_each(64, workers, "grown") for workers in (1, 2, 3, 64, 128)] == [64] * 5


def test_efficiency_is_images_a_second_against_one_worker():
    """Two workers that halve the step are as good as one each; so are two that do twice as much in the same time."""
    assert efficiency(0.1, 0.05, 2, "fixed") == pytest.approx(1.0)
    assert efficiency(0.1, 0.1, 2, "grown") == pytest.approx(1.0)
    assert efficiency(0.1, 0.1, 2, "fixed") == pytest.approx(0.5)


@given(
    fixed_s=st.floats(0, 0.1), image_s=st.floats(1e-5, 0.1), size=st.floats(1, 1e9), speed=st.floats(1e6, 1e12),
    latency_s=st.floats(0, 1e-2), stream=st.floats(1, 1e6),
)  # fmt: skip
def test_many_are_never_better_than_one_each(
    fixed_s: float, image_s: float, size: float, speed: float, latency_s: float, stream: float
):
    """From 1 downwards, and not better on a slower network; a grown batch never loses more than a fixed one."""
    found = {}
    for part in (1, 2):
        model = StepModel(Compute(fixed_s, image_s), on(Link(speed / part, latency_s)), size, stream)
        for batch in ("fixed", "grown"):
            rows = forecast(model, 64, batch)  # type: ignore[arg-type]
            found[part, batch] = [row.efficiency for row in rows]
            assert [row.gpus for row in rows] == [gpus for gpus in GPUS if batch == "grown" or gpus <= 64]
            assert rows[0].efficiency == pytest.approx(1.0)
            assert all(0 < row.efficiency <= 1 + 1e-9 for row in rows)
    for batch in ("fixed", "grown"):
        assert all(slow <= fast + 1e-9 for slow, fast in zip(found[2, batch], found[1, batch], strict=True))
    assert all(fixed <= grown + 1e-9 for fixed, grown in zip(found[1, "fixed"], found[1, "grown"], strict=False))


def test_a_known_speed_gives_the_rest_of_the_step():
    compute = compute_from_rate(1000.0, 64, 0.010)
    assert compute.seconds(64) == pytest.approx(0.064)
    assert compute.seconds(1) == pytest.approx(0.010 + 0.054 / 64)
    with pytest.raises(
        ConfigError, match=r"--gpu-fixed-ms: received 100, but a whole step of 64 images takes 64\.00 ms"
    ):
        compute_from_rate(1000.0, 64, 0.100)


# ---------------------------------------------------------------------- the check


def measured(step_s: float = 0.0) -> PhaseMeasurement:
    """What two workers measure that behave as the model says; `step_s` more in each common step."""
    compute, beside = Compute(0.010, 0.002), Compute(0.012, 0.0025)
    size = 4 * 250_000
    exchange = SLOW.ring_s(size, 2)
    return PhaseMeasurement(
        parameters=249_997,
        bytes=size,
        alone=[(images, compute.seconds(images)) for images in (4, 8, 16, 32)],
        beside=[(images, beside.seconds(images)) for images in (4, 8, 16, 32)],
        together={
            "fixed": beside.seconds(16) + exchange + step_s,
            "grown": beside.seconds(32) + exchange + step_s,
        },
        spread=1.0,
        bare=exchange,
        streamed=[],
    )


def test_workers_that_do_as_the_model_says_pass_the_check():
    phase = fit_phase("phase1", measured(), 32, 2, SLOW)
    assert [check.batch for check in phase.checks] == ["fixed", "grown"]
    for check, images in zip(phase.checks, (16, 32), strict=True):
        assert check.images == images
        assert check.error == pytest.approx(0.0, abs=1e-9)
        assert check.efficiency == pytest.approx(check.predicted_efficiency)
    assert phase.slowdown == pytest.approx(0.092 / 0.074)
    assert phase.compute_error < 1e-9


def test_a_step_that_takes_longer_than_its_parts_is_seen():
    """A planted 40 ms that no part explains, such as an exchange that waits: the error is its share of the step."""
    checks = fit_phase("phase1", measured(0.040), 32, 2, SLOW).checks
    assert [check.error for check in checks] == [pytest.approx(-0.040 / check.step_s) for check in checks]
    assert max(abs(check.error) for check in checks) > ScalingOptions().tolerance


def test_one_worker_is_fitted_and_not_checked():
    alone = dataclasses.replace(measured(), beside=[], together={}, bytes=0)
    phase = fit_phase("phase1", alone, 32, 1, None)
    assert phase.checks == []
    assert phase.bytes == 4 * 249_997
    assert dataclasses.asdict(phase.compute) == {"fixed_s": pytest.approx(0.010), "image_s": pytest.approx(0.002)}


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link_gbit": ()}, "--link-gbit: received none, expected a speed or more"),
        ({"link_gbit": (10.0, 0.0)}, "--link-gbit: received 10 0, expected speeds above 0"),
        ({"gpu_images_per_second": (-1.0,)}, "--gpu-images-per-second: received -1, expected speeds above 0"),
        ({"link_use": 1.5}, "--link-use: received 1.5, expected a share up to 1"),
        ({"link_use": 0.0}, "--link-use: received 0.0, expected a number above 0"),
        ({"gpus_per_node": 0}, "--gpus-per-node: received 0, expected a number above 0"),
        ({"tolerance": math.nan}, "--tolerance: received nan, expected a number above 0"),
        ({"link_latency_us": -1.0}, "--link-latency-us: received -1.0, expected a time, 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_under_its_flag(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        ScalingOptions(**options)
    assert str(caught.value).startswith(message)


def test_a_network_has_the_speeds_that_were_given():
    options = ScalingOptions(
        link_use=0.5, link_latency_us=20, gpus_per_node=4, gpu_link_gbit=800, gpu_link_latency_us=2
    )
    found = options.network(100)
    assert found == Network(Link(6.25e9, pytest.approx(20e-6)), Link(5e10, pytest.approx(2e-6)), 4)


def test_every_assumed_number_is_told():
    options = ScalingOptions(
        link_use=0.7, link_latency_us=17, gpus_per_node=4, gpu_link_gbit=345, gpu_link_latency_us=3,
        gpu_images_per_second=(2100.0, 1100.0), gpu_fixed_ms=9, stream_cores=5,
    )  # fmt: skip
    told = " ".join(assumptions(options, 64, 1234.0))
    for text in (
        "70%",
        "17 us",
        "4 share",
        "345 Gbit/s",
        "3 us",
        "2100 1100 images/s",
        "9 ms",
        "1234 a second",
        "5 cores",
    ):
        assert text in told
    assert "as fast as the one that was measured here" in " ".join(assumptions(ScalingOptions(), 64, 1.0))
