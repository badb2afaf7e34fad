"""The Prometheus metrics of a run: names, labels, help. Those of MLflow and TensorBoard are in test_frozen_files.py."""

from __future__ import annotations

import time
from typing import Any

import pytest
from goldens import check_golden

from pharmclf.config import RunConfig
from pharmclf.runs import prometheus
from pharmclf.runs.status import StatusBuilder
from pharmclf.serving.replica import METRICS


def test_the_prometheus_metrics_have_their_names_and_labels(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """As they are declared, and each is given a value with just these labels; Ray puts ray_ before each name."""
    declared: dict[str, str] = {}
    exported: set[tuple[str, tuple[str, ...]]] = set()

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name
            declared[name] = f"gauge ray_{name} ({', '.join(tag_keys)}): {description}"

        def set(self, value: float, tags: dict[str, Any]) -> None:
            assert isinstance(value, float)
            exported.add((self.name, tuple(tags)))

    monkeypatch.setattr(prometheus, "Gauge", Gauge)
    run = StatusBuilder(RunConfig(), {"train": 10, "validation": 5, "test": 5})
    prometheus.PrometheusExporter("tablets", lambda: run.status).close()
    assert {name for name, _ in exported} == set(declared)
    assert {labels for name, labels in exported if name == "pharmclf_state"} == {("run", "state")}
    states = [tags["state"] for name, tags, _ in prometheus.status_samples(run.status, time.time()) if tags]
    lines = [*declared.values(), f"states: {', '.join(states)}"]
    check_golden("names/prometheus.txt", "\n".join(lines) + "\n", request)


def test_the_metrics_of_the_server_have_their_names(request: pytest.FixtureRequest) -> None:
    """Ray puts ray_ before each name, and _total behind those that count."""
    lines = [f"{name}: {text}" for name, text in METRICS.items()]
    check_golden("names/serve.txt", "\n".join(lines) + "\n", request)
