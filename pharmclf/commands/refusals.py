"""Refused command lines in words: what was received, what is expected, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from pharmclf.core.compat.tyro import Refusal, handle_refusals
from pharmclf.core.errors import ConfigError

_MIN_LIKENESS = 0.65  # of a flag to a word that may mean it, 0..1


@contextmanager
def refusals_as_errors(command: str, flags: Collection[str], arguments: Sequence[str]) -> Iterator[None]:
    """Raise a ConfigError where tyro refuses a command line inside the block.

    Args:
        command: as in `pharmclf train`.
        flags: all that the command has.
        arguments: the command line, without the command.
    """

    def handle(refusal: Refusal) -> None:
        if not refusal.words:  # of a check of the options, in our words
            raise ConfigError(refusal.message)
        text = describe_refusal(refusal, flags, arguments)
        raise ConfigError(f"{text}{'' if text.endswith('?') else '.'} See {command} --help")

    with handle_refusals(handle):
        yield


def describe_refusal(refusal: Refusal, flags: Collection[str], arguments: Sequence[str]) -> str:
    """What is wrong with a command line, without a full stop."""
    flag = refusal.words[0]
    match refusal.kind:
        case "missing":
            return f"received no {' and no '.join(refusal.words)}, expected a value for each"
        case "unknown":
            return _describe_unknown(flag, flags, arguments)
        case "no value":
            return f"{flag}: received no value, expected {_describe_type(refusal.expected)}"
        case "no choice":
            near = difflib.get_close_matches(refusal.value, refusal.choices, n=1, cutoff=0.4)
            did = f". Did you mean {near[0]}?" if near else ""
            return f"{flag}: received {refusal.value!r}, expected one of {', '.join(refusal.choices)}{did}"
        case "bad value":
            received = value_of(flag, arguments)
            expected = _describe_type(refusal.expected)
            return f"{flag}: received {received!r}, expected {expected}" if received else f"{flag}: {refusal.message}"


def _describe_type(metavar: str) -> str:
    """What tyro calls a type, such as INT, [INT [INT ...]] or {one,two}, in words."""
    if choices := re.fullmatch(r"\{([^{}]*)\}", metavar):
        return f"one of {choices[1].replace(',', ', ')}"
    several = metavar.count("[") > 0
    words = {"INT": ("a whole number", "whole numbers"), "FLOAT": ("a number", "numbers"), "STR": ("a text", "texts")}
    return next((pair[several] for word, pair in words.items() if word in metavar), metavar or "a value")


def _describe_unknown(word: str, flags: Collection[str], arguments: Sequence[str]) -> str:
    """A flag that there is not, or a word that belongs to no flag."""
    if word.startswith("-"):
        near = closest_flags(word, flags)
        return f"{word}: no such flag" + (f"; did you mean {' or '.join(near)}?" if near else "")
    before = next((flag for flag, *values in _groups(arguments) if word in values), "")
    if not before:
        return f"received {word!r}, expected a flag, which begins with --"
    return f"{before}: received {word!r}, expected no value" + ("" if before in flags else "; no such flag")


def _groups(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Each flag with the words behind it."""
    starts = [place for place, argument in enumerate(arguments) if argument.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(arguments)], strict=False):
        yield list(arguments[start:end])


def closest_flags(word: str, flags: Collection[str]) -> list[str]:
    """The flags that a word may mean: those spelled most like it as a whole or in their last part; [] if none is."""
    name = word.lstrip("-").replace("_", "-")

    def likeness(flag: str) -> float:
        full = flag.lstrip("-")
        return max(difflib.SequenceMatcher(None, name, text).ratio() for text in (full, full.rpartition(".")[2]))

    scores = {flag: likeness(flag) for flag in flags}
    best = max(scores.values(), default=0.0)
    return [flag for flag, score in scores.items() if score == best][:3] if best > _MIN_LIKENESS else []


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """The last value that a flag is given; "" for a flag without one."""
    places = [place for place, argument in enumerate(arguments[:-1]) if argument == flag]
    return arguments[places[-1] + 1] if places else ""
