"""Private parts of Ray. Nothing here imports Ray before it is called."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pharmclf.core.compat import private_parts
from pharmclf.core.errors import RunError

START_TIMEOUT = "The current node timed out during startup"
"""Begins the error of Ray whose processes do not start in time."""
_START_ATTEMPTS = 3

# ---------------------------------------------------------------------- cluster


def draining_nodes() -> Collection[str]:
    """Ids of the nodes that drain, as before a pre-emption.

    The public `ray.nodes()` lists a draining node as alive, and the state API knows no draining either.
    """
    with private_parts("ray"):
        from ray._private.state import state

        drain: Callable[[], Mapping[str, object]] = state.get_draining_nodes
    return drain().keys()


def free_resources_by_node() -> Mapping[str, Mapping[str, float]]:
    """The unused resources, by id of the node.

    The public `ray.available_resources()` sums them over the cluster, so that two halves of a GPU count as one.
    """
    with private_parts("ray"):
        from ray._private.state import available_resources_per_node
    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    return free


def local_cluster_address() -> str:
    """HOST:PORT of the cluster that `ray.init(address="auto")` would join on this machine.

    No public function finds it without joining, which waits for minutes where the cluster is dead.

    Raises:
        ConnectionError: there is none.
    """
    with private_parts("ray"):
        from ray._private.services import canonicalize_bootstrap_address
    return str(canonicalize_bootstrap_address("auto"))


def start_ray(**options: Any) -> Any:
    """As `ray.init`, with two more attempts where a busy machine does not start the processes of a node in time.

    The limit is 30 s, a constant in `ray._private.node`, and the error is a plain Exception that is known by its text.

    Raises:
        RunError: no attempt was in time.
    """
    import ray

    for _ in range(_START_ATTEMPTS):
        try:
            return ray.init(**options)
        except Exception as error:
            if START_TIMEOUT not in str(error):
                raise
            ray.shutdown()
    raise RunError(
        f"Ray did not start on this machine, received {_START_ATTEMPTS} times no answer of its processes within 30 s, "
        "expected one. The machine is too busy: end other programs, and give the command again"
    )


@contextlib.contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts; without one, Ray's stays in place.

    `ray.init` has no option for it: its handler exits at once, with code 15.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    with private_parts("ray"):
        from ray._private import utils

        original = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = original
        signal.signal(signal.SIGTERM, handler)  # below Python its core has taken it as well, to abort with a dump


def mute_token_notice() -> None:
    """Drop the warning that token authentication is on, which Ray prints at each start.

    `ray.init(logging_level=...)` comes too late for it; its logger has the name of an internal module.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


# ------------------------------------------------------------------------- jobs


def submitted_runtime_env() -> dict[str, Any]:
    """The runtime environment that `ray job submit` gave this process; empty outside of a submitted job.

    The public `ray.get_runtime_context().runtime_env` is known after `ray.init` only, which needs this to start.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return job.get("runtime_env") or {}


def runtime_env_of_submission(
    runtime_env: str | None, runtime_env_json: str | None, working_dir: str | None
) -> dict[str, Any]:
    """The runtime environment that the options of `ray job submit` describe, by Ray's own rules.

    The public `JobSubmissionClient` takes the result; the parser of the command is not part of it.

    Args:
        runtime_env: the path of a YAML file.
        runtime_env_json: the same as text.
        working_dir: goes before that of the others.
    """
    with private_parts("ray"):
        from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
    parsed: dict[str, Any] = parse_runtime_env_args(runtime_env, runtime_env_json, working_dir)
    return parsed


def uploaded_paths(folder: Path, excludes: Sequence[str]) -> list[Path]:
    """The files and folders that Ray uploads of a working directory, by its ignore files and its own rules.

    The only public way to see them is to upload them.

    Args:
        folder: absolute.
        excludes: patterns of the runtime environment.
    """
    with private_parts("ray"):
        from ray._private import ray_constants
        from ray._private.runtime_env import packaging

        walk, compile_patterns = packaging._dir_travel, packaging._get_excludes
        patterns = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
        with_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    quiet = logging.getLogger(f"{__name__}.packaging")  # Ray names each ignore file that it reads
    quiet.setLevel(logging.ERROR)
    paths: list[Path] = []
    walk(folder, [compile_patterns(folder, patterns)], paths.append, with_gitignore, quiet)
    return paths


def upload_limit() -> int:
    """The largest upload that Ray's job server takes, in bytes; no public name holds it."""
    with private_parts("ray"):
        from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
    return int(DASHBOARD_CLIENT_MAX_SIZE)


# ------------------------------------------------------------------------- data


def call_at_each_step(context: Any, make_callback: Callable[[], Callable[[], None]]) -> None:
    """Let the control loop of a Ray Data pipeline call a function at each of its steps.

    The setting for callbacks is undocumented, and their base class is in an internal module.

    Args:
        context: the `DataContext` of the pipeline.
        make_callback: called once for each execution of the pipeline.
    """
    with private_parts("ray"):
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        registered = context.custom_execution_callback_classes

    class StepCallback(ExecutionCallback):
        def __init__(self) -> None:
            self._callback = make_callback()

        def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002 - the name is the interface's
            self._callback()

    context.custom_execution_callback_classes = [*registered, StepCallback]


def set_data_poll_interval(seconds: float) -> None:
    """Set how long the control loop of Ray Data waits for its tasks before it looks which have ended.

    It is a constant of a module; no setting of `DataContext` changes it.
    """
    with private_parts("ray"):
        from ray.data._internal.execution import streaming_executor_state

        _ = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = seconds


def mute_progress_notice() -> None:
    """Drop Ray Data's warning that its progress bars are off, where they were turned off by its public setting.

    Its logger has the name of an internal module; the public one, `ray.data`, would lose more than this.
    """
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


# ------------------------------------------------------------------------ train


def worker_errors(error: BaseException) -> list[BaseException]:
    """What the workers of a trainer raised, by rank; none where something else failed.

    The public `ray.train.WorkerGroupError.worker_failures` holds wrappers, and the error itself is private in them.
    What is no wrapper is returned as it is.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return [getattr(failure, "_base_exc", failure) for failure in failures.values()]


def startup_timeout(error: BaseException) -> BaseException | None:
    """The cause of an error of a trainer whose workers did not find their places in time; None for any other error.

    The public `ray.train.ControllerError` holds the cause, whose class is internal; so it is known by its name.
    """
    cause: BaseException | None = getattr(error, "controller_failure", None)
    return cause if type(cause).__name__ == "WorkerGroupStartupTimeoutError" else None
