"""YAML files with the place of each key, so that an error names file, line and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pharmclf.core.errors import ConfigError, first_line

_MAX_DEPTH = 8  # of sections; an alias may lead back to the section around it
_MAX_LINE = 60  # characters of a quoted line


@dataclass(frozen=True)
class Source:
    """Where settings come from, for errors about them."""

    name: str
    """A file, or what holds the settings."""
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Dotted name of a key -> its line and column, from 1; {}: unknown."""

    def at(self, key: str) -> str:
        """The place of a key, or of the section around it: my.yaml:3:5; without a place the name alone."""
        while key not in self.places and "." in key:
            key = key.rpartition(".")[0]
        return ":".join(map(str, (self.name, *self.places.get(key, ()))))

    def error(self, key: str, text: str) -> ConfigError:
        """An error about the value of a key.

        Args:
            key: dotted name.
            text: what was received and expected, and the remedy.
        """
        return ConfigError(f"{self.at(key)}: {key}: {text}")


class _Loader(yaml.SafeLoader):
    """Reads a date as text: no setting is one, and one that no calendar has would be an error without a place."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path, flag: str) -> tuple[Any, Source]:
    """Read a YAML file -> its value, None where it is empty; and the places of its keys.

    Raises:
        ConfigError: no such file, not text, not YAML, or a key given twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{flag} {path}: {reason}. Give the path of a YAML file") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        # of a line without a colon the problem is found in the next one
        marks = error.problem_mark, error.context_mark
        mark = marks[1] if error.context == "while scanning a simple key" else marks[0] or marks[1]
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        problem = str(error.problem).replace("'<stream end>'", "the end of the file")
        quoted = f" in {line[:_MAX_LINE]!r}" if line else ""
        raise ConfigError(f"{path}{place}: not YAML: {problem}{quoted}. Correct the line") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{flag} {path}: not YAML: {first_line(error)}. Give a YAML file") from error
    places: dict[str, tuple[int, int]] = {}
    _add_places(node, "", places, str(path), _MAX_DEPTH)
    return value, Source(str(path), places)


def _add_places(node: Any, prefix: str, places: dict[str, tuple[int, int]], path: str, depth: int) -> None:
    """Add the places of all keys below a node, down to some depth."""
    first: dict[str, int] = {}  # line of each key of this mapping
    for key, value in node.value if isinstance(node, yaml.MappingNode) and depth else ():
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line, column = f"{prefix}{key.value}", key.start_mark.line + 1, key.start_mark.column + 1
        if key.value in first:
            before = first[key.value]
            raise ConfigError(f"{path}:{line}:{column}: received {name} twice, first in line {before}. Give it once")
        first[key.value] = line
        places[name] = line, column
        _add_places(value, f"{name}.", places, path, depth - 1)
