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
from pharmclf.core.errors import ConfigError, did_you_mean, first_line


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


def from_dict(mapping: dict[str, Any], *, source: str = "config") -> RunConfig:
    """Build a configuration from a file or a record, with current or earlier names; what is missing has its default.

    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value of a wrong type.
    """
    if isinstance(mapping, dict):
        mapping = to_current_names(mapping, source)
    if isinstance(mapping, dict) and isinstance(size := mapping.get("batch_size"), str):
        check_batch_word(f"{source}: batch_size", size)
        rest = {key: value for key, value in mapping.items() if key != "batch_size"}
        mapping = {"microbatch": AUTO} | rest
    config: RunConfig = _build(RunConfig, mapping, source, "")
    return config


def load_yaml(path: str | Path) -> RunConfig:
    """Read a configuration file.

    Raises:
        ConfigError: no such file, not YAML, or not a configuration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}. Give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not a text file. Give the path of a YAML file") from error
    try:
        mapping = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:  # a date that no calendar has is a ValueError
        raise ConfigError(f"--config {path}: not YAML: {first_line(error)}") from error
    return from_dict(mapping, source=str(path))


def _build(cls: Any, mapping: Any, source: str, prefix: str) -> Any:
    where = prefix.rstrip(".") or "the file"
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source}: {where}: received {mapping!r}, expected keys and values")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in mapping.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {did_you_mean(key, hints, prefix)}")
        values[key] = _convert(hints[key], value, source, f"{prefix}{key}")
    return cls(**values)


def _convert(hint: Any, value: Any, source: str, path: str) -> Any:
    """One value as the field's type; a whole number is a float too, and so is 1e-4, which YAML reads as text."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, f"{path}.")
    if typing.get_origin(hint) is Literal:
        if value is False and "off" in typing.get_args(hint):
            return "off"  # YAML reads a bare off as false
        if value in typing.get_args(hint):
            return value
        near = difflib.get_close_matches(str(value), typing.get_args(hint), n=1, cutoff=0.4)
        did = f" Did you mean {near[0]}?" if near else ""
        known = ", ".join(typing.get_args(hint))
        raise ConfigError(f"{source}: {path}: received {value!r}, expected one of {known}.{did}")
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
        except ValueError:
            pass
    elif hint is int and isinstance(value, int):
        return value
    name = str(hint) if isinstance(hint, types.GenericAlias) else hint.__name__
    raise ConfigError(f"{source}: {path}: received {value!r}, expected {name}")
