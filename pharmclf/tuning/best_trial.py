"""The winner of a sweep: the only trial whose model is saved and tested."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pandas as pd
import ray

from pharmclf import pipeline, storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import EXIT_OK
from pharmclf.core.signals import StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_count
from pharmclf.core.usual_times import LOAD_MODEL_S
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import write_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.distributed.cluster import device_kind
from pharmclf.evaluation.datasets import split_dataset
from pharmclf.evaluation.evaluate import predictions_table
from pharmclf.evaluation.metrics import paired_difference, proportion
from pharmclf.evaluation.scoring import predict_datasets
from pharmclf.models.devices import configure_devices
from pharmclf.reporting.sweep_report import PlainComparison, comparison_line
from pharmclf.runs.final_evaluation import run_final_evaluation
from pharmclf.runs.record import RUN_FILE, RecordState, RunRecord
from pharmclf.schema_version import load_record
from pharmclf.training.checkpoint import Checkpoint, CorruptedCheckpointError, list_checkpoints
from pharmclf.training.context import MODEL_FILE
from pharmclf.training.train_state import TrainState, finalize_best
from pharmclf.tuning.options import SweepOptions
from pharmclf.tuning.trial_store import Trial, TrialStore

RETRAINED = "winner"
StopRequest = Callable[[], bool]
"""Whether the sweep was asked to end."""


def evaluate_winner(
    store: TrialStore,
    number: int,
    options: SweepOptions,
    manifest: Manifest,
    say: Say,
    quarantine: Quarantine,
    stop_requested: StopRequest,
) -> tuple[str, int, PlainComparison | None]:
    """Test the winner, as it is or trained again, and the plain run on the same images.

    Args:
        number: of the winner, a trial with checkpoints.
        manifest: with splits.
        quarantine: takes the images that are not what the manifest says.

    Returns:
        Folder of the tested model; the exit code, not 0 where its training was stopped; how it compares with the plain
        run, None where that has won or has no intact checkpoint.

    Raises:
        StopRequested: it was, before the models were tested.
    """
    trial, workers = store.trials[number], options.workers_per_trial
    if options.winner == "retrain":
        folder = storage.join(store.plan.folder, "trials", RETRAINED)
        config = dataclasses.replace(
            trial.config, name=RETRAINED, num_workers=str(workers), mlflow=""
        )  # logged by the sweep
        if (code := pipeline.run(config, say, folder, manifest=manifest)) != EXIT_OK:
            return folder, code, None
    else:
        folder = _evaluate(trial, manifest, workers, store.plan.precision, say, quarantine, stop_requested)
    plain = store.trials.get(0)
    if plain is None or plain is trial:
        return folder, EXIT_OK, None
    return folder, EXIT_OK, _compare_with_plain(plain, folder, manifest, workers, say, stop_requested)


def _evaluate(
    trial: Trial,
    manifest: Manifest,
    workers: int,
    precision: str,
    say: Say,
    quarantine: Quarantine,
    stop_requested: StopRequest,
) -> str:
    """Save the model of a trial as it is, and test it -> its folder."""
    state = _save_models_of(trial, list_checkpoints(storage.join(trial.folder, "checkpoints")), manifest, say)
    outcome = state.to_result(device=device_kind(), precision=precision, workers=workers)
    write_manifest(manifest, trial.folder)
    record = RunRecord.from_dict(load_record(storage.join(trial.folder, RUN_FILE)))
    run_final_evaluation(
        trial.config, trial.folder, manifest, outcome, record, say, quarantine, stop_requested=stop_requested
    )
    record.state = RecordState.COMPLETE
    record.write(trial.folder)
    return trial.folder


def _compare_with_plain(
    plain: Trial, winner_folder: str, manifest: Manifest, workers: int, say: Say, stop_requested: StopRequest
) -> PlainComparison | None:
    """Test the model of the plain run on the images on which the winner was tested; it is deleted afterwards."""
    checkpoints = list_checkpoints(storage.join(plain.folder, "checkpoints"))
    if not checkpoints:
        return None

    def check() -> None:
        if stop_requested():
            raise StopRequested

    check()
    content = storage.read_bytes(storage.join(winner_folder, "evaluation", "test", "predictions.parquet"))
    of_winner = pd.read_parquet(io.BytesIO(content), columns=["row", "label", "predicted"])
    say(f"testing the plain run, trial 0, on the same {format_count(len(of_winner), 'test image')}")
    try:
        _save_models_of(plain, checkpoints, manifest, say)
    except CorruptedCheckpointError as error:
        say(f"warning: the plain run cannot be tested: {error}")
        return None
    tested = split_dataset(manifest, "test", plain.config.data)
    model, size, gpus = storage.join(plain.folder, MODEL_FILE), plain.config.image_size, device_kind() != "CPU"
    ((images, parts, _),) = predict_datasets(
        [model], [tested], size, manifest.locator_size, actors=workers, gpus=gpus, check=check
    )
    storage.delete_folder(storage.join(plain.folder, "model"))
    table = predictions_table(images.rows, images.paths, images.labels, parts[:, 0], manifest.class_names)
    both = of_winner.merge(table, on="row", suffixes=("", "_plain"))
    groups = manifest.table["group"].loc[both["row"]].to_numpy()
    plain_hits, winner_hits = ((both[name] == both["label"]).to_numpy() for name in ("predicted_plain", "predicted"))
    comparison = PlainComparison(
        num_images=len(both),
        plain=proportion(plain_hits, groups),
        winner=proportion(winner_hits, groups),
        difference=paired_difference(plain_hits, winner_hits, groups),
    )
    say(f"the winner {comparison_line(comparison)}")
    return comparison


def _save_models_of(trial: Trial, checkpoints: list[Checkpoint], manifest: Manifest, say: Say) -> TrainState:
    """Save the models of a trial from its checkpoints, in a task on Ray -> the state of its training."""
    state = TrainState()
    state.load_state_dict(checkpoints[-1].state)
    finalize_best(state, storage.join(trial.folder, "checkpoints"), say)
    task = ray.remote(num_cpus=0.5, max_calls=1)(_save_models)
    with show_activity("saving the models of a trial", LOAD_MODEL_S):
        how = manifest.class_names, state, manifest.white_level, manifest.crops is not None
        ray.get(task.remote(trial.config, trial.folder, *how))
    return state


def _save_models(
    config: RunConfig, folder: str, class_names: tuple[str, ...], state: TrainState, white_level: int, crops: bool
) -> None:
    with suppress_native_stderr():
        from pharmclf.training.save_model import save_final_models

        configure_devices(deterministic=False, gpus=False)  # they may be in use
        save_final_models(config, folder, class_names, state, white_level, crops=crops)
