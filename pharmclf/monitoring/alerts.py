"""Says each warning once: when it comes, when it gets worse, and again after an hour in which it has lasted; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pharmclf.monitoring.alert_rules import WINDOW_S, measure_all, newest_rows
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.samples import NodeSample
from pharmclf.monitoring.thresholds import BOUND, THRESHOLDS, AlertLevel, Measurement, Threshold

REPEAT_AFTER_S = 3600.0
"""A warning that lasts is said again after so long."""
QUIET_S = 600.0
"""One that comes back sooner than this after it was said is not said again, unless it is worse."""
_MAX_ALERTS = 200  # warnings that have passed
_Key = tuple[str, str, str]  # node, rule, device


@dataclass(frozen=True, kw_only=True)
class HardwareAlert:
    """A warning, or an alarm."""

    rule: str
    """A key of `thresholds.THRESHOLDS`."""
    level: AlertLevel
    """The worst that it has come to."""
    node: str
    """Address of the node."""
    device: str
    """GPU 0; "": the node."""
    value: float
    """The worst so far, in the unit of the limit."""
    limit: float
    text: str
    """All of it in a line, with the remedy; as it was last."""
    at_s: float
    """Since when, seconds since 1970 by the clock of the node."""
    until_s: float | None = None
    """When it had passed; None: it lasts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> HardwareAlert:
        """The finding again.

        Raises:
            LookupError, TypeError: not a finding.
        """
        return HardwareAlert(**{item.name: content[item.name] for item in dataclasses.fields(HardwareAlert)})


@dataclass
class _State:
    """Of a rule on a device."""

    finding: HardwareAlert
    level: AlertLevel
    """Of now."""
    seen_at_s: float


@dataclass
class AlertTracker:
    """What is wrong with the nodes of a run, made of their rows."""

    setting: RunContext = field(default_factory=RunContext)
    """What is known of the run; may change on its way."""
    passed: list[HardwareAlert] = field(default_factory=list)
    """Those that do not last any more, the oldest first."""
    _rows: dict[str, list[NodeSample]] = field(default_factory=dict)
    _states: dict[_Key, _State] = field(default_factory=dict)
    _said: dict[_Key, tuple[AlertLevel, float]] = field(default_factory=dict)

    @property
    def active(self) -> list[HardwareAlert]:
        """What is wrong now, alarms first."""
        return sorted((state.finding for state in self._states.values()), key=lambda found: (found.level, found.at_s))

    def update(self, row: NodeSample) -> list[HardwareAlert]:
        """Take the next row of a node -> what is to be said now.

        Args:
            row: newer than those of its node before it.
        """
        rows = self._rows[row.node] = newest_rows([*self._rows.get(row.node, ()), row], WINDOW_S)
        said = [found for measure in measure_all(rows, self.setting) if (found := self._assess(measure, row))]
        for key, state in list(self._states.items()):
            # what could not be measured for a moment has not passed
            if key[0] == row.node and row.at_s - state.seen_at_s > WINDOW_S:
                self._end(key, row.at_s)
        return said

    def reset(self, at_s: float, but: Collection[str] = ()) -> None:
        """Nodes are read no more, all but these; what was wrong with them has passed."""
        for node in [node for node in self._rows if node not in but]:
            del self._rows[node]
        for key in [key for key in self._states if key[0] not in but]:
            self._end(key, at_s)

    def _assess(self, measure: Measurement, row: NodeSample) -> HardwareAlert | None:
        """Keep what a measure means after what was before -> what is to be said of it."""
        key, limit = (row.node, measure.rule, measure.device), THRESHOLDS[measure.rule]
        state = self._states.get(key)
        level = limit.level(measure.value, state.level if state else "")
        if not level:
            self._end(key, row.at_s)
            return None
        before = state.finding if state else None
        worst = min if limit.below else max
        finding = HardwareAlert(
            rule=measure.rule,
            level="alarm" if before and before.level == "alarm" else level,
            node=row.node,
            device=measure.device,
            value=worst(measure.value, before.value) if before else measure.value,
            limit=limit.of(level) or 0.0,
            text=_text(measure, level, row.node),
            at_s=before.at_s if before else row.at_s,
        )
        self._states[key] = _State(finding, level, row.at_s)
        if not _should_notify(level, self._said.get(key), limit, row.at_s, lasted=state is not None):
            return None
        self._said[key] = level, row.at_s
        return finding

    def _end(self, key: _Key, now_s: float) -> None:
        state = self._states.pop(key, None)
        if state:
            self.passed = [*self.passed, dataclasses.replace(state.finding, until_s=now_s)][-_MAX_ALERTS:]


def _should_notify(
    level: AlertLevel, said: tuple[AlertLevel, float] | None, limit: Threshold, now_s: float, *, lasted: bool
) -> bool:
    """Whether something is to be said.

    Args:
        level: how bad it is.
        said: how bad it was when it was said last, and when; None: never.
        limit: of its rule.
        now_s: the time.
        lasted: whether it has not passed since it was seen last.
    """
    if said is None or (level == "alarm" and said[0] == "warning"):
        return True
    if lasted and not limit.repeats:
        return False
    return now_s - said[1] >= (REPEAT_AFTER_S if lasted else QUIET_S)


def _text(measure: Measurement, level: AlertLevel, node: str) -> str:
    limit = THRESHOLDS[measure.rule]
    who = f"{measure.subject} on {node}" if measure.subject else f"node {node}"
    shown = f" (limit {limit.of(level):g}{limit.unit})" if limit.unit else ""
    return f"{level}: {who} {measure.what.replace(BOUND, shown)}. {measure.remedy}"
