"""Every field of the configuration by its dotted path, for tests that go through all of them."""

from __future__ import annotations

from typing import Any

from pharmclf.config import RunConfig, from_dict, to_dict


def leaves(value: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, item in value.items():
        found |= leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key}
    return found


def changed(config: RunConfig, path: str, value: Any) -> RunConfig:
    plain = to_dict(config)
    inner = plain
    *groups, last = path.split(".")
    for group in groups:
        inner = inner[group]
    assert inner[last] != value
    inner[last] = value
    return from_dict(plain)
