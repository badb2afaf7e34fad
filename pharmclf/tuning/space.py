"""What a sweep searches: parameters with their ranges and conditions, from YAML, with every check. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pharmclf.config import RunConfig, from_dict, to_dict
from pharmclf.core.errors import ConfigError, did_you_mean, first_line

Value = float | int | str | bool
STRENGTH = "augment.strength"
"""Not a field of a run: it multiplies rotation, shift, shear and zoom of the plain run's augmentation."""
_KINDS: dict[str, Literal["float", "int", "choice"]] = {
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
_CACHE_RELEVANT = (STRENGTH, "backbone")  # each value of them needs a pass over the images
_KEYS = ("low", "high", "scale", "values", "points", "when")
_MAX_POINTS = 1000
_MAX_WHOLE = 1_000_000
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
        return _KINDS[self.name] == "int"

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
            base: the plain run.
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


def load_space(path: str | Path, base: RunConfig) -> Space:
    """Read a space file, and try its bounds on the plain run.

    Raises:
        ConfigError: no such file, an unknown key (the nearest known one is named), an empty range, a value that no run
            can have.
    """
    try:
        mapping = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "") or "not a text file"
        raise ConfigError(f"--space {path}: {reason}. Give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--space {path}: not YAML: {first_line(error)}") from error
    except ValueError as error:  # a date that there is not, which YAML reads as one
        raise ConfigError(f"--space {path}: not YAML that can be read: {error}. Give numbers") from error
    return build_space(mapping, base, str(path))


def build_space(mapping: Any, base: RunConfig, source: str) -> Space:
    """A space from plain values: by the name of each parameter its range or values.

    Args:
        mapping: {name: {low, high[, scale: log][, points][, when: {name: {low, high}}]} or {values: [...]}}.
        base: the plain run.
        source: named in errors.

    Raises:
        ConfigError: as `load_space`.
    """
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f"{source}: received {mapping!r}, expected parameters with their ranges")
    found = {str(name): _parse_parameter(str(name), about, source) for name, about in mapping.items()}
    for parameter in found.values():
        for other in parameter.when:
            if other not in found or found[other].when or not _is_numeric(found[other]):
                raise ConfigError(
                    f"{source}: {parameter.name}: when: received {other!r}, expected a searched number that depends "
                    "on nothing itself"
                )
    space = Space(tuple(sorted(found.values(), key=lambda parameter: bool(parameter.when))))
    for parameter in space.parameters:
        for bound in parameter.values or (parameter.low, parameter.high):
            value = int(bound) if parameter.is_whole else bound
            try:
                space.config(base, {parameter.name: value})
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from error
    return space


def check_depths(space: Space, base: RunConfig, blocks: Mapping[str, int], source: str) -> None:
    """See whether every backbone that a trial can have has as many blocks as one may unfreeze.

    Args:
        blocks: of each backbone, by its name.
        source: named in errors.

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
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _is_numeric(parameter: Parameter) -> bool:
    return _KINDS[parameter.name] != "choice"


def _parse_parameter(name: str, about: Any, source: str) -> Parameter:
    if name not in _KINDS:
        raise ConfigError(f"{source}: unknown parameter {name}; {did_you_mean(name, _KINDS)}")
    if not isinstance(about, dict):
        raise ConfigError(f"{source}: {name}: received {about!r}, expected low and high, or values")
    for key in about:
        if key not in _KEYS:
            raise ConfigError(f"{source}: unknown key {name}.{key}; {did_you_mean(key, _KEYS)}")
    when, conditions = {}, about.get("when") or {}
    if not isinstance(conditions, dict):
        raise ConfigError(f"{source}: {name}: when: received {conditions!r}, expected parameters with low or high")
    for other, span in conditions.items():
        if not isinstance(span, dict) or not span or not set(span) <= {"low", "high"}:
            raise ConfigError(f"{source}: {name}: when: {other}: received {span!r}, expected low, high or both")
        low, high = (
            _parse_number(span.get(key, edge), f"{name}: when: {other}.{key}", source, finite=False)
            for key, edge in (("low", -math.inf), ("high", math.inf))
        )
        if low > high:
            raise ConfigError(
                f"{source}: {name}: when: {other}: received low {low:g} above high {high:g}: an empty range. "
                "Exchange them"
            )
        when[str(other)] = (low, high)
    if "values" in about:
        return Parameter(name=name, values=_parse_values(name, about, source), when=when)
    if name in _CACHE_RELEVANT:
        raise ConfigError(
            f"{source}: {name}: received a range, expected values, since each one needs its own feature cache. "
            f"Give values: [{'0.5, 1.0' if name == STRENGTH else 'efficientnet_lite0, resnet50'}]"
        )
    return _parse_range(name, about, when, source)


def _parse_values(name: str, about: Mapping[str, Any], source: str) -> tuple[Value, ...]:
    values = about["values"]
    if not isinstance(values, list) or not values or {"low", "high", "scale", "points"} & set(about):
        raise ConfigError(f"{source}: {name}: received {about!r}, expected values: a list, or low and high")
    if _KINDS[name] == "choice":
        return tuple(str(value) for value in values)
    numbers = [_parse_number(value, f"{name}.values", source) for value in values]
    return tuple(_check_whole(number, name, source) for number in numbers) if _KINDS[name] == "int" else tuple(numbers)


def _parse_range(
    name: str, about: Mapping[str, Any], when: Mapping[str, tuple[float, float]], source: str
) -> Parameter:
    missing = [key for key in ("low", "high") if key not in about]
    if missing:
        raise ConfigError(f"{source}: {name}: {' and '.join(missing)} missing. Give low and high, or values")
    low, high = (_parse_number(about[key], f"{name}.{key}", source) for key in ("low", "high"))
    if _KINDS[name] == "int":
        low, high = _check_whole(low, name, source), _check_whole(high, name, source)
    if low > high:
        raise ConfigError(f"{source}: {name}: received low {low:g} above high {high:g}: an empty range. Exchange them")
    scale = about.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise ConfigError(f"{source}: {name}: scale: received {scale!r}, expected linear or log")
    if scale == "log" and low <= 0:
        raise ConfigError(f"{source}: {name}: received low {low:g} with scale log, expected a low above 0")
    points = about.get("points", 0)
    if not isinstance(points, int) or isinstance(points, bool) or not 0 <= points <= _MAX_POINTS:
        raise ConfigError(
            f"{source}: {name}: points: received {points!r}, expected a number of values from 1 to {_MAX_POINTS}"
        )
    return Parameter(name=name, low=low, high=high, log=scale == "log", points=points, when=when)


def _parse_number(value: Any, where: str, source: str, *, finite: bool = True) -> float:
    """A number; 1e-4 is one too, which YAML reads as text."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or (finite and math.isinf(number)):
        raise ConfigError(f"{source}: {where}: received {value!r}, expected a number")
    return number


def _check_whole(number: float, name: str, source: str) -> int:
    if number != int(number) or abs(number) > _MAX_WHOLE:
        raise ConfigError(f"{source}: {name}: received {number:g}, expected a whole number up to {_MAX_WHOLE}")
    return int(number)
