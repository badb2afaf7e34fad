"""run.json, the record of a run: its settings, fingerprints and state; and the lease of its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import platform
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from pharmclf import storage
from pharmclf.config import PIXEL_CHANGES, RunConfig, to_dict
from pharmclf.config.fields import select_names
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint, sha256_bytes
from pharmclf.core.timeouts import FINAL_STORAGE_S
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version
from pharmclf.storage.lease import LEASE_FILE, Lease, LeaseHeldError
from pharmclf.training.checkpoint import check_fingerprints
from pharmclf.training.checkpoint_manager import staging_dir
from pharmclf.training.microbatch import MicrobatchRecord

if TYPE_CHECKING:
    from pharmclf.data.manifest import Manifest  # imports pandas, which the status of runs does without

RUN_FILE = "run.json"
REPORT_FILE = "report.html"
# settings that records of runs may lack, as dotted names: with its default, each is as if it were not there
_ADDED_SETTINGS = (
    "label_level", "min_images", "split.ignore_folders", "all_reduce_dtype", "crop", "phase1.image_size",
    "phase2.image_size", "time_budget", "folds", "labels", *(f"augment.{name}" for name in PIXEL_CHANGES),
)  # fmt: skip
_WEIGHT_NAMES = ("imagenet", "none")
_PACKAGES = ("pharmclf", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow", "simplejpeg")


class RecordState(StrEnum):
    """State of a run in its record; the status file says more of one that runs."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    STOPPED = "stopped"
    """A trial that others have beaten."""
    TRAINED = "trained"
    """The model is saved and not tested yet."""
    COMPLETE = "complete"


@dataclass(frozen=True)
class ResolvedSettings:
    """Values that `auto` became when the run began; its restarts keep them, or they would take other steps."""

    precision: str | None = None
    microbatch: MicrobatchRecord | None = None
    cached_phases: tuple[str, ...] | None = None
    """Names of the phases that train on cached features; None: not decided yet."""


@dataclass(kw_only=True)
class RunRecord:
    """Content of run.json."""

    name: str
    settings: dict[str, Any]
    """The settings that decide the result, nested."""
    config: dict[str, Any]
    """The configuration, as plain values."""
    fingerprints: dict[str, str]
    """Of the data, the settings and the initial weights."""
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    state: RecordState = RecordState.RUNNING
    seconds: float = 0.0
    """Duration so far, over all starts."""
    resolved: ResolvedSettings = ResolvedSettings()
    device: str | None = None
    trial: dict[str, Any] | None = None
    """Of a trial of a sweep: its number, values and use of resources."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        phases = self.resolved.cached_phases
        values: dict[str, Any] = {"precision": self.resolved.precision, "microbatch": self.resolved.microbatch}
        values["activations"] = None if phases is None else list(phases)
        values |= {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "resolved"}
        return {SCHEMA_KEY: SCHEMA_VERSION} | {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises:
            LookupError, ValueError: it is no record of a run.
        """
        phases = values.get("activations")
        return cls(
            name=str(values.get("name", "")),
            settings=dict(values["settings"]),
            config=dict(values.get("config", {})),
            fingerprints=dict(values["fingerprints"]),
            versions=dict(values.get("versions", {})),
            command=values.get("command"),
            state=RecordState(values["state"]),
            seconds=float(values["seconds"]),
            resolved=ResolvedSettings(
                precision=values.get("precision"),
                microbatch=values.get("microbatch"),
                cached_phases=None if phases is None else tuple(phases),
            ),
            device=values.get("device"),
            trial=values.get("trial"),
        )

    def write(self, folder: str) -> None:
        """Write it into the folder of the run."""
        storage.write_json(storage.join(folder, RUN_FILE), self.to_dict())


def read_record(folder: str) -> RunRecord | None:
    """Read the record of a run; None where there is none, or a file of another program.

    Raises:
        ConfigError: it is damaged, or of another version.
    """
    location = storage.join(folder, RUN_FILE)
    if not storage.is_file(location):
        return None
    try:
        values = storage.read_json(location)
    except ValueError as error:
        raise ConfigError(
            f"{location}: not JSON ({error}). Delete it to let the run resume from its checkpoints"
        ) from error
    check_schema_version(values, location)
    required = {"settings", "fingerprints", "state", "seconds"}
    try:
        return RunRecord.from_dict(values) if isinstance(values, dict) and required <= set(values) else None
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{location}: damaged ({error!r}). Delete it to let the run resume") from error


def write_final_record(folder: str, record: RunRecord, lease: Lease) -> None:
    """Write how a run has ended; where it failed, no other error hides the first.

    Raises:
        LeaseLostError: another process has taken the run over.
    """
    lease.check()
    if record.state is not RecordState.FAILED:
        record.write(folder)
        return
    with contextlib.suppress(OSError), storage.timeout(FINAL_STORAGE_S):
        record.write(folder)


@contextlib.contextmanager
def run_lock(folder: str) -> Iterator[Lease]:
    """Hold the lease of a run's folder.

    Raises:
        ConfigError: another live process holds it.
    """
    try:
        lease = Lease.acquire(folder)
    except LeaseHeldError as error:
        raise ConfigError(f"run {error}. Wait for it, or use another --name") from error
    with lease:
        yield lease


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
    """imagenet, none, or the sha256 of a file of weights; followed by a word where its head is used too."""
    if config.weights in _WEIGHT_NAMES:
        return config.weights
    return sha256_bytes(storage.read_bytes(config.weights)) + ("+head" if config.init_from else "")


def resolve_weights_path(config: RunConfig) -> RunConfig:
    """Make the location of a weights file absolute, since workers have other working directories.

    With `init_from`, both settings become the location of the model.

    Raises:
        ConfigError: no such file or model, or two sources of weights.
    """
    if config.init_from:
        if config.weights not in ("imagenet", config.init_from):
            raise ConfigError(
                f"--weights: received {config.weights!r} with --init-from {config.init_from}, which gives the weights "
                "too. Give one of them"
            )
        from pharmclf.evaluation.saved_model import load_model_info  # imports pandas; the status of runs does without

        location = load_model_info(config.init_from, "--init-from").location
        return dataclasses.replace(config, init_from=location, weights=location)
    if config.weights in _WEIGHT_NAMES:
        return config
    location = storage.absolute(config.weights)
    try:
        found = storage.is_file(location)
    except PermissionError as error:
        raise ConfigError(f"--weights {config.weights}: {error}") from error
    if not found:
        near = difflib.get_close_matches(config.weights, _WEIGHT_NAMES, n=1)
        did = f". Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--weights: received {config.weights!r}, expected imagenet, none, or an existing file{did}")
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
    neutral = select_names(RunConfig, "affects_result", False)
    return {name: value for name, value in to_dict(config).items() if name not in neutral}


def has_trained(folder: str) -> bool:
    """Whether a run has left a checkpoint, also one that waits for its upload or that was not written to its end."""
    checkpoints = storage.join(folder, "checkpoints")
    waiting = storage.is_remote(folder) and bool(storage.list_folders(staging_dir(checkpoints)))
    return waiting or bool(storage.list_folders(checkpoints))


def clear_folder(folder: str, only: Collection[str] = ()) -> None:
    """Delete what a run or a sweep has left in its folder, and what waits for its upload. (holder of the lease)

    Args:
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
        expected: nested settings of the command; those of a sweep hold a run's as `plain`.
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
