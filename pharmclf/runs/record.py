"""What a run writes of itself, run.json: its settings, fingerprints and state; and the lease of its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig, to_dict
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint, sha256_bytes
from pharmclf.core.timeouts import FINAL_STORAGE_S
from pharmclf.data.manifest import Manifest
from pharmclf.schema_version import check_schema_version
from pharmclf.storage.lease import LEASE_FILE, Lease, LeaseHeldError
from pharmclf.training.checkpoint import check_fingerprints
from pharmclf.training.checkpoint_manager import staging_dir

RUN_FILE = "run.json"
# settings that may differ when a run is resumed: they change where and how it runs, not what it computes
_RESULT_NEUTRAL_SETTINGS = (
    "storage",
    "name",
    "workers",
    "max_bad",
    "checkpoint_every_s",
    "keep_checkpoints",
    "activations",
    "activations_dtype",
    "failures",
    "wait_for_nodes",
    "accelerator",
    "hang_after_s",
    "hardware_every_s",
    "allow_open_cluster",
    "skip_checks",
    "extra_test",
    "max_error",
    "tensorboard",
    "mlflow",
    "xla",
    "microbatch",
    "data",
    "weights",
)
# settings that records of runs may lack, as dotted names: with its default, each is as if it were not there
_ADDED_SETTINGS = ("label_level", "min_images", "split.ignore_folders")
_WEIGHT_NAMES = ("imagenet", "none")
_PACKAGES = ("pharmclf", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow", "simplejpeg")


@contextlib.contextmanager
def run_lock(folder: str) -> Iterator[Lease]:
    """Hold the lease of a run's folder.

    Raises:
        ConfigError: another process that lives is writing it.
    """
    try:
        lease = Lease.acquire(folder)
    except LeaseHeldError as error:
        raise ConfigError(f"run {error}. Wait for it, or give another --name") from error
    with lease:
        yield lease


def finalize_record(folder: str, record: dict[str, Any], lease: Lease) -> None:
    """Write how a run has ended; an error of its own must not hide how.

    Raises:
        LeaseLostError: another process has taken the run over.
    """
    lease.check()
    location = storage.join(folder, RUN_FILE)
    if record["state"] != "failed":
        storage.write_json(location, record)
        return
    with contextlib.suppress(OSError), storage.timeout(FINAL_STORAGE_S):
        storage.write_json(location, record)


def read_record(folder: str) -> dict[str, Any] | None:
    """The record of a run; None where there is none.

    Raises:
        ConfigError: it is damaged, or of another version.
    """
    location = storage.join(folder, RUN_FILE)
    if not storage.is_file(location):
        return None
    try:
        record = storage.read_json(location)
    except ValueError as error:
        raise ConfigError(
            f"{location}: not JSON ({error}). Delete it to let the run resume from its checkpoints"
        ) from error
    check_schema_version(record, location)
    return (
        record if isinstance(record, dict) and {"settings", "fingerprints", "state", "seconds"} <= set(record) else None
    )


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def run_fingerprints(config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    """What a run depends on: its images and splits, its settings, its file of weights."""
    weights = weights_fingerprint(config)
    return {"data": manifest.fingerprint, "settings": fingerprint(result_settings(config)), "weights": weights}


def weights_fingerprint(config: RunConfig) -> str:
    """imagenet, none, or the sha256 of a file of weights."""
    return config.weights if config.weights in _WEIGHT_NAMES else sha256_bytes(storage.read_bytes(config.weights))


def resolve_weights_path(config: RunConfig) -> RunConfig:
    """The configuration with the place of a weights file made absolute: workers stand in other folders."""
    if config.weights in _WEIGHT_NAMES:
        return config
    location = storage.absolute(config.weights)
    try:
        found = storage.is_file(location)
    except PermissionError as error:
        raise ConfigError(f"--weights {config.weights}: {error}") from error
    if not found:
        raise ConfigError(f"weights: received {config.weights!r}, expected imagenet, none, or a file that is there")
    return dataclasses.replace(config, weights=location)


def result_settings(config: RunConfig) -> dict[str, Any]:
    """What decides a run's numbers."""
    settings, defaults = _select_result_settings(config), flatten(_select_result_settings(RunConfig()))
    for path in _ADDED_SETTINGS:
        *groups, last = path.split(".")
        inner = settings
        for group in groups:
            inner = inner[group]
        if inner[last] == defaults[path]:
            del inner[last]
    return settings


def _select_result_settings(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in _RESULT_NEUTRAL_SETTINGS}


def has_trained(folder: str) -> bool:
    """Whether a run has left a checkpoint, also one that waits for its upload or that was not written to its end."""
    checkpoints = storage.join(folder, "checkpoints")
    waiting = storage.is_remote(folder) and bool(storage.list_folders(staging_dir(checkpoints)))
    return waiting or bool(storage.list_folders(checkpoints))


def clear_folder(folder: str, only: Collection[str] = ()) -> None:
    """Delete what a run or a sweep has left in its folder, and what waits for its upload. (holder of the lease)

    Args:
        folder: of the run.
        only: names of the files and folders that go; none: all but the lease.
    """
    for name in storage.list_folders(folder):
        if not only or name in only:
            storage.delete_folder(storage.join(folder, name))
    for entry in list(storage.list_files(folder)):
        name = entry.location[len(folder.rstrip("/")) + 1 :]
        if name != LEASE_FILE and (not only or name in only):
            storage.delete_file(entry.location)
    if not only and storage.is_remote(folder):
        storage.delete_folder(staging_dir(storage.join(folder, "checkpoints")))


def check_settings(
    found: Mapping[str, Any], expected: Mapping[str, Any], where: str, ignored: Collection[str] = ()
) -> None:
    """Refuse to resume what has other settings; a setting that an earlier version did not have has its default.

    Args:
        found: nested settings of the record.
        expected: nested settings of the command; those of a sweep hold a run's as `plain`.
        where: names the run.
        ignored: dotted names of settings that may differ.

    Raises:
        ConfigError: names each setting that differs, with both values.
    """
    plain = _select_result_settings(RunConfig())
    defaults = flatten({"plain": plain} if "plain" in expected else plain)
    there, now = ({**defaults, **flatten(dict(settings))} for settings in (found, expected))
    check_fingerprints(
        {name: value for name, value in there.items() if name not in ignored},
        {name: value for name, value in now.items() if name not in ignored},
        where,
    )
