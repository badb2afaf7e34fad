"""--find-lr on drawn images: curves, a picture, a proposal, and no run disturbed."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.recorder import Recorder

from pharmclf import storage
from pharmclf.config import AugmentConfig, ConfigError, PhaseConfig, RunConfig
from pharmclf.training.context import TrainingDivergedError
from pharmclf.training.lr_finder import HIGHEST, LOWEST, LrCurve, smooth, suggest_lr

pytestmark = [pytest.mark.ray, pytest.mark.tf]


@pytest.fixture(scope="module")
def config(drawn_images: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return RunConfig(
        name="sought", data=drawn_images, storage=str(tmp_path_factory.mktemp("rates")), image_size=64, batch_size=8,
        unfreeze_blocks=2, augment=AugmentConfig(views=2), feature_cache="always", num_workers="0",
        phase1=PhaseConfig(epochs=2), phase2=PhaseConfig(epochs=1),
    )  # fmt: skip


def test_each_phase_gets_a_curve_and_no_run_is_begun(config: RunConfig):
    """Rates rise until the loss breaks down; the picture opens; what is proposed follows from the curve that is kept;
    the run of that name has not begun."""
    from pharmclf.find_rate import find_learning_rates

    lines: list[str] = []
    assert find_learning_rates(config, lines.append) == 0
    home = Path(config.storage)
    assert not (home / "sought").exists()
    found: dict[str, Any] = storage.read_json(str(home / "find-lr-sought.json"))
    assert [phase["phase"] for phase in found["phases"]] == ["phase1", "phase2"]
    for phase in found["phases"]:
        rates, losses = phase["rates"], phase["losses"]
        assert len(rates) == len(losses) > 60
        assert rates[0] == pytest.approx(LOWEST)
        assert np.all(np.diff(rates) > 0)
        assert rates[-1] <= HIGHEST
        assert phase["ended"] or rates[-1] == pytest.approx(HIGHEST)
        assert phase["configured"] == 1e-4
        proposal = suggest_lr(rates, losses, diverged=bool(phase["ended"]))
        assert (phase["proposed"], phase["reason"]) == (proposal.rate, proposal.reason)
    first = found["phases"][0]
    assert first["proposed"] is not None
    assert 1e-5 < first["proposed"] < 0.1
    assert smooth(first["losses"]).min() < 0.9 * np.mean(first["losses"][:30])
    assert any(f"--phase1.learning-rate {first['proposed']:.2g}" in line for line in lines)
    with Image.open(home / "find-lr-sought.png") as picture:
        assert picture.size[0] > 1000
        picture.load()


def test_what_it_cannot_do_is_refused_before_anything_is_read(config: RunConfig):
    from pharmclf.find_rate import find_learning_rates

    with pytest.raises(ConfigError, match="microbatch: received auto"):
        find_learning_rates(dataclasses.replace(config, microbatch="auto"), lambda _: None)


def test_a_curve_without_a_proposal_is_drawn_too():
    """Even where the loss broke down at the first step."""
    from pharmclf.reporting.figures import png_bytes
    from pharmclf.reporting.lr_finder_plot import lr_finder_figure

    rising = LrCurve("phase2", [1e-7, 1e-6, 1e-5], [1.0, 2.0, 3.0], "the loss is not finite at a rate of 0.0001")
    empty = LrCurve("phase1", [], [], "the loss is not finite at a rate of 1e-07")
    curves = [(each, 1e-4, suggest_lr(each.rates, each.losses, diverged=True)) for each in (rising, empty)]
    drawn = png_bytes(lr_finder_figure("<name>", curves))
    with Image.open(io.BytesIO(drawn)) as picture:
        picture.load()


def test_a_rate_that_breaks_phase_1_is_named_before_phase_2_is_tested(make_job: Any, tmp_path: Path):
    """What phase 2 would be tested on is no model any more, and its own curve would take the blame."""
    from pharmclf.find_rate import range_test

    said: list[str] = []
    words = r"in phase1.* at a rate of 3e\+38\. Lower phase1\.learning_rate"
    with pytest.raises(TrainingDivergedError, match=words):
        range_test(make_job(str(tmp_path)), said.append, lambda _: 3e38, lambda: False, Recorder())
    assert [line.partition(":")[0] for line in said] == ["phase1"]
