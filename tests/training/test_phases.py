"""The phases that a configuration asks for, and positions in a run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.config import ConfigError, PhaseConfig, RunConfig
from pharmclf.training.phases import Position, build_phases

POSITIONS = st.builds(Position, st.integers(0, 1), st.integers(0, 9999), st.integers(0, 999_999))


def test_the_first_phase_freezes_the_backbone_and_the_second_opens_it():
    """Head alone, then the upper blocks too; the second counts its epochs from where the first ends at the latest."""
    config = RunConfig(unfreeze_blocks=7, phase1=PhaseConfig(epochs=3), phase2=PhaseConfig(epochs=4))
    first, second = build_phases(config)
    assert (first.name, first.settings, first.unfreeze_blocks, first.first_epoch) == ("phase1", config.phase1, 0, 0)
    assert (second.name, second.settings, second.unfreeze_blocks) == ("phase2", config.phase2, 7)
    assert second.first_epoch == 3


def test_a_phase_of_no_epochs_is_left_out():
    """Either phase may run alone."""
    none, some = PhaseConfig(epochs=0), PhaseConfig(epochs=2)
    assert [phase.name for phase in build_phases(RunConfig(phase1=none, phase2=some))] == ["phase2"]
    assert [phase.name for phase in build_phases(RunConfig(phase1=some, phase2=none))] == ["phase1"]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", ()), ("224", ()), ("256-full", ()), ("288-128-256", (224, 224, 128, 128, 224)),
        ("128x3-224", (128, 128, 128, 224, 224)), ("128-224", (128, 128, 128, 224, 224)),
        ("128-160-192-224", (128, 128, 160, 192, 224)), ("128x1-160-224x2", (128, 160, 160, 224, 224)),
        ("128x3-full", (128, 128, 128, 224, 224)), ("128-128-full", (128, 128, 128, 128, 224)), ("full", ()),
        ("32-64-96-128-160-224", (64, 96, 128, 160, 224)), ("128x4-160-full", (128, 128, 128, 128, 224)),
    ],
)  # fmt: skip
def test_image_sizes_are_read_epoch_by_epoch(text: str, sizes: tuple[int, ...]):
    """Sizes without a number of epochs share what is left, the first the larger part; of too many the last count."""
    config = RunConfig(phase2=PhaseConfig(epochs=5, image_size=text))
    assert build_phases(config)[1].image_sizes == sizes


@pytest.mark.parametrize(
    "text", ["abc", "128-", "100-224", "128x9-224", "128x2-224x2", "128x5-full", "0-224", "fullest", "128x0-full"]
)
def test_sizes_that_cannot_be_are_refused(text: str):
    """Words, sizes that halve unevenly, epochs that do not add up."""
    with pytest.raises(ConfigError, match=r"phase2.image_size: received .* for 5 epochs, expected"):
        RunConfig(phase2=PhaseConfig(epochs=5, image_size=text))


@pytest.mark.parametrize("text", ["128", "224-128"])
def test_the_last_epoch_has_the_size_of_the_model(text: str):
    """Phase 1 may end smaller, if phase 2 follows."""
    with pytest.raises(ConfigError, match="expected the model's image_size 224 in the last epoch"):
        RunConfig(phase2=PhaseConfig(epochs=5, image_size=text))
    RunConfig(phase1=PhaseConfig(image_size="128"))
    with pytest.raises(ConfigError):
        RunConfig(phase1=PhaseConfig(image_size="128"), phase2=PhaseConfig(epochs=0))


@given(POSITIONS, POSITIONS)
def test_positions_are_ordered_by_phase_then_epoch_then_step(one: Position, two: Position):
    """The later one is further in the run, and labels sort alike."""
    places = [(position.phase, position.epoch, position.step) for position in (one, two)]
    assert (one < two) == (places[0] < places[1])
    assert (one.label < two.label) == (one < two)


@given(POSITIONS)
def test_a_position_survives_json(position: Position):
    """It comes back as it was."""
    assert Position(**json.loads(json.dumps(position.to_dict()))) == position


def test_a_label_is_readable():
    """People count phases from 1."""
    assert Position(0, 3, 17).label == "phase1-epoch0003-step000017"
