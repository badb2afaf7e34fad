"""Runs on an MLflow server: found or created, completed, and ended.

A run is identified by a tag, not by its name or folder: a resumed run continues its entry, and two runs of one name
stay separate. All calls are idempotent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pharmclf import storage
from pharmclf.core.errors import ConfigError, describe_cause
from pharmclf.tracking.snapshots import EpochSnapshot, visible_files

SCHEMES = ("http", "https", "databricks", "sqlite")
ID_FILE, ID_TAG = "mlflow.json", "pharmclf.id"
PARENT_TAG = "mlflow.parentRunId"
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # failed deliveries are repeated by the tracker
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is sent to any other server
}
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the default shows pages for language models
_BATCH, _BATCH_METRICS = 100, 1000  # maximum parameters or tags, and metrics, of one request
_MAX_VALUE_LENGTH = 5000  # characters
T = TypeVar("T")


def check_mlflow(uri: str, experiment: str) -> None:
    """Check that an MLflow server can be used, before training.

    Raises:
        ConfigError: a URI of another kind, a missing package, a server that does not answer, or a deleted experiment.
    """
    scheme = uri.split(":", 1)[0]
    if scheme not in SCHEMES or (scheme != "databricks" and f"{scheme}:/" != uri[: len(scheme) + 2]):
        raise ConfigError(
            f"mlflow: received {uri!r}, expected a URI that begins with {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}. "
            "Give http://HOST:PORT of a server, or sqlite:///mlflow.db for a file on this machine"
        )
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            f"mlflow: received {uri!r}, but its client is not installed. Run pip install 'pharmclf[mlflow]', or leave "
            "--mlflow out"
        )
    try:
        found = create_client(uri).get_experiment_by_name(experiment)
    except Exception as error:  # of requests, MLflow or a database
        raise ConfigError(
            f"mlflow: received {uri!r}, expected a server that answers: {describe_cause(error)}. Start it, or leave "
            "--mlflow out. Authenticate with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or with "
            "MLFLOW_TRACKING_TOKEN"
        ) from error
    if found is not None and found.lifecycle_stage != "active":
        raise ConfigError(f"mlflow: the experiment {experiment!r} is deleted there. Restore it, or remove it for good")


def create_client(uri: str) -> Any:
    """Create an `MlflowClient` with time limits that suit a run."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def run_identity(folder: str) -> str:
    """Unique id of a run or sweep, kept in its folder; created where there is none.

    Raises:
        OSError: the storage does not answer.
    """
    location = storage.join(folder, ID_FILE)
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        return str(storage.read_json(location)["id"])
    identity = uuid.uuid4().hex
    storage.write_json(location, {"id": identity})
    return identity


class MlflowExperiment:
    """The runs of one experiment."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Find or create the experiment.

        Raises:
            Exception: as MLflow's client.
        """
        self._client, self._uri = create_client(uri), uri
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else self._create(uri, experiment)

    def _create(self, uri: str, experiment: str) -> str:
        artifacts = None  # the server decides
        if uri.startswith("sqlite:///"):  # the default is the working directory of the first run
            artifacts = str(Path(uri.removeprefix("sqlite:///")).absolute().with_name("mlflow-artifacts"))
        try:
            return str(self._client.create_experiment(experiment, artifact_location=artifacts, tags=_KIND))
        except Exception:  # another run may have created it in the same moment
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def open(self, identity: str, name: str, tags: Mapping[str, str]) -> MlflowRun:
        """Find the run with this unique id, or create it with a name and tags."""
        found = self.find(f"tags.`{ID_TAG}` = '{identity}'")
        if found:
            info = found[0].info
        else:
            source = {ID_TAG: identity, "mlflow.source.name": "pharmclf", "mlflow.source.type": "JOB"}
            tags = source | _truncate_values(tags)
            info = self._client.create_run(self._experiment, run_name=name, tags=tags).info
        page = f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{info.run_id}"
        return MlflowRun(self._client, info.run_id, info.status, page if self._uri.startswith("http") else self._uri)

    def drop_tag(self, run_id: str, key: str) -> None:
        """Remove a tag from a run that has it."""
        self._client.delete_tag(run_id, key)

    def find(self, condition: str) -> list[Any]:
        """Find all runs that satisfy an MLflow filter string."""
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [self._experiment], filter_string=condition, max_results=1000, page_token=token or None
            )
            found += page
            token = page.token or None
        return found


class MlflowRun:
    """One run on the server."""

    def __init__(self, client: Any, run_id: str, status: str, page: str) -> None:
        self._client, self.id, self._status = client, run_id, status
        self.page = page
        """Its URL, or that of the database."""
        self._epochs = {metric.step for metric in client.get_metric_history(run_id, "phase")}
        self._params = set(client.get_run(run_id).data.params)

    @property
    def finished(self) -> bool:
        """Whether it has ended with success."""
        return self._status == "FINISHED"

    def reopen(self) -> None:
        """Set its status to running."""
        if self._status != "RUNNING":
            self._client.update_run(self.id, status="RUNNING")
            self._status = "RUNNING"

    def add_params(self, values: Mapping[str, Any]) -> None:
        """Add the parameters that are missing; MLflow does not change existing ones."""
        from mlflow.entities import Param

        params = [Param(_clean_name(key), value) for key, value in _truncate_values(values).items()]
        for batch in _batches([param for param in params if param.key not in self._params], _BATCH):
            self._client.log_batch(self.id, params=batch)
        self._params.update(param.key for param in params)

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Add or replace tags."""
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in _truncate_values(values).items()], _BATCH):
            self._client.log_batch(self.id, tags=batch)

    def add_epochs(self, epochs: Sequence[EpochSnapshot]) -> None:
        """Add the epochs that are missing; a repeated epoch has the same step and numbers."""
        missing = [epoch for epoch in epochs if epoch.at not in self._epochs]
        size = _BATCH_METRICS // max((len(epoch.numbers) for epoch in missing), default=1)
        for batch in _batches(missing, size):
            # a retry sends the same time, so that a server that had stored the metrics keeps one point
            metrics = [_metric(*item, epoch.at, epoch.ended_s) for epoch in batch for item in epoch.numbers.items()]
            self._client.log_batch(self.id, metrics=metrics)
            self._epochs.update(epoch.at for epoch in batch)

    def add_numbers(self, values: Mapping[str, float], step: int, at_s: float) -> None:
        """Add metrics of the run at a step; `at_s`: seconds since 1970."""
        for batch in _batches([_metric(name, value, step, at_s) for name, value in values.items()], _BATCH_METRICS):
            self._client.log_batch(self.id, metrics=batch)

    def upload(self, folder: str, config_yaml: str) -> None:
        """Add a configuration and the visible files of a folder as artifacts."""
        self._client.log_text(self.id, config_yaml, "config.yaml")
        for path, location in visible_files(folder).items():
            with storage.local_file(location) as file:
                self._client.log_artifact(self.id, str(file), path.rpartition("/")[0] or None)

    def end(self, status: str) -> None:
        """Set its final status: FINISHED, KILLED or FAILED."""
        self._client.set_terminated(self.id, status)
        self._status = status


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _metric(name: str, value: float, step: int, at_s: float) -> Any:
    from mlflow.entities import Metric

    return Metric(_clean_name(name), value, int(1000 * at_s), step)


def _clean_name(text: str) -> str:
    """Replace characters that MLflow refuses in a name."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", text)


def _truncate_values(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: str(value) for key, value in values.items()}
    return {
        key: text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 1]}…"
        for key, text in texts.items()
    }
