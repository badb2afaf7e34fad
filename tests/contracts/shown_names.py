"""The names that MLflow and TensorBoard show, read through their own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# of the tags that MLflow itself knows
_OURS = (
    "mlflow.note.content",
    "mlflow.parentRunId",
    "mlflow.source.name",
    "mlflow.source.type",
)


def mlflow_runs(store: str, experiment: str) -> dict[str, Any]:
    """The runs of an experiment, by name, each with the paths of its artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: (run, _artifacts(client, run.info.run_id)) for run in found}


def _artifacts(client: Any, run: str, folder: str = "") -> list[str]:
    entries = client.list_artifacts(run, folder)
    return [path for one in entries for path in (_artifacts(client, run, one.path) if one.is_dir else [one.path])]


def mlflow_names(found: tuple[Any, list[str]]) -> list[str]:
    """Parameters, metrics, tags and artifacts of a run, one line each."""
    run, artifacts = found
    tags = [name for name in run.data.tags if not name.startswith("mlflow.") or name in _OURS]
    kinds = {"param": run.data.params, "metric": run.data.metrics, "tag": tags, "artifact": artifacts}
    return [f"{kind} {name}" for kind, names in kinds.items() for name in sorted(names)]


def tensorboard_tags(folder: Path) -> list[str]:
    """The tags in all event files of a run, sorted."""
    from tensorboardX.proto.event_pb2 import Event

    tags: set[str] = set()
    for path in folder.glob("tensorboard/*"):
        content, at = path.read_bytes(), 0
        while at < len(content):  # 8 bytes of length, 4 of its checksum, the event, 4 of its checksum
            end = at + 12 + int.from_bytes(content[at : at + 8], "little")
            tags.update(value.tag for value in Event.FromString(content[at + 12 : end]).summary.value)
            at = end + 4
    return sorted(tags)
