"""One and two workers, measured on this machine: what they report, and that the model's check is made of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from pharmclf.benchmark.scaling_model import GPUS
from pharmclf.benchmark.scaling_options import ScalingOptions
from pharmclf.config import ConfigError, PhaseConfig, RunConfig


def config_of(data: str, storage: Path, **settings: int) -> RunConfig:
    phase = PhaseConfig(epochs=1, learning_rate=1e-4)
    return RunConfig(
        data=data, storage=str(storage), phase1=phase, phase2=phase, accelerator="cpu",
        **{"image_size": 32, "batch_size": 8} | settings,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.slow
def test_two_workers_are_measured_and_the_model_is_checked_against_them(
    shared_ray: None, drawn_images: str, tmp_path: Path
):
    """Bytes as the graph sums them are those of the trained parameters and of three sums; every part has a time."""
    from pharmclf.benchmark.scaling import PLOT_FILE, benchmark_scaling

    lines: list[str] = []
    options = ScalingOptions(gpu_images_per_second=(500.0, 400.0), link_gbit=(10.0, 100.0), tolerance=1e-9)
    report = benchmark_scaling(config_of(drawn_images, tmp_path), options, lines.append)
    assert report["workers"] == 2
    assert report["link"]["bytes_per_s"] > 0
    assert [phase["phase"] for phase in report["phases"]] == ["phase1", "phase2"]
    for phase in report["phases"]:
        assert phase["bytes"] == 4 * phase["parameters"] + 12
        assert [images for images, _ in phase["alone"]] == [images for images, _ in phase["beside"]] == [1, 2, 4, 8]
        assert phase["bare"] > 0
        assert [check["images"] for check in phase["checks"]] == [4, 8]
        for check in phase["checks"]:
            assert check["step_s"] == phase["together"][check["batch"]] > phase["bare"] / 2
            assert 0 < check["efficiency"] < 1.5
        assert [streamed["workers"] for streamed in phase["streamed"]] == [1, 2]
        assert all(0 <= streamed["wait_s"] < streamed["step_s"] for streamed in phase["streamed"])
    assert report["phases"][1]["parameters"] > report["phases"][0]["parameters"]
    assert report["holds"] is False  # nothing is exact to a billionth
    assert any("does NOT hold" in line for line in lines)
    assert len(report["rows"]) == 2 * 2 * len(GPUS) + 2 * 2 * 4  # of a batch of 8 no more than 8 have a part
    with Image.open(io.BytesIO((tmp_path / PLOT_FILE).read_bytes())) as picture:
        assert picture.format == "PNG"


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path: Path):
    """Too small a batch, or speeds that do not fit: said at once."""
    from pharmclf.benchmark.scaling import benchmark_scaling

    with pytest.raises(ConfigError, match="batch_size: received 2, expected 4 or more"):
        benchmark_scaling(config_of("demo", tmp_path, batch_size=2), ScalingOptions(), print)
    with pytest.raises(
        ConfigError, match="--gpu-images-per-second: received 1 speeds, expected one for each of phase1"
    ):
        benchmark_scaling(config_of("demo", tmp_path), ScalingOptions(gpu_images_per_second=(100.0,)), print)
    options = ScalingOptions(gpu_images_per_second=(10_000.0, 100.0))
    with pytest.raises(ConfigError, match="--gpu-fixed-ms: received 10"):
        benchmark_scaling(config_of("demo", tmp_path), options, print)
