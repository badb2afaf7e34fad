"""Fields of the configuration with what is known of them: range, unit, and whether a result depends on them."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pharmclf.core.errors import ConfigError

T = TypeVar("T")
_KEY = "setting"


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What is known of a field."""

    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    """What a number counts; empty: the field holds no number."""
    affects_result: bool = True
    """Whether the numbers of a run depend on it; if not, it may differ when the run is resumed."""
    per_head: bool = False
    """Whether heads that train vectorized in one program may differ in it."""


def setting(default: T, unit: str = "", low: float = -math.inf, high: float = math.inf, **known: bool) -> T:
    """Declare a field; the arguments besides its default are those of `FieldInfo`."""
    return field(default=default, metadata={_KEY: FieldInfo(low=low, high=high, unit=unit, **known)})


@functools.cache
def field_infos(cls: Any) -> dict[str, FieldInfo]:
    """What is known of each field of a configuration class, by dotted name, sections before their parts."""
    hints, infos = typing.get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        infos[item.name] = item.metadata.get(_KEY, FieldInfo())
        if dataclasses.is_dataclass(hints[item.name]):
            infos |= {f"{item.name}.{name}": info for name, info in field_infos(hints[item.name]).items()}
    return infos


def select_names(cls: Any, what: Literal["affects_result", "per_head"], value: bool) -> tuple[str, ...]:
    """Dotted names of the fields of which this is known."""
    return tuple(name for name, info in field_infos(cls).items() if getattr(info, what) is value)


def check_ranges(config: Any) -> None:
    """Refuse a number outside its range.

    Raises:
        ConfigError: names the field, the value and the range.
    """
    cls: Any = type(config)
    for name, info in field_infos(cls).items():
        if not info.unit:
            continue
        value = operator.attrgetter(name)(config)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and info.low <= value <= info.high):
            span = f"{info.low} or more" if info.high == math.inf else f"from {info.low} to {info.high}"
            raise ConfigError(f"{name}: received {value!r}, expected a {info.unit} {span}")
