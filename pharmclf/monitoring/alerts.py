"""De-duplicates alerts: reported at the start, when they get worse, and every hour while they are active; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pharmclf.monitoring.alert_rules import LIMIT, WINDOW_S, Measurement, measure_all, newest_samples
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.samples import NodeSample
from pharmclf.monitoring.thresholds import THRESHOLDS, AlertLevel, Threshold

REPEAT_AFTER_S = 3600.0
"""An active alert is reported again after so long."""
QUIET_S = 600.0
"""One that returns sooner than this after its last report is not reported again, unless it is worse."""
_MAX_ALERTS = 200  # that have passed
_Key = tuple[str, str, str]  # node, rule, device


@dataclass(frozen=True, kw_only=True)
class HardwareAlert:
    """A warning, or an alarm."""

    rule: str
    """A key of `thresholds.THRESHOLDS`."""
    level: AlertLevel
    """The worst so far."""
    node: str
    device: str
    """GPU 0; "": the node."""
    value: float
    """The worst so far, in the unit of the limit."""
    limit: float
    text: str
    """One line with the latest value and the remedy."""
    at_s: float
    """Start, seconds since 1970 by the clock of the node."""
    until_s: float | None = None
    """End; None: it is active."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> HardwareAlert:
        """Restore an alert.

        Raises:
            LookupError, TypeError, ValueError: not an alert.
        """
        values = {item.name: content[item.name] for item in dataclasses.fields(HardwareAlert)}
        return HardwareAlert(**values | {"level": AlertLevel(values["level"])})


@dataclass
class _ActiveAlert:
    alert: HardwareAlert
    level: AlertLevel
    """Now."""
    seen_at_s: float


@dataclass
class AlertTracker:
    """The alerts of the nodes of a run."""

    context: RunContext = field(default_factory=RunContext)
    """Of the run; may change while it runs."""
    passed: list[HardwareAlert] = field(default_factory=list)
    """Those that are not active any more, the oldest first."""
    _samples: dict[str, list[NodeSample]] = field(default_factory=dict)
    _active: dict[_Key, _ActiveAlert] = field(default_factory=dict)
    _reports: dict[_Key, tuple[AlertLevel, float]] = field(default_factory=dict)

    @property
    def active(self) -> list[HardwareAlert]:
        """Active alerts, alarms first."""
        return sorted((state.alert for state in self._active.values()), key=lambda alert: (alert.level, alert.at_s))

    def update(self, sample: NodeSample) -> list[HardwareAlert]:
        """Add the next sample of a node, newer than those before it -> the alerts to report now."""
        node = sample.node
        self._samples[node] = newest_samples([*self._samples.get(node, ()), sample], WINDOW_S)
        measurements = measure_all(self._samples[node], self.context)
        alerts = [alert for measurement in measurements if (alert := self._assess(measurement, sample))]
        for key, state in list(self._active.items()):
            # what could not be measured for a moment has not passed
            if key[0] == node and sample.at_s - state.seen_at_s > WINDOW_S:
                self._end(key, sample.at_s)
        return alerts

    def reset(self, at_s: float, but: Collection[str] = ()) -> None:
        """Forget all nodes but these, and end their alerts."""
        for node in [node for node in self._samples if node not in but]:
            del self._samples[node]
        for key in [key for key in self._active if key[0] not in but]:
            self._end(key, at_s)

    def _assess(self, measurement: Measurement, sample: NodeSample) -> HardwareAlert | None:
        """Start, update or end the alert of a measurement -> the alert if it is to be reported."""
        key, threshold = (sample.node, measurement.rule, measurement.device), THRESHOLDS[measurement.rule]
        state = self._active.get(key)
        level = threshold.level(measurement.value, state.level if state else AlertLevel.NONE)
        if not level:
            self._end(key, sample.at_s)
            return None
        before = state.alert if state else None
        worst = min if threshold.below else max
        alert = HardwareAlert(
            rule=measurement.rule,
            level=AlertLevel.ALARM if before and before.level == AlertLevel.ALARM else level,
            node=sample.node,
            device=measurement.device,
            value=worst(measurement.value, before.value) if before else measurement.value,
            limit=threshold.limit(level) or 0.0,
            text=_alert_text(measurement, level, sample.node),
            at_s=before.at_s if before else sample.at_s,
        )
        self._active[key] = _ActiveAlert(alert, level, sample.at_s)
        if not _should_report(level, self._reports.get(key), threshold, sample.at_s, was_active=state is not None):
            return None
        self._reports[key] = level, sample.at_s
        return alert

    def _end(self, key: _Key, now_s: float) -> None:
        if state := self._active.pop(key, None):
            self.passed = [*self.passed, dataclasses.replace(state.alert, until_s=now_s)][-_MAX_ALERTS:]


def _should_report(
    level: AlertLevel, last: tuple[AlertLevel, float] | None, threshold: Threshold, now_s: float, *, was_active: bool
) -> bool:
    """Whether an alert is to be reported now; `last`: level and time of its last report, if there was one."""
    if last is None or (level == AlertLevel.ALARM and last[0] == AlertLevel.WARNING):
        return True
    if was_active and not threshold.repeats:
        return False
    return now_s - last[1] >= (REPEAT_AFTER_S if was_active else QUIET_S)


def _alert_text(measurement: Measurement, level: AlertLevel, node: str) -> str:
    threshold = THRESHOLDS[measurement.rule]
    subject = f"{measurement.subject} on {node}" if measurement.subject else f"node {node}"
    limit = f" (limit {threshold.limit(level):g}{threshold.unit})" if threshold.unit else ""
    return f"{level}: {subject} {measurement.text.replace(LIMIT, limit)}. {measurement.remedy}"
