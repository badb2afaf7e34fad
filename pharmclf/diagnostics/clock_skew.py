"""Whether clocks agree: those of the nodes, and the storage's, by which a run tells whether its writer lives; pure."""

from __future__ import annotations

from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.storage.lease import EXPIRES_S

_FAIL_S = EXPIRES_S / 2  # a lease is up to half as old as it may be while its holder lives
_WARN_S = 5.0
_REMEDY = "let chrony or systemd-timesyncd set the clocks, on this machine and on the other"


def min_clock_offset_s(began_s: float, ended_s: float, seen_s: float, grain_s: float = 0.0) -> float:
    """By how much another clock is ahead of this one at least, given one reading of it; negative: it is behind.

    Args:
        began_s: time here before the other clock was read.
        ended_s: time here behind it.
        seen_s: what it showed.
        grain_s: it shows times rounded down to multiples of this.
    """
    return max(seen_s - ended_s, 0.0) + min(seen_s + grain_s - began_s, 0.0)


def check_clock_skew(offset_s: float, other: str) -> Finding:
    """Whether a clock agrees with this node's.

    Args:
        offset_s: what the other is ahead at least.
        other: whose it is, in words.
    """
    if abs(offset_s) < _WARN_S:
        return ok("clock", f"agrees with that of {other}")
    text = f"that of {other} is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this one"
    if abs(offset_s) < _FAIL_S:
        return warn("clock", text, _REMEDY)
    consequence = "a run that lives could be taken for dead, and be written by two"
    return fail("clock", f"{text}; from {_FAIL_S:.0f} s on {consequence}", _REMEDY)
