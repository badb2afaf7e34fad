"""Losses and weights of tiny runs equal the recorded ones, and each other where they must."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
from goldens import GOLDENS
from small_runs import HEADS, SETTINGS, Trained

from pharmclf.config import PhaseConfig

pytestmark = [pytest.mark.ray, pytest.mark.tf]

LOSSES, HASHES = GOLDENS / "runs" / "losses.json", GOLDENS / "runs" / "weights.json"
NAMES = ("one worker", "two workers", "feature cache", *(f"head {number}" for number in range(len(HEADS))))
# Other instructions and thread counts add in another order: that moves a loss of these runs by 1e-5 to 1e-4, another
# order of images, another rate or augmentation by more than 1e-2.
TOLERANCE = 2e-3
# of the instruction sets that TensorFlow's kernels choose from
_INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "avx_vnni")


def kind_of_machine() -> str:
    """All that decides the bits of a sum in TensorFlow on a processor."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    about = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(about.get("flags", about.get("Features", "")).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = about.get("model name", platform.processor() or platform.machine())
    found = " ".join(flag for flag in _INSTRUCTIONS if flag in flags)
    return f"{model}; {found}; {cores} cores; tensorflow {importlib.metadata.version('tensorflow')}"


@pytest.fixture(scope="module")
def make(make_job: Any, drawn_manifest: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes small jobs by the names of their folders; `features` adds frozen features."""
    home = tmp_path_factory.mktemp("runs")

    def make_one(name: str, *, features: bool = False, **settings: Any) -> Any:
        job = make_job(str(home / name), **SETTINGS | settings)
        job = dataclasses.replace(job, saves_models=False)
        return small_runs.with_features(job, drawn_manifest, str(home)) if features else job

    return make_one


@pytest.fixture(scope="module")
def runs(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """All runs with recorded losses."""
    heads = [make(f"head {number}", features=True, unfreeze_blocks=0, **own) for number, own in enumerate(HEADS)]
    found = {
        "one worker": small_runs.train(make("one")),
        "feature cache": small_runs.train(make("cached", features=True)),
        "two workers": small_runs.train_by_two(make("two", features=True), tmp_path_factory.mktemp("pair") / "two"),
    }
    together = small_runs.train_heads_together(heads)
    return found | {f"head {number}": trained for number, trained in enumerate(together)}


def test_the_losses_are_those_of_before(runs: dict[str, Trained], request: pytest.FixtureRequest) -> None:
    """Epoch by epoch, training and validation, to a tolerance that another machine keeps."""
    if request.config.getoption("--renew-goldens"):
        _write(LOSSES, {name: runs[name].losses for name in NAMES})
    expected = json.loads(LOSSES.read_text(encoding="utf-8"))
    for name in NAMES:
        assert runs[name].losses == pytest.approx(expected[name], rel=TOLERANCE), name


def test_the_weights_are_those_of_before_to_the_last_bit(
    runs: dict[str, Trained], request: pytest.FixtureRequest
) -> None:
    """Compared on kinds of machine with recorded hashes; --renew-goldens adds a kind."""
    known = json.loads(HASHES.read_text(encoding="utf-8")) if HASHES.is_file() else {}
    kind = kind_of_machine()
    if request.config.getoption("--renew-goldens"):
        known[kind] = {name: runs[name].sha256 for name in NAMES}
        _write(HASHES, dict(sorted(known.items())))
    if kind not in known:
        pytest.skip(f"no hashes are recorded for this kind of machine: {kind}. Add them with --renew-goldens")
    assert {name: runs[name].sha256 for name in NAMES} == known[kind]


def test_a_killed_run_that_is_resumed_has_the_bits_of_the_unbroken_one(
    runs: dict[str, Trained], make: Callable[..., Any]
) -> None:
    """Killed in phase 2, some steps after its newest checkpoint."""
    assert small_runs.train_killed(make("killed"), batches=16).has_bits_of(runs["one worker"])


def test_frozen_features_give_the_losses_and_weights_of_streamed_images(runs: dict[str, Trained]) -> None:
    """The same views, so the same steps; only the place where the prefix is computed differs."""
    streamed, cached = runs["one worker"], runs["feature cache"]
    assert cached.losses == pytest.approx(streamed.losses, abs=1e-4)
    assert cached.difference(streamed) <= 1e-3


def test_two_workers_take_the_steps_of_one(runs: dict[str, Trained]) -> None:
    """On the same features: only the order of sums differs."""
    assert runs["two workers"].losses == pytest.approx(runs["feature cache"].losses, rel=1e-6)
    assert runs["two workers"].difference(runs["feature cache"]) <= 1e-6


def test_a_head_among_others_is_trained_as_by_itself(runs: dict[str, Trained], make: Callable[..., Any]) -> None:
    """The second of the heads that are trained together, trained alone."""
    alone = small_runs.train(make("alone", features=True, unfreeze_blocks=0, **HEADS[1]))
    assert runs["head 1"].losses == pytest.approx(alone.losses, abs=1e-4)
    assert runs["head 1"].difference(alone) <= 1e-4


def test_a_resumed_run_with_growing_images_has_the_bits_of_the_unbroken_one(make: Callable[..., Any]) -> None:
    """Phase 2 trains an epoch at half the size of the model; the kill is in it."""
    growing = {"phase2": PhaseConfig(epochs=2, learning_rate=1e-4, image_size="32x1-64")}
    whole = small_runs.train(make("growing", **growing))
    assert small_runs.train_killed(make("growing, killed", **growing), batches=16).has_bits_of(whole)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
