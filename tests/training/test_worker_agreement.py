"""Workers that continue a run together: one checkpoint, one position, the same weights, whatever each node sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.worker_pair import Scene, train_as_pair

from pharmclf.config import AugmentConfig, OptimizerConfig, PhaseConfig
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.training.checkpoint import newest_checkpoint
from pharmclf.training.context import TrainingContext

pytestmark = [pytest.mark.ray, pytest.mark.tf]
EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Pair:
    """What came of the scenes, for rank 0 and rank 1, and the runs."""

    jobs: dict[str, TrainingContext]
    lines: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pair(make_job: Any, drawn_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two processes that train a head on kept features, one step an epoch, one run after the other."""
    home = tmp_path_factory.mktemp("pair")
    settings = {
        "batch_size": 64,
        "augment": AugmentConfig(rotation_deg=180, views=1),
        "unfreeze_blocks": 0,
        "optimizer": OptimizerConfig(class_weights="auto"),
        "feature_cache_dtype": "float32",
        "phase1": PhaseConfig(epochs=EPOCHS, learning_rate=1e-3),
        "phase2": PhaseConfig(epochs=0),
    }
    whole = make_job(str(home / "whole"), **settings)
    config = dataclasses.replace(whole.config, feature_cache="always", storage=str(home / "kept"))
    wish = FeatureRequest(
        config, drawn_manifest, config.weights, [PhaseDemand("phase1", 0, 1)], print, lambda: False, print
    )
    whole = dataclasses.replace(whole, activations=get_or_compute(wish), saves_models=False)
    broken, other = (dataclasses.replace(whole, folder=str(home / name)) for name in ("broken", "other"))
    scenes = {
        "whole": Scene(job=whole),
        "stopped": Scene(job=broken, stop_after=2),  # behind the training and the validation of an epoch
        "late": Scene(job=broken, other_folder=str(home / "seen-late"), shown_after_s=4.0),
        "other": Scene(job=other, other_weights="none"),
        "never": Scene(job=whole, other_folder=str(home / "seen-never"), patience_s=2.0),
    }
    found = train_as_pair(list(scenes.values()), home)
    lines = {name: [each[place] for each in found if place < len(each)] for place, name in enumerate(scenes)}
    return Pair({"whole": whole, "broken": broken}, lines)


def tensors(job: TrainingContext) -> dict[str, dict[str, np.ndarray]]:
    found = newest_checkpoint(job.checkpoints)
    assert found is not None
    return found[1]


def without_times(line: dict[str, Any]) -> list[dict[str, Any]]:
    history = line["outcome"]["history"]
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history]


def test_both_workers_stop_in_the_same_step_of_an_epoch_of_one_step(pair: Pair) -> None:
    """The chief's wish in the second training step of the run ends both behind it, before its validation."""
    chief, other = pair.lines["stopped"]
    assert [line["outcome"]["status"] for line in (chief, other)] == ["stopped"] * 2
    assert [len(line["outcome"]["history"]) for line in (chief, other)] == [1, 1]
    assert chief["notes"][-1] == "stopped on request; checkpoint phase1-epoch0001-step000001 is written"


def test_a_node_that_sees_a_checkpoint_late_waits_for_the_chiefs(pair: Pair) -> None:
    """Rank 1 lists an empty folder at first; both go on from the same validation, to the run that was never stopped."""
    chief, other = pair.lines["late"]
    assert "resumed from phase1-epoch0001-step000001" in chief["notes"]
    assert [line["outcome"]["status"] for line in (chief, other)] == ["complete"] * 2
    assert without_times(chief) == without_times(other) == without_times(pair.lines["whole"][0])
    ours, theirs = tensors(pair.jobs["broken"]), tensors(pair.jobs["whole"])
    for file in ("weights", "optimizer"):
        assert ours[file].keys() == theirs[file].keys()
        assert all(np.array_equal(ours[file][name], theirs[file][name]) for name in theirs[file])


def test_a_node_that_never_sees_the_checkpoint_ends_the_run_and_is_named(pair: Pair) -> None:
    """It does not begin at another place: one line says which rank misses which file, and what to do."""
    (other,) = pair.lines["never"]
    assert other["error"].startswith(
        "WorkersDisagreeError: rank 1 has not found within 2 s what rank 0 continues from: "
    )
    assert f"phase1-epoch000{EPOCHS}-step000000: weights.safetensors cannot be read" in other["error"]
    assert other["error"].endswith("Give a --storage that all nodes see alike, such as one shared mount or s3://")


def test_workers_with_other_weights_take_no_step(pair: Pair) -> None:
    """A backbone with other weights on rank 1: both end with the same line, which names it; nothing is written."""
    chief, other = pair.lines["other"]
    assert chief["error"] == other["error"]
    assert chief["error"].startswith(
        "WorkersDisagreeError: the workers differ before the first step, expected that of "
    )
    assert "received rank 1: phase1-epoch0000-step000000, weights " in chief["error"]
    assert chief["polls"] == 0
