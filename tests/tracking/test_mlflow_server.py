"""A server of one's own on 127.0.0.1: what it shows of a run, and what becomes of one that goes away."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow_reader import artifacts, points, runs
from tracked_runs import ACCURACY, epoch_end, history, record_of, run_config, write_end

from pharmclf.config import ConfigError
from pharmclf.tracking import Tracker, check_tracking

for _package in ("mlflow", "flask", "flask_cors"):  # enough of MLflow for a server without pages
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install '.[dev]'")
pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` over a database and a folder of artifacts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        about = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1",
                    f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
                    f"--artifacts-destination={self.folder}/artifacts",
                ],
                env=os.environ | about, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 300
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process is None:
            return
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(60)
        psutil.wait_procs(family, timeout=60)
        self.process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder)
    found.start()
    yield found
    found.stop()


def test_a_server_shows_a_run_and_may_go_away_meanwhile(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on without it, and is there whole when it is back; nothing stands there twice."""
    monkeypatch.setattr("pharmclf.tracking.tracker._RETRY_S", 0.5)
    config = run_config(str(tmp_path), mlflow=server.uri)
    check_tracking(config)
    folder, said = f"{tmp_path}/tablets", []
    tracker = Tracker(config, folder, record_of(config), lambda: None, said.append)

    def tell(place: int) -> None:
        tracker.on_event(epoch_end(history()[place]))

    def shown() -> int:
        return len(points(server.uri, runs(server.uri)["tablets"], "val_accuracy")) if said else 0

    def wait_for(number: int) -> None:
        deadline = time.monotonic() + 120
        while shown() < number:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    tell(0)
    wait_for(1)
    server.stop()
    before = time.monotonic()
    for place in (1, 2, 3):
        tell(place)
    assert time.monotonic() - before < 1  # a refused connection alone takes longer
    while not caplog.records:
        time.sleep(0.1)
    assert "the run continues" in caplog.text
    server.start()
    wait_for(4)
    tell(4)
    write_end(folder)
    tracker.close("complete")
    run = runs(server.uri)["tablets"]
    assert run.info.status == "FINISHED"
    assert points(server.uri, run, "val_accuracy") == ACCURACY
    assert points(server.uri, run, "test_accuracy") == [(6, 0.875)]
    assert {"report.html", "model/README.md", "evaluation/test/confusion_matrix.png"} < artifacts(server.uri, run)
    assert said == [f"MLflow: {server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"]


def test_a_server_that_takes_connections_and_never_answers_is_told_before_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = run_config("/r", mlflow=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match="expected a server that answers"):
            check_tracking(config)
