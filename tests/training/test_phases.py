"""The phases that a configuration asks for, and positions in a run."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pharmclf.config import PhaseConfig, RunConfig
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
