"""What an MLflow server or store shows, read through MLflow's client."""

from __future__ import annotations

from typing import Any

from pharmclf.tracking import EXPERIMENT


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri: str, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """Of an experiment, by their names."""
    found = client(uri).search_runs([client(uri).get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def points(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    return sorted((one.step, round(one.value, 4)) for one in client(uri).get_metric_history(run.info.run_id, metric))


def artifacts(uri: str, run: Any, folder: str = "") -> set[str]:
    found: set[str] = set()
    for entry in client(uri).list_artifacts(run.info.run_id, folder):
        found |= artifacts(uri, run, entry.path) if entry.is_dir else {entry.path}
    return found
