"""Every private part of Ray that the project uses does with the installed version what its function promises."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pharmclf.core.compat import IncompatibleVersionError
from pharmclf.core.compat import ray as compat
from pharmclf.core.errors import RunError
from pharmclf.distributed.cluster import WORKER_ENVIRONMENT
from pharmclf.tuning import tune_runner

pytestmark = pytest.mark.ray

CLUSTER = """
import json, os, signal, tempfile, time
from pharmclf.core.compat import ray as compat

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
compat.mute_token_notice()
import ray

with compat.preserve_signal_handlers():
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False)
os.kill(os.getpid(), signal.SIGTERM)
(node,) = (entry["NodeID"] for entry in ray.nodes())
before = compat.free_resources_by_node()[node]["CPU"]


@ray.remote(num_cpus=1)
class Holder:
    def ready(self):
        return True


holder = Holder.remote()
ray.get(holder.ready.remote())
until = time.monotonic() + 20
while (held := compat.free_resources_by_node()[node]["CPU"]) == before and time.monotonic() < until:
    time.sleep(0.1)
# where others run on this machine too, the one that was noted last is joined
noted = os.path.join(tempfile.mkdtemp(), "ray", "ray_current_cluster")
os.environ["RAY_TMPDIR"] = os.path.dirname(os.path.dirname(noted))
os.makedirs(os.path.dirname(noted))
with open(noted, "w") as file:
    file.write(context.address_info["gcs_address"])
found = {
    "stopped": len(stopped),
    "address": [compat.local_cluster_address(), context.address_info["gcs_address"]],
    "cpus": [before, held],
    "drained_before": list(compat.draining_nodes()),
}
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

client = GcsClient(address=context.address_info["gcs_address"])
client.drain_node(node, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "test", int(1e3 * time.time()) + 60_000)
until = time.monotonic() + 20
while not compat.draining_nodes() and time.monotonic() < until:
    time.sleep(0.1)
found["drained"] = list(compat.draining_nodes()) == [node]
found["alive"] = ray.nodes()[0]["Alive"]
ray.shutdown()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """What a process sees that has started a Ray of its own, and then drains its only node."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_ray_is_started_again_where_its_processes_are_late(monkeypatch: pytest.MonkeyPatch):
    """The text is that of Ray; another error is not taken for it."""
    import ray
    import ray._private.node

    assert compat.START_TIMEOUT in inspect.getsource(ray._private.node).replace('"\n                        "', "")
    answers: list[Any] = [Exception(f"{compat.START_TIMEOUT}. This could happen"), "context"]

    def init(**options: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer, options

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert compat.start_ray(num_cpus=2) == ("context", {"num_cpus": 2})
    answers = [Exception(compat.START_TIMEOUT)] * 3
    with pytest.raises(RunError, match="The machine is too busy"):
        compat.start_ray()
    answers = [ValueError("another")]
    with pytest.raises(ValueError, match="another"):
        compat.start_ray()


def test_a_handler_of_sigterm_outlives_the_start_of_ray(cluster: dict[str, Any]):
    assert cluster["stopped"] == 1


def test_the_cluster_of_this_machine_is_found(cluster: dict[str, Any]):
    assert cluster["address"][0] == cluster["address"][1]


def test_resources_are_free_until_they_are_held(cluster: dict[str, Any]):
    assert cluster["cpus"] == [2.0, 1.0]


def test_a_draining_node_is_known_although_it_is_alive(cluster: dict[str, Any]):
    assert cluster["drained_before"] == []
    assert cluster["drained"]
    assert cluster["alive"]


@pytest.fixture
def loggers() -> Iterator[None]:
    """The levels of Ray's loggers are as before afterwards."""
    names = ("ray._private.authentication", "ray.data._internal.progress")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_the_loggers_of_the_two_notices_are_muted(loggers: None):
    """The modules that print them log under these names, and warnings are what they print."""
    from ray._private.authentication import authentication_token_setup
    from ray.data._internal import progress

    notices = ((authentication_token_setup, compat.mute_token_notice), (progress, compat.mute_progress_notice))
    for module, mute in notices:
        logging.getLogger(module.__name__).setLevel(logging.NOTSET)
        mute()
        assert module.logger.getEffectiveLevel() == logging.ERROR


def test_the_variable_of_a_submitted_job_is_rays(monkeypatch: pytest.MonkeyPatch):
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    for job, expected in (({"runtime_env": {"working_dir": "gcs://x"}}, {"working_dir": "gcs://x"}), ({}, {})):
        monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps(job))
        assert compat.submitted_runtime_env() == expected
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR)
    assert compat.submitted_runtime_env() == {}


def test_options_of_a_submission_are_read_as_ray_reads_them(tmp_path: Path):
    file = tmp_path / "env.yaml"
    file.write_text(f"working_dir: {tmp_path}\nexcludes: [a]\n")
    expected = {"working_dir": str(tmp_path), "excludes": ["a"]}
    assert compat.runtime_env_of_submission(str(file), None, None) == expected
    assert compat.runtime_env_of_submission(None, json.dumps(expected), None) == expected
    assert compat.runtime_env_of_submission(None, None, str(tmp_path)) == {"working_dir": str(tmp_path)}


def test_the_paths_of_an_upload_are_those_of_rays_own_archive(tmp_path: Path):
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    folder = tmp_path / "code"
    for name in ("a.py", "b.log", "data/c.jpg", "deep/d.py", ".git/e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".rayignore").write_text("data/\n")
    excludes = ["*.log"]
    archive, patterns = tmp_path / "package.zip", [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    create_package(str(folder), archive, include_gitignore=True, excludes=patterns)
    with zipfile.ZipFile(archive) as package:
        names = {entry.filename for entry in package.infolist() if not entry.is_dir()}
    found = {str(path.relative_to(folder)) for path in compat.uploaded_paths(folder, excludes) if path.is_file()}
    assert found == names
    assert {"a.py", "deep/d.py"} <= found
    assert not found & {"b.log", "data/c.jpg", ".git/e"}


def test_the_limit_of_an_upload_is_that_of_the_job_server():
    """100 MiB; the server refuses what is larger, as its class is configured with the same constant."""
    assert compat.upload_limit() == 100 << 20


def test_the_loop_of_a_pipeline_calls_back_and_waits_as_it_is_asked_to(shared_ray: None):
    """Seen in a pipeline that runs: with a short wait it takes many more steps than with a long one."""
    import ray
    from ray.data._internal.execution import streaming_executor_state

    def rest(block: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return block

    def count_steps(wait_s: float) -> int:
        steps: list[float] = []
        dataset = ray.data.range(4, override_num_blocks=4)
        dataset.context.enable_progress_bars = False
        compat.call_at_each_step(dataset.context, lambda: lambda: steps.append(time.perf_counter()))
        compat.set_data_poll_interval(wait_s)
        assert sorted(dataset.map_batches(rest).take_all(), key=lambda row: row["id"]) == [{"id": n} for n in range(4)]
        return len(steps)

    before = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
    try:
        few, many = count_steps(0.3), count_steps(0.01)
    finally:
        compat.set_data_poll_interval(before)
    assert many > 2 * few > 0


def test_errors_of_workers_come_out_of_their_wrappers():
    """Also where an error has traveled to another process; what is no error of workers has none."""
    import ray.train
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    wrapped, bare = UserExceptionWithTraceback(ValueError("bad"), "Traceback"), OSError("gone")
    error = ray.train.WorkerGroupError("failed", {0: wrapped, 1: bare})
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert [repr(one) for one in compat.worker_errors(each)] == ["ValueError('bad')", "OSError('gone')"]
    assert compat.worker_errors(KeyError("x")) == []


def test_workers_without_a_place_are_told_from_other_failures():
    import ray.train
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    cause = WorkerGroupStartupTimeoutError(2)
    assert compat.startup_timeout(ray.train.ControllerError(cause)) is cause
    assert compat.startup_timeout(ray.train.ControllerError(ValueError("x"))) is None
    assert compat.startup_timeout(ValueError("x")) is None


def test_the_settings_of_train_and_tune_are_variables_that_ray_reads():
    """A name that Ray forgets would be ignored without a word."""
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    from ray.tune import constants

    assert {name for name in WORKER_ENVIRONMENT if name.startswith("RAY_TRAIN_")} <= set(ENV_VARS_TO_PROPAGATE)
    tune = {name for name in tune_runner._QUIET if name.startswith("TUNE_")} | {"TUNE_FUNCTION_THREAD_TIMEOUT_S"}
    assert all(f'"{name}"' in Path(constants.__file__).read_text("utf-8") for name in tune)


def test_a_ray_without_the_private_part_is_refused(monkeypatch: pytest.MonkeyPatch):
    from ray._private import ray_constants, utils
    from ray._private.runtime_env import packaging
    from ray.data._internal.execution import streaming_executor_state

    monkeypatch.delattr(ray_constants, "DASHBOARD_CLIENT_MAX_SIZE")
    with pytest.raises(IncompatibleVersionError, match="DASHBOARD_CLIENT_MAX_SIZE"):
        compat.upload_limit()
    monkeypatch.delattr(packaging, "_dir_travel")
    with pytest.raises(IncompatibleVersionError, match="_dir_travel"):
        compat.uploaded_paths(Path.cwd(), ())
    monkeypatch.delattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S")
    with pytest.raises(IncompatibleVersionError, match="WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"):
        compat.set_data_poll_interval(0.01)
    with pytest.raises(IncompatibleVersionError, match="custom_execution_callback_classes"):
        compat.call_at_each_step(SimpleNamespace(), lambda: lambda: None)
    for module in ("ray._private.state", "ray._private.services", "ray.dashboard.modules.dashboard_sdk"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (
        compat.draining_nodes,
        compat.free_resources_by_node,
        compat.local_cluster_address,
        lambda: compat.runtime_env_of_submission(None, None, None),
    ):
        with pytest.raises(IncompatibleVersionError, match="ray: received version"):
            call()
    monkeypatch.delattr(utils, "set_sigterm_handler")
    with pytest.raises(IncompatibleVersionError, match="set_sigterm_handler"), compat.preserve_signal_handlers():
        pass
