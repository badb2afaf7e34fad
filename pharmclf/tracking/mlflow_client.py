"""Runs on an MLflow server: found again or created, brought up to date by what they lack, ended.

A run is known by a tag and not by its name or place, so that a resumed one goes on where it is, and two of one name
stay apart. Everything here may be called again: what stands there already is left as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pharmclf import storage
from pharmclf.core.errors import ConfigError, describe_cause
from pharmclf.tracking.snapshots import EpochSnapshot, visible_files

SCHEMES = ("http", "https", "databricks", "sqlite")
ID_FILE, ID_TAG = "mlflow.json", "pharmclf.id"
PARENT_TAG = "mlflow.parentRunId"
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # what is refused is delivered again anyway
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing goes anywhere else than where it was asked for
}
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else its pages are those for language models
_BATCH = 100  # the most params or tags of one request
_BATCH_METRICS = 1000
_MAX_VALUE_LENGTH = 5000  # characters of a value


def check_mlflow(uri: str, experiment: str) -> None:
    """See whether an MLflow server can be used, before anything is trained.

    Raises:
        ConfigError: a URI of another kind, no package for it, no server that answers, or an experiment that was
            deleted.
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
    except Exception as error:  # requests' errors, MLflow's own, and those of a database
        raise ConfigError(
            f"mlflow: received {uri!r}, expected a server that answers: {describe_cause(error)}. Start it, or leave "
            "--mlflow out; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, let you in"
        ) from error
    if found is not None and found.lifecycle_stage != "active":
        raise ConfigError(f"mlflow: the experiment {experiment!r} is deleted there. Restore it, or remove it for good")


def create_client(uri: str) -> Any:
    """MLflow's client, with time limits that suit a run."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def run_identity(folder: str) -> str:
    """The id that a run or sweep alone has, whatever it is called and wherever its folder goes; made where none is.

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
        """Find the experiment, or create it.

        Raises:
            Exception: as MLflow's client.
        """
        self._client, self._uri = create_client(uri), uri
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else self._created(uri, experiment)

    def _created(self, uri: str, experiment: str) -> str:
        place = None  # the server knows
        if uri.startswith("sqlite:///"):  # else the present folder of whoever creates it
            place = str(Path(uri.removeprefix("sqlite:///")).absolute().with_name("mlflow-artifacts"))
        try:
            return str(self._client.create_experiment(experiment, artifact_location=place, tags=_KIND))
        except Exception:  # another run may have created it meanwhile
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def open(self, identity: str, name: str, tags: Mapping[str, str]) -> MlflowRun:
        """The run with an id of ours; created where there is none.

        Args:
            identity: never given to another run.
            name: that people read.
            tags: of a new one.
        """
        found = self.find(f"tags.`{ID_TAG}` = '{identity}'")
        if found:
            run_id, status = found[0].info.run_id, found[0].info.status
        else:
            about = {ID_TAG: identity, "mlflow.source.name": "pharmclf", "mlflow.source.type": "JOB"}
            created = self._client.create_run(self._experiment, run_name=name, tags=about | _truncate_values(tags))
            run_id, status = created.info.run_id, created.info.status
        page = f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{run_id}"
        return MlflowRun(self._client, run_id, status, page if self._uri.startswith("http") else self._uri)

    def drop_tag(self, run_id: str, key: str) -> None:
        """Take a tag off a run that has it."""
        self._client.delete_tag(run_id, key)

    def find(self, condition: str) -> list[Any]:
        """All runs that meet a condition, in MLflow's words."""
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
        """Where people see it."""
        self._epochs = {metric.step for metric in client.get_metric_history(run_id, "phase")}
        self._params = set(client.get_run(run_id).data.params)

    @property
    def finished(self) -> bool:
        """Whether it has been brought to its end."""
        return self._status == "FINISHED"

    def reopen(self) -> None:
        """Say that it runs."""
        if self._status != "RUNNING":
            self._client.update_run(self.id, status="RUNNING")
            self._status = "RUNNING"

    def add_params(self, values: Mapping[str, Any]) -> None:
        """Settings that it lacks; they cannot be changed there."""
        from mlflow.entities import Param

        missing = [Param(_clean_name(key), value) for key, value in _truncate_values(values).items()]
        missing = [param for param in missing if param.key not in self._params]
        for begin in range(0, len(missing), _BATCH):
            self._client.log_batch(self.id, params=missing[begin : begin + _BATCH])
        self._params.update(param.key for param in missing)

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Tags, in place of those of the same names."""
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in _truncate_values(values).items()]
        for begin in range(0, len(tags), _BATCH):
            self._client.log_batch(self.id, tags=tags[begin : begin + _BATCH])

    def add_epochs(self, epochs: Sequence[EpochSnapshot]) -> None:
        """The epochs that it lacks. One that is trained again takes the same steps, and its numbers stand there."""
        missing = [epoch for epoch in epochs if epoch.at not in self._epochs]
        each = max((len(epoch.numbers) for epoch in missing), default=1)
        for begin in range(0, len(missing), _BATCH_METRICS // each):
            part = missing[begin : begin + _BATCH_METRICS // each]
            # the same time at every try: a server that took them and did not say so has them once
            metrics = [_metric(*item, epoch.at, epoch.ended_s) for epoch in part for item in epoch.numbers.items()]
            self._client.log_batch(self.id, metrics=metrics)
            self._epochs.update(epoch.at for epoch in part)

    def add_numbers(self, values: Mapping[str, float], step: int, at_s: float) -> None:
        """Numbers of the whole run.

        Args:
            values: by name.
            step: at which they stand.
            at_s: seconds since 1970.
        """
        items = list(values.items())
        for begin in range(0, len(items), _BATCH_METRICS):
            metrics = [_metric(name, value, step, at_s) for name, value in items[begin : begin + _BATCH_METRICS]]
            self._client.log_batch(self.id, metrics=metrics)

    def upload(self, folder: str) -> None:
        """The files of a folder that people look at, as artifacts."""
        for path, location in visible_files(folder).items():
            with storage.local_file(location) as file:
                self._client.log_artifact(self.id, str(file), path.rpartition("/")[0] or None)

    def add_text(self, text: str, path: str) -> None:
        """A text as an artifact."""
        self._client.log_text(self.id, text, path)

    def end(self, status: str) -> None:
        """Say that it has ended: FINISHED, KILLED or FAILED."""
        self._client.set_terminated(self.id, status)
        self._status = status


def _metric(name: str, value: float, step: int, at_s: float) -> Any:
    from mlflow.entities import Metric

    return Metric(_clean_name(name), value, int(1000 * at_s), step)


def _clean_name(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", text)


def _truncate_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text of a length that MLflow takes."""
    texts = {key: str(value) for key, value in values.items()}
    return {
        key: text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 1]}…"
        for key, text in texts.items()
    }
