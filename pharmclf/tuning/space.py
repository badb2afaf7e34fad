"""What a sweep searches: parameters with their ranges and conditions, from YAML, with every check. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pharmclf.config import RunConfig, from_dict, to_dict
from pharmclf.core.errors import ConfigError

Value = float | int | str | bool
STRENGTH = "augment.strength"
"""Not a field of a run: it multiplies rotation, shift, shear and zoom of the plain run's augmentation."""
KINDS: dict[str, Literal["float", "int", "choice"]] = {
    "phase1.learning_rate": "float",
    "phase2.learning_rate": "float",
    "head.dropout": "float",
    "unfreeze_blocks": "int",
    "optimizer.label_smoothing": "float",
    "optimizer.weight_decay": "float",
    "batch_size": "int",
    STRENGTH: "float",
    "backbone": "choice",
}
"""The parameters that can be searched, and the kind of their values."""
_MAX_COMBINATIONS = 100_000  # of a grid
_MAX_AUGMENTATION = {"rotation_deg": 180.0, "shift": 1.0, "shear": 1.0, "zoom": 0.9}  # what a strength may make of each


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched parameter: a range or some values, and on which other one it depends."""

    name: str
    """Dotted name of the setting, or `augment.strength`."""
    low: float = 0.0
    """Least value of a range."""
    high: float = 0.0
    """Largest value of a range, included."""
    log: bool = False
    """Whether it is searched by factors and not by differences."""
    values: tuple[Value, ...] = ()
    """The values, instead of a range."""
    points: int = 0
    """Values that a grid takes of a range; 0: every whole number, or as the grid says."""
    when: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The parameter counts only where these others lie in these ranges; elsewhere it has the plain run's value."""

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return KINDS[self.name] == "int"

    def grid(self) -> list[Value]:
        """The values that a grid takes.

        Raises:
            ConfigError: a range of fractions without `points`.
        """
        if self.values:
            return list(self.values)
        if self.is_whole and not self.points:
            return list(range(int(self.low), int(self.high) + 1))
        if not self.points:
            raise ConfigError(
                f"space: {self.name}: received a range without points, expected how many values a grid takes of it. "
                "Add points: 4, or give values"
            )
        shares = [place / max(1, self.points - 1) for place in range(self.points)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            found = [self.low + (self.high - self.low) * share for share in shares]
        found = [min(self.high, max(self.low, value)) for value in found]  # rounding may leave the range
        return list(dict.fromkeys(round(value) for value in found)) if self.is_whole else list(dict.fromkeys(found))


@dataclass(frozen=True)
class Space:
    """All searched parameters, those on which others depend first."""

    parameters: tuple[Parameter, ...]

    @property
    def log_names(self) -> tuple[str, ...]:
        """Names of those that are searched by factors."""
        return tuple(parameter.name for parameter in self.parameters if parameter.log)

    def is_active(self, parameter: Parameter, values: Mapping[str, Value]) -> bool:
        """Whether a parameter counts, given the values of those before it."""
        return all(low <= float(values[name]) <= high for name, (low, high) in parameter.when.items())

    def values_of(self, config: RunConfig) -> dict[str, Value]:
        """The value of every parameter in a plain run."""
        return {parameter.name: _value_of(config, parameter.name) for parameter in self.parameters}

    def config(self, base: RunConfig, values: Mapping[str, Value]) -> RunConfig:
        """A trial's configuration: the plain run's with some values set.

        Raises:
            ConfigError: a value that no run can have.
        """
        plain = to_dict(base)
        for name, value in values.items():
            if name == STRENGTH:
                for key, most in _MAX_AUGMENTATION.items():
                    plain["augment"][key] = min(most, plain["augment"][key] * float(value))
                continue
            *groups, last = name.split(".")
            inner = plain
            for group in groups:
                inner = inner[group]
            inner[last] = value
        return from_dict(plain, source="space")

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of the values of a grid, each once; what does not count is left out of it.

        Raises:
            ConfigError: as `Parameter.grid`, or there are too many.
        """
        seen, grids = set(), [parameter.grid() for parameter in self.parameters]
        if (count := math.prod(len(grid) for grid in grids)) > _MAX_COMBINATIONS:
            raise ConfigError(
                f"space: received a grid of {count} combinations, expected {_MAX_COMBINATIONS} or fewer. "
                "Give fewer points or values, or another --search"
            )
        for values in itertools.product(*grids):
            every = {parameter.name: value for parameter, value in zip(self.parameters, values, strict=True)}
            chosen = {p.name: every[p.name] for p in self.parameters if self.is_active(p, every)}
            if (key := tuple(chosen.items())) not in seen:
                seen.add(key)
                yield chosen

    def possible_values(self, base: RunConfig, name: str) -> list[Value]:
        """All values that a parameter can have in a trial, the plain run's among them: of whole numbers or of values.

        Args:
            name: `unfreeze_blocks`, or one that is searched by values.
        """
        found = [_value_of(base, name)]
        for parameter in self.parameters:
            if parameter.name == name:
                found += list(parameter.values) or list(range(int(parameter.low), int(parameter.high) + 1))
        return list(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by which a resumed sweep knows its space again."""

        def edge(value: float) -> float | None:  # JSON knows no infinity
            return value if math.isfinite(value) else None

        def plain(parameter: Parameter) -> dict[str, Any]:
            when = {name: [edge(low), edge(high)] for name, (low, high) in parameter.when.items()}
            return dataclasses.asdict(parameter) | {"values": list(parameter.values), "when": when}

        return {parameter.name: plain(parameter) for parameter in self.parameters}


def check_depths(space: Space, base: RunConfig, blocks: Mapping[str, int], source: str) -> None:
    """See whether every backbone that a trial can have has as many blocks as one may unfreeze.

    Args:
        blocks: of each backbone, by its name.

    Raises:
        ConfigError: one has fewer.
    """
    deepest = max(int(depth) for depth in space.possible_values(base, "unfreeze_blocks"))
    for name, most in blocks.items():
        if deepest > most:
            raise ConfigError(
                f"{source}: unfreeze_blocks: received up to {deepest}, but {name} has {most} blocks. "
                f"Give {most} or less as high"
            )


def _value_of(config: RunConfig, name: str) -> Value:
    if name == STRENGTH:
        return 1.0
    value: Value = operator.attrgetter(name)(config)
    return value
