"""Settings as plain values and as YAML, in and out; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from pharmclf.config.parsing import AUTO, check_batch_word
from pharmclf.config.renamed import to_current_names, to_record_names
from pharmclf.config.schema import RunConfig
from pharmclf.config.source import Source, read_yaml
from pharmclf.core.errors import ConfigError, did_you_mean


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as plain values, ready for YAML or JSON."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def to_record(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as the `config` of run.json and sweep.json."""
    return to_record_names(to_dict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, every field written out."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def from_dict(mapping: dict[str, Any], *, source: str | Source = "config") -> RunConfig:
    """Build a configuration from a file or a record, with current or earlier names; what is missing has its default.

    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value of a wrong type.
    """
    source = Source(source) if isinstance(source, str) else source
    if isinstance(mapping, dict):
        mapping = to_current_names(mapping, source.name)
        source = Source(source.name, to_current_names(source.places, source.name))
    if isinstance(mapping, dict) and isinstance(size := mapping.get("batch_size"), str):
        check_batch_word(f"{source.at('batch_size')}: batch_size", size)
        rest = {key: value for key, value in mapping.items() if key != "batch_size"}
        mapping = {"microbatch": AUTO} | rest
    values = _convert_values(RunConfig, mapping, source, "")
    try:
        return RunConfig(**values)
    except ConfigError as error:  # of a range, or of a text that it reads: with the name of the setting in front
        if not source.places:
            raise
        raise ConfigError(f"{source.at(str(error).partition(':')[0])}: {error}") from error


def load_yaml(path: str | Path) -> RunConfig:
    """Read a configuration file.

    Raises:
        ConfigError: no such file, not YAML, or not a configuration.
    """
    mapping, source = read_yaml(path, "--config")
    return from_dict({} if mapping is None else mapping, source=source)


def _convert_values(cls: Any, mapping: Any, source: Source, prefix: str) -> dict[str, Any]:
    """The values of a section's keys as its fields have them."""
    section = prefix.rstrip(".")
    if not isinstance(mapping, dict):
        where = section or "the file"
        raise ConfigError(f"{source.at(section)}: {where}: received {mapping!r}, expected keys and values")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in mapping.items():
        if key not in hints:
            where = source.at(f"{prefix}{key}")
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {did_you_mean(key, hints, prefix)}")
        values[key] = _convert(hints[key], value, source, f"{prefix}{key}")
    return values


def _convert(hint: Any, value: Any, source: Source, path: str) -> Any:
    """One value as the field's type; a whole number is a float too, and so is 1e-4, which YAML reads as text."""
    if dataclasses.is_dataclass(hint):
        section: Any = hint
        return section(**_convert_values(section, value, source, f"{path}."))
    if typing.get_origin(hint) is Literal:
        if value is False and "off" in typing.get_args(hint):
            return "off"  # YAML reads a bare off as false
        if value in typing.get_args(hint):
            return value
        near = difflib.get_close_matches(str(value), typing.get_args(hint), n=1, cutoff=0.4)
        did = f" Did you mean {near[0]}?" if near else ""
        known = ", ".join(typing.get_args(hint))
        raise ConfigError(f"{source.at(path)}: {path}: received {value!r}, expected one of {known}.{did}")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(typing.get_args(hint)[0], item, source, path) for item in value)
    elif hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
    elif hint is str and isinstance(value, (str, int, float)):
        return str(value)
    elif hint is float and isinstance(value, (int, float, str)):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif hint is int and isinstance(value, int):
        return value
    name = str(hint) if isinstance(hint, types.GenericAlias) else hint.__name__
    raise ConfigError(f"{source.at(path)}: {path}: received {value!r}, expected {name}")
