"""What a command finds in the folder of its run: nothing, a run that it resumes or extends, or one that is complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.cli import EXIT_OK, scan_progress
from pharmclf.config import RunConfig, from_dict
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_manifest
from pharmclf.data.run_manifest import read_run_manifest, update_run_manifest
from pharmclf.reporting.run_summary import summary_text
from pharmclf.runs.record import (
    RUN_FILE,
    check_settings,
    flatten,
    has_trained,
    read_record,
    result_settings,
    run_lock,
    weights_fingerprint,
)
from pharmclf.runs.reevaluation import rerun_final_evaluation, untested_datasets
from pharmclf.runs.status import STATUS_FILE
from pharmclf.schema_version import load_record
from pharmclf.tracking import track_complete
from pharmclf.tracking.mlflow_client import ID_FILE
from pharmclf.training.checkpoint import check_fingerprints, list_checkpoints
from pharmclf.training.checkpoint_manager import staging_dir
from pharmclf.training.context import MODEL_FILE
from pharmclf.training.phases import Position

# states in which there is a model, whether its checkpoints are still there or not
_TRAINED_STATES = ("trained", "complete")
_START_FILES = (STATUS_FILE, ID_FILE)  # what a run that has trained nothing leaves to the next one of its name


@dataclass(frozen=True)
class RunStart:
    """How a run begins."""

    record: dict[str, Any] | None = None
    """Of the run that is resumed; None: a new one begins."""
    clears: Collection[str] | None = None
    """Names that are deleted from its folder first, all if empty; None: nothing is."""
    grown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Phases that train for more epochs than the run began with: epochs there, and now."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.record is not None and self.record["state"] == "complete" and not self.grown


def inspect_run_folder(config: RunConfig, folder: str, say: Say, *, overwrite: bool) -> RunStart:
    """See what the folder of a run holds; nothing is changed.

    Args:
        config: the run.
        folder: its folder.
        say: takes lines for the console.
        overwrite: whether a run that is there is replaced.

    Raises:
        ConfigError: the run there has other settings, or its record is damaged.
    """
    record = find_record(folder, read_record, overwrite=overwrite)
    if record is None:
        return RunStart()
    if overwrite:
        say(f"note: --overwrite: the run in {folder} is deleted, and a new one begins")
        return RunStart(clears=())
    if record["state"] not in _TRAINED_STATES and not has_trained(folder):
        say(f"note: the run in {folder} has trained nothing, and begins again with the settings of this command")
        return RunStart(clears=_START_FILES)
    where, grown = f"run {folder}", extended_epochs(folder, record, config)
    check_settings(record["settings"], result_settings(config), where, [f"{name}.epochs" for name in grown])
    weights = record["fingerprints"].get("weights")
    check_fingerprints({"weights": weights}, {"weights": weights_fingerprint(config)}, where)
    for name, (there, now) in grown.items():
        say(f"note: {name}.epochs is {there} there and {now} now: training continues from the newest checkpoint")
    return RunStart(record=record, grown=grown)


def find_record(folder: str, read: Callable[[str], dict[str, Any] | None], *, overwrite: bool) -> dict[str, Any] | None:
    """The record of the run or sweep in a folder; None where there is none.

    Args:
        folder: of the run or sweep.
        read: reads its record.
        overwrite: whether it is replaced, so that a damaged record is no obstacle.

    Raises:
        ConfigError: the record is damaged.
    """
    try:
        return read(folder)
    except ConfigError:
        if not overwrite:
            raise
        return {"state": "damaged"}


def run_manifest(config: RunConfig, folder: str, record: Mapping[str, Any] | None, say: Say) -> Manifest:
    """The manifest that a run or sweep trains on: that of its beginning, whatever has happened to the images since.

    Args:
        config: the run.
        folder: its folder.
        record: of what is resumed; None: it begins, or has lost its record.
        say: takes lines for the console.

    Raises:
        ConfigError: the images cannot be used, or are not those that it began with.
    """
    fingerprint = record["fingerprints"]["data"] if record else _training_fingerprint(folder)
    kept = read_run_manifest(folder, fingerprint) if fingerprint else None
    if kept is not None:
        return update_run_manifest(config, folder, kept, say, scan_progress(say))
    manifest = split_manifest(config, folder, scan_progress(say))
    if record is not None:
        check_fingerprints({"data": fingerprint}, {"data": manifest.fingerprint}, f"run {folder}")
    return manifest


def _training_fingerprint(folder: str) -> str:
    """Fingerprint of the data that the newest checkpoint was trained on; "" where there is none."""
    checkpoints = list_checkpoints(storage.join(folder, "checkpoints"))
    return str(checkpoints[-1].fingerprints.get("data", "")) if checkpoints else ""


def reopen_complete_run(config: RunConfig, folder: str, record: dict[str, Any], say: Say) -> int:
    """A complete run is asked for again: test it on the sets that it has not seen, and say that it is complete.

    The images are not looked at, unless the command names another place for them.

    Args:
        config: as the command gives it.
        folder: of the run.
        record: its run.json.
        say: takes lines for the console.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: other images, a set that cannot be tested, or another process writes the run.
    """
    check_data_location(config, folder, record, say)
    evaluate_further_datasets(config, folder, record, say)
    if (before := record["config"].get("max_error", config.max_error)) != config.max_error:
        say(f"note: the threshold of the run stays that of --max-error {before}; {config.max_error} is not used")
    track_complete(config, folder, record, say)
    say(summary_text(load_record(storage.join(folder, "result.json")), folder))
    say(f"the run {folder} is complete already; give another --name, or --overwrite, to train again")
    return EXIT_OK


def check_data_location(config: RunConfig, folder: str, record: Mapping[str, Any], say: Say) -> None:
    """Where a complete run or sweep is given another place of its images, see whether they are the same.

    Raises:
        ConfigError: they are others.
    """
    before = str(record["config"].get("data", ""))
    if storage.absolute(config.data) != storage.absolute(before):
        run_manifest(config, folder, record, say)


def evaluate_further_datasets(config: RunConfig, folder: str, record: dict[str, Any], say: Say) -> bool:
    """Test a complete run on the sets of `extra_test` that it has not been tested on, and renew its report.

    Args:
        config: its sets are asked for; those of the run stay.
        folder: of the run.
        record: its run.json; the sets are added to it.
        say: takes lines for the console.

    Returns:
        Whether there was something to test.

    Raises:
        ConfigError: a set that cannot be tested, or a run of which not enough is left for a report.
    """
    result = load_record(storage.join(folder, "result.json"))
    sets = untested_datasets(config, result)
    if not sets:
        return False
    say(f"the run is complete; it is tested on {', '.join(sets)} now, and its report is renewed")
    manifest = read_run_manifest(folder, record["fingerprints"]["data"])
    checkpoints = list_checkpoints(storage.join(folder, "checkpoints"))
    if manifest is None or not checkpoints:
        lacks = "manifest" if manifest is None else "checkpoints"
        raise ConfigError(
            f"--extra-test: the run {folder} has lost its {lacks}, so that its report cannot be renewed. Test its "
            f"model with jobs/evaluate.py --model {folder} --data {next(iter(sets.values()))}"
        )
    before = from_dict(record["config"], source=RUN_FILE)
    wanted = before.extra_tests | config.extra_tests
    tested = dataclasses.replace(
        before,
        storage=config.storage,
        max_bad=config.max_bad,
        extra_test=tuple(f"{name}={location}" for name, location in wanted.items()),
    )
    with run_lock(folder):
        rerun_final_evaluation(tested, folder, manifest, checkpoints[-1].state, result, record, say)
        record["config"] = record["config"] | {"extra_test": list(tested.extra_test)}
        storage.write_json(storage.join(folder, RUN_FILE), record)
    return True


def extended_epochs(folder: str, record: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[int, int]]:
    """The phases that may train for more epochs than the run began with: phase -> epochs there, and now.

    A phase that has not begun may. One under way or at its end may where its learning rate does not depend on the
    number of its epochs; the phase before must stay as it was.

    Raises:
        ConfigError: a cosine schedule has been planned over fewer epochs.
    """
    found = flatten(record["settings"])
    wanted = {"phase1": config.phase1, "phase2": config.phase2}
    more = {
        name: (int(found[f"{name}.epochs"]), phase.epochs)
        for name, phase in wanted.items()
        if int(found[f"{name}.epochs"]) < phase.epochs
    }
    if not more:
        return {}
    at = _newest_position(folder).phase
    grown = {}
    for number, name in enumerate(wanted):
        if name not in more or number < at:
            continue
        if number == at and found[f"{name}.schedule"] == "cosine":
            there, now = more[name]
            model = storage.join(folder, MODEL_FILE)
            raise ConfigError(
                f"run {folder}: {name}.epochs: {there} there, {now} now, and its cosine schedule ends at epoch {there}."
                f" Give the settings of that run, or train a new run from its model: --name NEW --weights {model}"
            )
        grown[name] = more[name]
    return grown


def _newest_position(folder: str) -> Position:
    """Of the newest checkpoint, also of one that waits for its upload."""
    checkpoints = storage.join(folder, "checkpoints")
    places = [checkpoints, *([staging_dir(checkpoints)] if storage.is_remote(folder) else [])]
    positions = [checkpoint.position for place in places for checkpoint in list_checkpoints(place)]
    return max(positions, default=Position(0, 0, 0))
