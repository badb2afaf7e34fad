"""Private parts of tyro: what it found wrong with a command line, before it prints a box and ends the process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pharmclf.core.compat import private_parts


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a command line is refused."""

    kind: Literal["missing", "unknown", "no value", "no choice", "bad value"]
    words: tuple[str, ...]
    """missing: the flags; unknown: words that belong to no flag, in their order; else the flag, none if not known."""
    value: str = ""
    """no choice: the value."""
    choices: tuple[str, ...] = ()
    """no choice: what is known."""
    expected: str = ""
    """no value, bad value: what tyro calls the type, such as INT."""
    message: str = ""
    """bad value: of the exception."""


@contextlib.contextmanager
def handle_refusals(handle: Callable[[Refusal], None]) -> Iterator[None]:
    """Call a function with what tyro refuses inside the block; where it raises, tyro prints nothing.

    The public `console_outputs=False` keeps tyro silent, but says nothing of the reason.
    """

    def hook(event: Any) -> None:
        with private_parts("tyro"):
            refusal = _read_event(event)
        if refusal:
            handle(refusal)

    with private_parts("tyro"):
        from tyro import _errors

        registered = _errors.on_parse_error(hook)
    with registered:
        yield


def _read_event(event: Any) -> Refusal | None:
    """An event as a refusal; None for one of another kind, which tyro reports itself."""
    from tyro import _errors

    match event:
        case _errors.MissingArgs():
            return Refusal(kind="missing", words=tuple(_flag(each.arg) for each in event.missing_arguments))
        case _errors.UnrecognizedArgs():
            return Refusal(kind="unknown", words=tuple(event.tokens))
        case _errors.BadValue():
            return Refusal(kind="no value", words=(_flag(event.argument),), expected=_type(event.argument))
        case _errors.InvalidChoice():
            words = (_flag(event.argument),)
            return Refusal(kind="no choice", words=words, value=event.value, choices=tuple(event.choices))
        case _errors.InstantiationFailure():
            argument, message = event.argument, str(event.message)
            if argument is None:
                return Refusal(kind="bad value", words=(), message=message)
            return Refusal(kind="bad value", words=(_flag(argument),), expected=_type(argument), message=message)
    return None


def _flag(argument: Any) -> str:
    """The longest spelling of a flag, or the name of a word without one."""
    lowered = argument.lowered
    return str(lowered.metavar) if argument.is_positional() else max(map(str, lowered.name_or_flags), key=len)


def _type(argument: Any) -> str:
    return str(argument.lowered.metavar or "")
