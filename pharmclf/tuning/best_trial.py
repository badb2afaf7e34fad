"""The winner of a sweep: the only trial whose model is saved and tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import ray

from pharmclf import pipeline, storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import write_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.distributed.cluster import device_kind
from pharmclf.models.devices import configure_devices
from pharmclf.runs.final_evaluation import run_final_evaluation
from pharmclf.runs.record import RUN_FILE, RecordState, RunRecord
from pharmclf.schema_version import load_record
from pharmclf.training.checkpoint import list_checkpoints
from pharmclf.training.train_state import TrainState, finalize_best
from pharmclf.tuning.trial_store import Trial

RETRAINED = "winner"


def evaluate_best_trial(
    trial: Trial,
    manifest: Manifest,
    workers: int,
    precision: str,
    say: Say,
    quarantine: Quarantine,
    stop_requested: Callable[[], bool],
) -> str:
    """Save the model of a trial as it is, and test it -> its folder.

    Args:
        trial: with checkpoints.
        manifest: with splits.
        workers: that trained it.
        precision: that it was trained in.
        say: takes lines for the console.
        quarantine: takes the images that are not what the manifest says.
        stop_requested: whether the sweep was asked to end.

    Raises:
        StopRequested: it was, before the model was tested.
    """
    checkpoints = storage.join(trial.folder, "checkpoints")
    state = TrainState()
    state.load_state_dict(list_checkpoints(checkpoints)[-1].state)
    finalize_best(state, checkpoints, say)
    task = ray.remote(num_cpus=0.5, max_calls=1)(_save_models)
    ray.get(task.remote(trial.config, trial.folder, manifest.class_names, state, manifest.white_level))
    outcome = state.to_result(device=device_kind(), precision=precision, workers=workers)
    write_manifest(manifest, trial.folder)
    record = RunRecord.from_dict(load_record(storage.join(trial.folder, RUN_FILE)))
    run_final_evaluation(
        trial.config, trial.folder, manifest, outcome, record, say, quarantine, stop_requested=stop_requested
    )
    record.state = RecordState.COMPLETE
    record.write(trial.folder)
    return trial.folder


def retrain_best_trial(trial: Trial, home: str, workers: str, manifest: Manifest, say: Say) -> tuple[str, int]:
    """Train the configuration of a trial again, to its end, and test it -> its folder, the run's exit code.

    Args:
        trial: whose configuration it is.
        home: folder of the trials.
        workers: as in a plain run.
        manifest: with the splits of the sweep.
        say: takes lines for the console.
    """
    config = dataclasses.replace(trial.config, name=RETRAINED, num_workers=workers, mlflow="")  # the sweep logs it
    folder = storage.join(home, RETRAINED)
    return folder, pipeline.run(config, say, folder, manifest=manifest)


def _save_models(
    config: RunConfig, folder: str, class_names: tuple[str, ...], state: TrainState, white_level: int
) -> None:
    with suppress_native_stderr():
        from pharmclf.training.save_model import save_final_models

        configure_devices(deterministic=False, gpus=False)  # they may be in use
        save_final_models(config, folder, class_names, state, white_level)
