"""Formats and parses quantities: sizes, durations, ages, counts, shares, lists of names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from pharmclf.core.errors import ConfigError

_SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


def format_size(num_bytes: float) -> str:
    """Bytes of files and disks, in powers of 1000: 1.5 GB."""
    for unit, factor in _SIZES.items():
        if num_bytes >= 0.99995 * factor:  # below, it rounds to 1000.0 of the unit below
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_memory(num_bytes: float) -> str:
    """Bytes of memory, in powers of 1024, as devices and operating systems count it: 79.6 GiB."""
    gib = num_bytes / (1 << 30)
    if gib >= 1000:
        return f"{gib / 1024:.1f} TiB"
    return f"{gib:.0f} GiB" if gib >= 100 else f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"


def format_duration(seconds: float | None) -> str:
    """Seconds as a clock shows them: 0:42, 3:12, 1:03:12, 2d 01:03:12; -:-- where unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def format_age(seconds: float) -> str:
    """How long ago, rounded down in the largest unit: 3 d ago; 0 s ago where another clock is ahead of ours."""
    seconds = max(0.0, seconds)
    unit, factor = next(((unit, factor) for unit, factor in _SECONDS.items() if seconds >= factor), ("s", 1.0))
    return f"{seconds // factor:.0f} {unit} ago"


def price_of(seconds: float, per_hour: float) -> float | None:
    """Price of machines for some seconds, in the currency of their price per hour; None where that is 0: unknown."""
    return seconds / 3600 * per_hour if per_hour else None


def format_price(price: float, largest: float | None = None) -> str:
    """A price: 12.30; with four digits where it, or else the largest one of its table, is below 1: 0.0123."""
    return f"{price:.{2 if (price if largest is None else largest) >= 1 else 4}f}"


def format_rate(per_second: float) -> str:
    """A number per second: 0.5, 41, 1,234."""
    return f"{per_second:.1f}" if per_second < 9.95 else f"{per_second:,.0f}"


def format_count(number: int, noun: str) -> str:
    """A number and its noun: 1 image, 1,234 images, 2 classes."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def format_examples(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first names, and how many more there are: a, b, c and 1,234 more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{separator.join(names[:most])}{more}"


def parse_duration(text: str, setting: str, *, plain_seconds: bool = False) -> float:
    """Read a duration in seconds: "90s", "45min" or "45m", "1.5h", "30d".

    Args:
        setting: the setting or flag that an error names.
        plain_seconds: whether a number without a unit is allowed, and means seconds.

    Raises:
        ConfigError: anything else.
    """
    return _parse(text, setting, _SECONDS, "a duration", "90s, 10m, 2h or 30d", unit="s" if plain_seconds else "")


def parse_size(text: str, setting: str) -> float:
    """Read a size in bytes: "1.5TB", "20GB", "500MB", "64kB".

    Raises:
        ConfigError: anything else.
    """
    return _parse(text, setting, _SIZES, "a size", "500MB, 20GB or 1.5TB")


def parse_share(text: str, setting: str) -> float:
    """Read a share, 0..1: "1%" and "0.01" are the same.

    Raises:
        ConfigError: not a number, or outside 0..1.
    """
    try:
        share = float(text.rstrip("% ")) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"{setting}: received {text!r}, expected a share from 0 to 1. Write it as 1% or 0.01")
    return share


def _parse(text: str, setting: str, units: Mapping[str, float], what: str, examples: str, unit: str = "") -> float:
    """A number with a unit; with the given one where it has none."""
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)(?: ?({'|'.join(units)}))?", text.strip())
    factor = units.get(match[2] or unit) if match else None
    value = float(match[1]) * factor if match and factor else math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"{setting}: received {text!r}, expected {what}: a number, 0 or more, and one of {', '.join(units)}. "
            f"Write it as {examples}"
        )
    return value
