"""The keys and types of files, one line each: what a program that reads them relies on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

_NAMES = {"NoneType": "null", "str": "text"}


def json_shape(paths: Iterable[Path]) -> list[str]:
    """Dotted keys and types of JSON files of one kind; a key that only some of them have ends with ?."""
    return shape_of([json.loads(path.read_text(encoding="utf-8")) for path in paths])


def shape_of(values: list[Any], name: str = "") -> list[str]:
    """Lines for alternative values of one key."""
    maps = [value for value in values if isinstance(value, Mapping) and value]
    lists = [value for value in values if isinstance(value, list)]
    plain = [value for value in values if value not in maps and value not in lists]
    lines = []
    if plain:
        types = sorted({type(value).__name__ for value in plain})
        lines.append(f"{name}: {' or '.join(_NAMES.get(each, each) for each in types)}")
    for key in dict.fromkeys(key for each in maps for key in each):
        mark = "" if all(key in each for each in maps) else "?"
        lines += shape_of([each[key] for each in maps if key in each], f"{name}.{key}{mark}".lstrip("."))
    if lists:
        items = [item for each in lists for item in each]
        lines += shape_of(items, f"{name}[]") if items else [f"{name}: list"]
    return lines


def with_free_keys(lines: list[str], keys: tuple[str, ...]) -> list[str]:
    """One line without a type for each of these keys and all below it."""
    found = []
    for line in lines:
        name = line.split(": ")[0]
        free = next((key for key in keys if name == key or name.startswith((f"{key}.", f"{key}["))), "")
        found.append(f"{free}: any" if free else line)
    return list(dict.fromkeys(found))


def parquet_shape(path: Path) -> list[str]:
    """Columns and types of a table, and the keys of what its metadata hold for us."""
    schema = pq.read_schema(path)
    # pandas 2 and 3 store text as string and large_string
    lines = [f"column {field.name}: {str(field.type).removeprefix('large_')}" for field in schema]
    for key, value in (schema.metadata or {}).items():
        if key != b"pandas":
            lines += [f"metadata {key.decode()} {line}" for line in shape_of([json.loads(value)])]
    return lines


def tensor_shape(path: Path) -> list[str]:
    """Names, types and shapes of the tensors of a safetensors file."""
    with safe_open(path, "np") as file:
        parts = {name: file.get_slice(name) for name in sorted(file.keys())}
        return [f"{name}: {part.get_dtype()} {part.get_shape()}" for name, part in parts.items()]
