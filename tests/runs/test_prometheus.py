"""A run's metrics, and the dashboard that shows them."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pharmclf.config import PhaseConfig, RunConfig
from pharmclf.core.events import CheckpointSaved, FinalEvaluationStarted, StepEnd
from pharmclf.runs.prometheus import GAUGES, status_samples
from pharmclf.runs.status import RunState, StatusBuilder, utc_timestamp

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana-dashboard.json"
SIZES = {"train": 100, "validation": 20, "test": 25}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """All queries, those of the variables among them."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return found + [variable.get("definition", "") for variable in dashboard["templating"]["list"]]


def metrics(dashboard: dict[str, Any]) -> set[str]:
    return set(re.findall(r"\bray_\w+", " ".join(expressions(dashboard))))


def standing() -> StatusBuilder:
    return StatusBuilder(RunConfig(batch_size=10, phase1=PhaseConfig(epochs=2), phase2=PhaseConfig(epochs=0)), SIZES)


def test_every_metric_has_a_value_and_one_state_is_the_present_one() -> None:
    """Also before the first step, where most are not a number; the checkpoint's age is counted to now."""
    run = standing()
    first = list(status_samples(run.status, time.time()))
    assert {name for name, _, _ in first} == set(GAUGES)
    assert {tags["state"]: value for name, tags, value in first if name == "pharmclf_state"} == {
        state: float(state == "starting") for state in RunState
    }
    values = {name: value for name, _, value in first}
    assert math.isnan(values["pharmclf_eta_seconds"])
    assert math.isnan(values["pharmclf_seconds_since_checkpoint"])
    place = {"phase": "phase1", "epoch": 0, "epochs": 2, "step": 5, "steps": 10}
    run.handle_event(StepEnd(**place, loss=1.5, accuracy=0.5, images_per_second=10.0, eta_s=1.0))  # type: ignore[arg-type]
    run.handle_event(CheckpointSaved(name="one"))
    now = time.time()
    run.status.checkpoint_at = utc_timestamp(now - 60)
    values = {name: value for name, _, value in status_samples(run.status, now)}
    assert values["pharmclf_phase"] == values["pharmclf_epoch"] == 1
    assert (values["pharmclf_step"], values["pharmclf_progress"], values["pharmclf_eta_seconds"]) == (5, 0.25, 19)
    assert values["pharmclf_seconds_since_checkpoint"] == pytest.approx(60, abs=1.1)
    run.handle_event(FinalEvaluationStarted())
    assert {name: value for name, _, value in status_samples(run.status, now)}["pharmclf_phase"] == 3


def test_the_dashboard_shows_what_is_exported(dashboard: dict[str, Any]) -> None:
    """Each of its metrics is one of ours or one that Ray's own dashboards show; none of ours is left out."""
    from ray.dashboard.modules.metrics import dashboards

    sources = [path.read_text(encoding="utf-8") for path in Path(dashboards.__file__).parent.glob("*_panels.py")]
    of_ray = set(re.findall(r"\bray_\w+", "\n".join(sources)))
    ours = {f"ray_{name}" for name in GAUGES}
    assert metrics(dashboard) - of_ray == ours


def test_the_dashboard_is_one_that_grafana_takes(dashboard: dict[str, Any]) -> None:
    """A schema version, panels with ids of their own that do not overlap, and every source by the variable."""
    assert dashboard["schemaVersion"] >= 36
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    for box in boxes:
        assert box["x"] >= 0 < box["w"]
        assert box["x"] + box["w"] <= 24
    for one, other in itertools.combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    names = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource": "datasource", "run": "query", "instance": "query"}
    for panel in panels:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard).replace("$__all", "")))
    assert used == set(names)
