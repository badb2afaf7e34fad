"""The step of each phase is measured in one process; what one phase breaks costs the others nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from pharmclf.benchmark import devices
from pharmclf.benchmark.devices import StepFigures, list_gpus, measure_steps
from pharmclf.config import ConfigError, HeadConfig, RunConfig
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.monitoring import GpuReading
from pharmclf.training.phases import Phase, build_phases

CONFIG = RunConfig(image_size=32, batch_size=4, weights="none", num_workers="0", head=HeadConfig(dense=()))
PHASES = build_phases(CONFIG)


@pytest.mark.tf
def test_each_phase_has_its_own_figures_from_one_process():
    found = run_in_subprocess(partial(measure_steps, CONFIG, PHASES, "float32", None, 0.1))
    assert list(found) == ["phase1", "phase2"]
    for values in found.values():
        assert values.skipped == ""
        assert values.images_per_second > 0
    assert 0 < found["phase1"].memory_bytes <= found["phase2"].memory_bytes


def dies_in_phase2(
    config: RunConfig, phases: Sequence[Phase], precision: str, gpu: int | None, seconds: float
) -> dict[str, StepFigures]:
    found = {}
    for phase in phases:
        if phase.name == "phase2":
            os._exit(9)  # as the system's want of memory ends it
        found[phase.name] = StepFigures(images_per_second=seconds, skipped=f"{precision} {gpu} {config.batch_size}")
    return found


def test_a_phase_that_kills_its_process_leaves_the_figures_of_the_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "measure_steps", dies_in_phase2)
    found = devices.measure_steps_in_subprocess(CONFIG, PHASES, "float32", None, 2.0)
    assert found["phase1"].images_per_second == 2.0
    assert found["phase2"] == StepFigures(skipped="exit code 9")


def refuses(*_: Any) -> dict[str, StepFigures]:
    raise ConfigError("backbone: received nothing of the kind")


def test_bad_input_is_not_taken_for_a_device_that_cannot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "measure_steps", refuses)
    with pytest.raises(ConfigError, match="nothing of the kind"):
        devices.measure_steps_in_subprocess(CONFIG, PHASES, "float32", None, 2.0)


class TwoCards:
    num_gpus = 2

    def read(self, index: int) -> GpuReading:
        return GpuReading(index=index, name=f"card {index}")

    def processes(self, index: int) -> list[Any]:  # noqa: ARG002
        return []


@pytest.mark.parametrize(("visible", "indices"), [(None, [0, 1]), ("1", [1]), ("0, 1", [0, 1]), ("", []), ("-1", [])])
def test_only_gpus_that_the_process_may_see_are_measured(visible: str | None, indices: list[int]):
    assert [index for _, index in list_gpus(TwoCards(), visible)] == indices
