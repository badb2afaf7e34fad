"""Starts Ray Serve with the models, and stops it on request."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from pharmclf.core.console import Say, print_result, show_activity
from pharmclf.core.errors import ConfigError, RunError, error_reason
from pharmclf.core.signals import GracefulShutdown
from pharmclf.core.units import format_count
from pharmclf.core.usual_times import LOAD_MODEL_S
from pharmclf.distributed.cluster import connect, usable_nodes
from pharmclf.distributed.ray_address import requested_address
from pharmclf.evaluation.saved_model import load_model_info
from pharmclf.inference.options import AUTO
from pharmclf.inference.placement import plan_actors
from pharmclf.serving.options import ServeOptions, digest
from pharmclf.serving.replica import Deployment

APPLICATION = "pharmclf"
_ONGOING = 64  # requests that a replica works on: two full batches of single images
_TARGET = 24.0  # of them for each replica, above which another one starts
_QUEUED = 512  # requests that wait for a replica; more are refused with 503
_ATTEMPTS = 3  # to start a replica
_POLL_INTERVAL_S = 0.5
# what blocks runs in threads, so that replicas and proxies do without a second event loop
_ENVIRONMENT = {
    "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
}
_LOGS = {"log_level": "WARNING", "enable_access_log": False}


def serve_models(options: ServeOptions, say: Say) -> int:
    """Serve models until a stop is requested.

    Returns:
        The exit code: 130 or 143, of the signal.

    Raises:
        ConfigError: a model that cannot be used, or a port that is in use.
        RunError: the replicas did not start.
    """
    token, is_new = options.find_token()
    for name, location in options.models.items():
        model = load_model_info(location)
        say(f"model {name}: version {model.sha256[:12]}, {format_count(len(model.labels), 'class')}, {location}")
        if model.verdict and model.verdict.warning:
            say(model.verdict.warning)
    on_cluster = bool(requested_address())
    if not on_cluster:
        _check_port(options.host, options.port)
    with GracefulShutdown("stopping: requests that are in work are answered first (once more to end at once)") as stop:
        connect(allow_open=options.allow_unauthenticated_cluster)
        try:
            with show_activity("loading the models", LOAD_MODEL_S):
                start(options, token)
            _announce(options, token, is_new=is_new)
            while stop.received is None:
                time.sleep(_POLL_INTERVAL_S)
        finally:
            serve.delete(APPLICATION)  # answers what is in work
            if on_cluster and not serve.status().applications:
                serve.shutdown()
        return stop.exit_code


def start(options: ServeOptions, token: str) -> None:
    """Start the server on the Ray of this process, and wait until it answers.

    Args:
        token: as of `find_token`.

    Raises:
        RunError: the replicas did not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    address = {"host": options.host, "port": options.port}
    controller = {"runtime_env": _ENVIRONMENT}
    serve.start(proxy_location="HeadOnly", http_options=address, logging_config=_LOGS, controller_options=controller)
    try:
        serve.run(build_application(options, token), name=APPLICATION, route_prefix="/", logging_config=_LOGS)
    except (RuntimeError, TimeoutError) as error:
        status = serve.status().applications.get(APPLICATION)
        text = "".join(deployment.message for deployment in status.deployments.values()) if status else ""
        reason = (text or str(error)).strip().splitlines()[-1]  # of the traceback of a replica
        raise RunError(f"serve: the replicas did not start: {reason}") from error


def build_application(options: ServeOptions, token: str) -> serve.Application:
    """The application of Ray Serve.

    Args:
        token: that requests must have; "": they need none.
    """
    nodes = usable_nodes()
    chosen = options.replica_range
    gpus = options.accelerator == "gpu" or (options.accelerator == AUTO and any(node.gpus for node in nodes))
    least, most = chosen or (plan_actors(nodes, AUTO, options.accelerator),) * 2
    scaling: dict[str, Any] = {"num_replicas": least}
    if least < most:
        limits = AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=_TARGET)
        scaling = {"autoscaling_config": limits}
    return Deployment.options(
        **scaling,
        max_ongoing_requests=_ONGOING,
        max_queued_requests=_QUEUED,
        max_constructor_retry_count=_ATTEMPTS,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpus), "runtime_env": _ENVIRONMENT},
        graceful_shutdown_timeout_s=options.limits.seconds,
    ).bind(options.models, options.limits, digest(token))


def from_arguments(arguments: Mapping[str, Any]) -> serve.Application:
    """The application for a file of Ray Serve, such as that of a RayService; the token is in the environment.

    Args:
        arguments: fields of `ServeOptions` -> their values.

    Raises:
        ConfigError: an unknown field, or a value that cannot be used.
    """
    try:
        options = ServeOptions(**{**arguments, "model": tuple(arguments.get("model", ()))})
    except TypeError as error:
        raise ConfigError(f"args: {error}. Give fields of ServeOptions, such as model and replicas") from error
    token, is_new = options.find_token()
    if is_new:
        raise ConfigError("args: received no token, expected PHARMCLF_SERVE_TOKEN in the environment. Set it")
    return build_application(options, token)


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error_reason(error)}, expected an address where nothing listens. Give "
            "another --port"
        ) from error


def _announce(options: ServeOptions, token: str, *, is_new: bool) -> None:
    name = socket.gethostname() if options.host in ("0.0.0.0", "::") else options.host
    address = f"http://{f'[{name}]' if ':' in name else name}:{options.port}/"
    if is_new:
        print_result(f"serving at {address}#token={token}")
    else:
        print_result(f"serving at {address}{'' if token else ', without a token'}")
