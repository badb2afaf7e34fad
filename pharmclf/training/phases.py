"""Phases of a run and positions in it; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pharmclf.config import PhaseConfig, RunConfig
from pharmclf.config.parsing import parse_image_sizes
from pharmclf.core.events import EpochRecord


@dataclass(frozen=True)
class Phase:
    """A phase of training."""

    name: str
    """phase1 or phase2."""
    settings: PhaseConfig
    unfreeze_blocks: int
    """Blocks of the backbone that are trained with the head."""
    first_epoch: int
    """Number of its first epoch among all epochs of the run, whether or not an earlier phase stops early."""
    image_sizes: tuple[int, ...] = ()
    """Side of the training images in pixels, epoch by epoch; empty: that of the model."""

    @property
    def number(self) -> int:
        """0 for phase1, 1 for phase2."""
        return phase_number(self.name)

    def step_costs(self, model_size: int) -> list[float]:
        """Time of a training step in each epoch, as a multiple of that at the model's image size: by the pixels."""
        return [(side / model_size) ** 2 for side in self.image_sizes or [model_size] * self.settings.epochs]


def phase_number(name: str) -> int:
    """0 for phase1, 1 for phase2."""
    return int(name.removeprefix("phase")) - 1


def build_phases(config: RunConfig) -> tuple[Phase, ...]:
    """Phases with epochs: phase1 trains the head on the frozen backbone, phase2 also the upper blocks."""
    both = (
        Phase("phase1", config.phase1, 0, 0, _sizes("phase1", config.phase1, config.image_size)),
        Phase(
            "phase2",
            config.phase2,
            config.unfreeze_blocks,
            config.phase1.epochs,
            _sizes("phase2", config.phase2, config.image_size),
        ),
    )
    return tuple(phase for phase in both if phase.settings.epochs > 0)


def _sizes(name: str, settings: PhaseConfig, model_size: int) -> tuple[int, ...]:
    return parse_image_sizes(settings.image_size, settings.epochs, f"{name}.image_size", model_size)


def number_epochs(config: RunConfig, history: Iterable[EpochRecord]) -> dict[int, EpochRecord]:
    """Records of epochs by their number from 1, counted over both phases."""
    first = {phase.name: phase.first_epoch for phase in build_phases(config)}
    return {first[record.phase] + record.epoch + 1: record for record in history}


@dataclass(frozen=True, order=True)
class Position:
    """Position of a run: before training step `step` of epoch `epoch` of phase number `phase`, all from 0."""

    phase: int
    epoch: int
    step: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"phase": self.phase, "epoch": self.epoch, "step": self.step}

    @property
    def label(self) -> str:
        """Folder name; sorts by position."""
        return f"phase{self.phase + 1}-epoch{self.epoch:04d}-step{self.step:06d}"
