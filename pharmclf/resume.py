"""What a command finds in the folder of its run: nothing, a run that it resumes or extends, or one that is complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from pharmclf import storage
from pharmclf.config import RunConfig, from_dict, to_record
from pharmclf.config.parsing import parse_image_sizes
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_OK, ConfigError
from pharmclf.core.terminal import Result
from pharmclf.crop import crop_images
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_manifest
from pharmclf.data.run_manifest import read_run_manifest, update_run_manifest
from pharmclf.evaluation.label_alignment import adapt_to_model
from pharmclf.progress import scan_progress
from pharmclf.reporting.next_steps import TrainedModel
from pharmclf.reporting.run_summary import summary_text
from pharmclf.runs.final_evaluation import rerun_final_evaluation, untested_datasets
from pharmclf.runs.record import (
    RUN_FILE,
    RecordState,
    RunRecord,
    check_settings,
    flatten,
    has_trained,
    read_record,
    result_settings,
    run_lock,
    weights_fingerprint,
)
from pharmclf.runs.status import STATUS_FILE
from pharmclf.schema_version import load_record
from pharmclf.tracking import track_complete
from pharmclf.tracking.mlflow_client import ID_FILE
from pharmclf.training.checkpoint import check_fingerprints, list_checkpoints
from pharmclf.training.checkpoint_manager import staging_dir
from pharmclf.training.phases import Position, build_phases
from pharmclf.training.train_state import TrainState

_TRAINED_STATES = (RecordState.TRAINED, RecordState.COMPLETE)  # the model exists, with or without its checkpoints
_START_FILES = (STATUS_FILE, ID_FILE)  # left by a run that has trained nothing


@dataclass(frozen=True)
class RunStart:
    """How a run begins."""

    record: RunRecord | None = None
    """Of the run to resume; None: a new one begins."""
    clears: Collection[str] | None = None
    """Names to delete from its folder first, empty: all; None: nothing is deleted."""
    grown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Settings by which it trains for longer than it began with, by dotted name: value before, and now."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.record is not None and self.record.state is RecordState.COMPLETE and not self.grown


def inspect_run_folder(config: RunConfig, folder: str, say: Say, *, overwrite: bool) -> RunStart:
    """Decide how a run begins by the content of its folder; nothing is changed.

    Args:
        config: the run.
        folder: its folder.
        say: takes lines for the console.
        overwrite: whether an existing run is replaced.

    Raises:
        ConfigError: the existing run has other settings, or its record is damaged.
    """
    if overwrite:
        if not has_record(folder, read_record):
            return RunStart()
        say(f"note: --overwrite: the run in {folder} is deleted, and a new one begins")
        return RunStart(clears=())
    record = read_record(folder)
    if record is None:
        return RunStart()
    if record.state not in _TRAINED_STATES and not has_trained(folder):
        say(f"note: the run in {folder} has trained nothing, and begins again with the settings of this command")
        return RunStart(clears=_START_FILES)
    name, (grown, idle) = f"run {folder}", find_extension(folder, record, config)
    check_settings(record.settings, result_settings(config), name, grown)
    weights = record.fingerprints.get("weights")
    check_fingerprints({"weights": weights}, {"weights": weights_fingerprint(config)}, name)
    if idle and record.state is RecordState.COMPLETE:
        say(f"note: the run trains no more with another {' and '.join(grown)}: {idle}")
        return RunStart(record=record)
    for setting, (before, now) in grown.items():
        say(f"note: {setting} is {before} there and {now} now: training continues from the newest checkpoint")
    return RunStart(record=record, grown=grown)


def has_record(folder: str, read: Callable[[str], object]) -> bool:
    """Whether a folder holds the record of a run or sweep, also a damaged one.

    Args:
        folder: of the run or sweep.
        read: reads its record.
    """
    try:
        return read(folder) is not None
    except ConfigError:
        return True


def run_manifest(config: RunConfig, folder: str, fingerprint: str | None, say: Say) -> Manifest:
    """Read or make the manifest of a run or sweep; a resumed one keeps the manifest that it began with.

    Args:
        config: the run.
        folder: its folder.
        fingerprint: of the data in the record of the run or sweep that is resumed; None: there is no record.
        say: takes lines for the console.

    Raises:
        ConfigError: the images cannot be used, or differ from those that it began with.
    """
    trained = fingerprint or _training_fingerprint(folder)
    kept = read_run_manifest(folder, trained) if trained else None
    if kept is not None:
        return update_run_manifest(config, folder, kept, say, scan_progress())
    manifest = crop_images(config, adapt_to_model(config, split_manifest(config, folder, scan_progress())))
    if fingerprint:
        check_fingerprints({"data": fingerprint}, {"data": manifest.fingerprint}, f"run {folder}")
    return manifest


def _training_fingerprint(folder: str) -> str:
    """Fingerprint of the data that the newest checkpoint was trained on; "" where there is none."""
    checkpoints = list_checkpoints(storage.join(folder, "checkpoints"))
    return str(checkpoints[-1].fingerprints.get("data", "")) if checkpoints else ""


def reopen_complete_run(config: RunConfig, folder: str, record: RunRecord, say: Say) -> int:
    """Evaluate a complete run on the data sets that are new to it, and report that it is complete.

    Its own images are not read, unless the command gives another location for them.

    Args:
        config: as the command gives it.
        folder: of the run.
        record: of the run.
        say: takes lines for the console.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: other images, a data set that cannot be evaluated, or another process writes the run.
    """
    check_data_location(config, folder, record.config, record.fingerprints["data"], say)
    evaluate_further_datasets(config, folder, record, say)
    before = from_dict(record.config, source=RUN_FILE).target_error
    if before != config.target_error:
        say(f"note: the threshold of the run stays that of --target-error {before}; {config.target_error} is not used")
    track_complete(config, folder, record, say)
    trained = TrainedModel.of_run(config, folder)
    say(Result(summary_text(load_record(storage.join(folder, "result.json")), folder, trained)))
    say(
        f"the run {folder} is complete already; give more --phase2.epochs or --stopping.early-patience to extend "
        "it, another --name, or --overwrite"
    )
    return EXIT_OK


def check_data_location(
    config: RunConfig, folder: str, recorded: Mapping[str, object], fingerprint: str, say: Say
) -> None:
    """Compare the images with those of a complete run or sweep, if the command gives another location for them.

    Args:
        config: as the command gives it.
        folder: of the run or sweep.
        recorded: the configuration in its record.
        fingerprint: of its data.
        say: takes lines for the console.

    Raises:
        ConfigError: they differ.
    """
    if storage.absolute(config.data) != storage.absolute(str(recorded.get("data", ""))):
        run_manifest(config, folder, fingerprint, say)


def evaluate_further_datasets(config: RunConfig, folder: str, record: RunRecord, say: Say) -> bool:
    """Evaluate a complete run on the sets of `eval_data` and `unknown` that are new to it, and write its report again.

    Args:
        config: with the requested data sets; those of the run are kept.
        folder: of the run.
        record: of the run; the data sets are added to it.
        say: takes lines for the console.

    Returns:
        Whether a data set was new.

    Raises:
        ConfigError: a data set that cannot be evaluated, or a run that lacks what its report needs.
    """
    result = load_record(storage.join(folder, "result.json"))
    sets = untested_datasets(config, result)
    if not sets:
        return False
    say(f"the run is complete; it is tested on {', '.join(sets)} now, and its report is renewed")
    manifest = read_run_manifest(folder, record.fingerprints["data"])
    checkpoints = list_checkpoints(storage.join(folder, "checkpoints"))
    if manifest is None or not checkpoints:
        lacks = "manifest" if manifest is None else "checkpoints"
        raise ConfigError(
            f"--eval-data: the run {folder} has lost its {lacks}, so that its report cannot be renewed. Test its "
            f"model with pharmclf evaluate --model {folder} --data {next(iter(sets.values()))}"
        )
    recorded = from_dict(record.config, source=RUN_FILE)
    evaluated = dataclasses.replace(
        recorded,
        storage=config.storage,
        max_invalid=config.max_invalid,
        eval_data=tuple(f"{name}={at}" for name, at in (recorded.eval_locations | config.eval_locations).items()),
        unknown=tuple(f"{name}={at}" for name, at in (recorded.unknown_locations | config.unknown_locations).items()),
    )
    with run_lock(folder):
        rerun_final_evaluation(evaluated, folder, manifest, checkpoints[-1].state, result, record, say)
        tested = dataclasses.replace(recorded, eval_data=evaluated.eval_data, unknown=evaluated.unknown)
        record.config = to_record(tested)
        record.write(folder)
    return True


def find_extension(folder: str, record: RunRecord, config: RunConfig) -> tuple[dict[str, tuple[int, int]], str]:
    """Find what lets a run train for longer than it began with: its epochs and early_patience.

    A phase that has not begun may have more epochs. The current or last phase may if its learning rate does not depend
    on their number, earlier phases may not. So may early_patience, unless it has ended a phase before the current one.

    Returns:
        Dotted name -> value before, and now; and why the run trains no more even so, "" if it does.

    Raises:
        ConfigError: a schedule has been planned over fewer epochs, or a phase that early stopping ended is over.
    """
    found, wanted = flatten(record.settings), flatten(result_settings(config))
    stop, epochs = "stopping.early_patience", [f"{phase}.epochs" for phase in ("phase1", "phase2")]
    more = {name: (int(found[name]), int(wanted[name])) for name in epochs if found[name] < wanted[name]}
    if found[stop] > 0 and not 0 < wanted[stop] <= found[stop]:
        more[stop] = found[stop], wanted[stop]
    if not more:
        return {}, ""
    at, state = _newest_checkpoint(folder)

    def refuse(name: str, reason: str) -> ConfigError:
        there, now = more[name]
        return ConfigError(
            f"run {folder}: {name}: {there} there, {now} now, and {reason}. Give the settings of that run, or train a "
            f"new run from its model: --name NEW --init-from {folder}"
        )

    before = dataclasses.replace(config.stopping, early_patience=found[stop])
    for number, name in enumerate(epochs):
        phase = name.removesuffix(".epochs")
        trained = sum(epoch.phase == phase for epoch in state.history)
        was_stopped = phase in state.monitors and state.monitors[phase].should_stop(before)
        if number < at.phase:
            more.pop(name, None)
            if stop in more and was_stopped and trained < state.epochs.get(phase, found[name]):
                raise refuse(stop, f"it ended {phase}, which is over")
        elif number == at.phase and name in more:
            if found[f"{phase}.schedule"] == "cosine":
                raise refuse(name, f"its cosine schedule ends at epoch {found[name]}")
            text = getattr(config, phase).image_size
            sizes = [parse_image_sizes(text, count, name, config.image_size)[: found[name]] for count in more[name]]
            if sizes[0] != sizes[1]:
                raise refuse(name, f"its image sizes {text} are shares of {found[name]} epochs")
    last = build_phases(config)[-1]
    if last.number != at.phase:
        return more, ""
    if last.name in state.monitors and state.monitors[last.name].should_stop(config.stopping):
        return more, f"{last.name} has ended by {stop} {wanted[stop]}"
    return more, f"{last.name} has all of its epochs" if at.epoch >= last.settings.epochs else ""


def _newest_checkpoint(folder: str) -> tuple[Position, TrainState]:
    """Position and state of the newest checkpoint, also of one that waits for its upload."""
    checkpoints, state = storage.join(folder, "checkpoints"), TrainState()
    places = [checkpoints, *([staging_dir(checkpoints)] if storage.is_remote(folder) else [])]
    found = [checkpoint for place in places for checkpoint in list_checkpoints(place)]
    newest = max(found, key=lambda checkpoint: checkpoint.position, default=None)
    if newest is None:
        return Position(0, 0, 0), state
    state.load_state_dict(newest.state)
    return newest.position, state
