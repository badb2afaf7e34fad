"""Settings that have another name since version 0.1: in configuration files, in records of runs and as flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharmclf.core.errors import ConfigError

RENAMED = {
    "workers": "num_workers",
    "max_bad": "max_invalid",
    "checkpoint_every_s": "checkpoint_interval_s",
    "keep_checkpoints": "num_checkpoints_to_keep",
    "activations": "feature_cache",
    "activations_dtype": "feature_cache_dtype",
    "failures": "max_failures",
    "wait_for_nodes": "node_timeout",
    "hang_after_s": "step_timeout_s",
    "hardware_every_s": "monitor_interval_s",
    "allow_open_cluster": "allow_unauthenticated_cluster",
    "extra_test": "eval_data",
    "max_error": "target_error",
}
"""Earlier name -> name. Records of runs (run.json, sweep.json) keep the earlier one, which their readers rely on."""
_EARLIER = {name: earlier for earlier, name in RENAMED.items()}


def to_current_names(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings by their names, from a file that may use earlier ones.

    Raises:
        ConfigError: a setting by both names.
    """
    twice = [earlier for earlier in RENAMED if earlier in settings and RENAMED[earlier] in settings]
    if twice:
        name = RENAMED[twice[0]]
        raise ConfigError(f"{source}: received {twice[0]} and {name}, which are the same setting. Give {name} alone")
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def to_record_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the keys that records of runs have."""
    return {_EARLIER.get(name, name): value for name, value in settings.items()}
