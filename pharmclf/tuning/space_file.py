"""Reads a search space from a YAML file, and checks it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pharmclf.config import RunConfig
from pharmclf.config.source import Source, read_yaml
from pharmclf.core.errors import ConfigError, did_you_mean
from pharmclf.tuning.space import KINDS, STRENGTH, Parameter, Space, Value

_CACHE_RELEVANT = (STRENGTH, "backbone")  # each value of them needs a pass over the images
_KEYS = ("low", "high", "scale", "values", "points", "when")
_MAX_POINTS = 1000
_MAX_WHOLE = 1_000_000


def load_space(path: str | Path, base: RunConfig) -> Space:
    """Read a space file, and try its bounds on the plain run.

    Raises:
        ConfigError: no such file, an unknown key (the nearest known one is named), an empty range, a value that no run
            can have.
    """
    mapping, source = read_yaml(path, "--space")
    return build_space(mapping, base, source)


def build_space(mapping: Any, base: RunConfig, source: str | Source) -> Space:
    """A space from plain values: by the name of each parameter its range or values.

    Args:
        mapping: {name: {low, high[, scale: log][, points][, when: {name: {low, high}}]} or {values: [...]}}.

    Raises:
        ConfigError: as `load_space`.
    """
    source = Source(source) if isinstance(source, str) else source
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f"{source.name}: received {mapping!r}, expected parameters with their ranges")
    found = {str(name): _parse_parameter(str(name), about, source) for name, about in mapping.items()}
    for parameter in found.values():
        for other in parameter.when:
            if other not in found or found[other].when or KINDS[other] == "choice":
                raise source.error(
                    f"{parameter.name}.when",
                    f"received {other!r}, expected a searched number that depends on nothing itself",
                )
    space = Space(tuple(sorted(found.values(), key=lambda parameter: bool(parameter.when))))
    for parameter in space.parameters:
        for bound in parameter.values or (parameter.low, parameter.high):
            value = int(bound) if parameter.is_whole else bound
            try:
                space.config(base, {parameter.name: value})
            except ConfigError as error:
                raise ConfigError(f"{source.at(parameter.name)}: {error}") from error
    return space


def _parse_parameter(name: str, about: Any, source: Source) -> Parameter:
    if name not in KINDS:
        raise ConfigError(f"{source.at(name)}: unknown parameter {name}; {did_you_mean(name, KINDS)}")
    if not isinstance(about, dict):
        raise source.error(name, f"received {about!r}, expected low and high, or values")
    for key in about:
        if key not in _KEYS:
            raise ConfigError(f"{source.at(f'{name}.{key}')}: unknown key {name}.{key}; {did_you_mean(key, _KEYS)}")
    when, conditions = {}, about.get("when") or {}
    if not isinstance(conditions, dict):
        raise source.error(f"{name}.when", f"received {conditions!r}, expected parameters with low or high")
    for other, span in conditions.items():
        if not isinstance(span, dict) or not span or not set(span) <= {"low", "high"}:
            raise source.error(f"{name}.when.{other}", f"received {span!r}, expected low, high or both")
        low, high = (
            _parse_number(span.get(key, edge), f"{name}.when.{other}.{key}", source, finite=False)
            for key, edge in (("low", -math.inf), ("high", math.inf))
        )
        if low > high:
            raise source.error(f"{name}.when.{other}", _empty_range(low, high))
        when[str(other)] = (low, high)
    if "values" in about:
        return Parameter(name=name, values=_parse_values(name, about, source), when=when)
    if name in _CACHE_RELEVANT:
        raise source.error(
            name,
            f"received a range, expected values, since each one needs its own feature cache. "
            f"Give values: [{'0.5, 1.0' if name == STRENGTH else 'efficientnet_lite0, resnet50'}]",
        )
    return _parse_range(name, about, when, source)


def _parse_values(name: str, about: Mapping[str, Any], source: Source) -> tuple[Value, ...]:
    values = about["values"]
    if not isinstance(values, list) or not values or {"low", "high", "scale", "points"} & set(about):
        raise source.error(name, f"received {about!r}, expected values: a list, or low and high")
    if KINDS[name] == "choice":
        return tuple(str(value) for value in values)
    numbers = [_parse_number(value, f"{name}.values", source) for value in values]
    return tuple(_check_whole(number, name, source) for number in numbers) if KINDS[name] == "int" else tuple(numbers)


def _parse_range(
    name: str, about: Mapping[str, Any], when: Mapping[str, tuple[float, float]], source: Source
) -> Parameter:
    missing = [key for key in ("low", "high") if key not in about]
    if missing:
        raise source.error(name, f"{' and '.join(missing)} missing. Give low and high, or values")
    low, high = (_parse_number(about[key], f"{name}.{key}", source) for key in ("low", "high"))
    if KINDS[name] == "int":
        low, high = _check_whole(low, name, source), _check_whole(high, name, source)
    if low > high:
        raise source.error(name, _empty_range(low, high))
    scale = about.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise source.error(f"{name}.scale", f"received {scale!r}, expected linear or log")
    if scale == "log" and low <= 0:
        raise source.error(name, f"received low {low:g} with scale log, expected a low above 0")
    points = about.get("points", 0)
    if not isinstance(points, int) or isinstance(points, bool) or not 0 <= points <= _MAX_POINTS:
        raise source.error(
            f"{name}.points", f"received {points!r}, expected a number of values from 1 to {_MAX_POINTS}"
        )
    return Parameter(name=name, low=low, high=high, log=scale == "log", points=points, when=when)


def _empty_range(low: float, high: float) -> str:
    return f"received low {low:g} above high {high:g}: an empty range. Exchange them"


def _parse_number(value: Any, where: str, source: Source, *, finite: bool = True) -> float:
    """A number; 1e-4 is one too, which YAML reads as text."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or (finite and math.isinf(number)):
        raise source.error(where, f"received {value!r}, expected a number")
    return number


def _check_whole(number: float, name: str, source: Source) -> int:
    if number != int(number) or abs(number) > _MAX_WHOLE:
        raise source.error(name, f"received {number:g}, expected a whole number up to {_MAX_WHOLE}")
    return int(number)
