"""What a sweep finds in its folder: nothing, a sweep that it resumes, or one that is complete."""

from __future__ import annotations

import dataclasses
from typing import Any

import ray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.config.parsing import AUTO
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_OK, ConfigError
from pharmclf.distributed.scaling_policy import resources_per_worker
from pharmclf.feature_cache import extract
from pharmclf.resume import check_data_location, evaluate_further_datasets, has_record
from pharmclf.runs.record import has_trained, read_record
from pharmclf.schema_version import check_schema_version, load_record
from pharmclf.tuning.options import SweepOptions, TrialResources, plan_trial_resources
from pharmclf.tuning.precompute import feature_variants
from pharmclf.tuning.space import Space, check_depths

SWEEP_FILE = "sweep.json"


def inspect_sweep_folder(folder: str, say: Say, *, overwrite: bool) -> tuple[dict[str, Any] | None, bool]:
    """See what the folder of a sweep holds; nothing is changed.

    Returns:
        The record of the sweep that is resumed, None where one begins; and whether the folder is cleared first.

    Raises:
        ConfigError: its record is damaged.
    """
    if overwrite:
        if not has_record(folder, _read_sweep):
            return None, False
        say(f"note: --overwrite: the sweep in {folder} is deleted with its trials, and a new one begins")
        return None, True
    record = _read_sweep(folder)
    if record is None:
        return None, False
    home = storage.join(folder, "trials")
    trained = any(has_trained(storage.join(home, name)) for name in storage.list_folders(home))
    if record["state"] != "complete" and not trained:
        say(f"note: the sweep in {folder} has trained nothing, and begins again with the settings of this command")
        return None, True
    return record, False


def reopen_complete_sweep(base: RunConfig, folder: str, record: dict[str, Any], say: Say) -> int:
    """Evaluate the winner of a complete sweep on the data sets that are new to it, and report that it is complete.

    Args:
        base: the plain run, as the command gives it.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: other images, or a set that cannot be tested.
    """
    check_data_location(base, folder, record["config"], record["fingerprints"]["data"], say)
    winner = storage.join(folder, "trials", str(record["winner_folder"]).rsplit("/", 1)[-1])
    of_winner = read_record(winner) if base.eval_data or base.unknown else None
    if of_winner is not None and evaluate_further_datasets(base, winner, of_winner, say):
        record["result"] = load_record(storage.join(winner, "result.json"))
        storage.write_json(storage.join(folder, SWEEP_FILE), record)
    say(record["table"])
    say(f"the sweep {folder} is complete already; give more --trials to extend it, another --name, or --overwrite")
    return EXIT_OK


def _read_sweep(folder: str) -> dict[str, Any] | None:
    location = storage.join(folder, SWEEP_FILE)
    if not storage.is_file(location):
        return None
    try:
        record = storage.read_json(location)
    except ValueError as error:
        raise ConfigError(f"{location}: not JSON ({error}). Delete it; the trials below it are found again") from error
    check_schema_version(record, location)
    return record if isinstance(record, dict) and {"settings", "fingerprints", "state"} <= set(record) else None


def trial_config(base: RunConfig, options: SweepOptions) -> RunConfig:
    """The plain run as its trials have it: the sweep decides the workers and the feature cache.

    Raises:
        ConfigError: it says itself how many workers there are, or has a time budget or folds.
    """
    if base.num_workers not in (AUTO, "1"):  # the default, and that of earlier versions
        raise ConfigError(
            f"--num-workers: received {base.num_workers}, but the workers of a sweep are its trials'. Give "
            f"--workers-per-trial"
        )
    if base.folds:
        raise ConfigError("--folds: received some, but a sweep has none. Train a run with the settings of its winner")
    if base.time_budget:
        raise ConfigError(
            f"--time-budget: received {base.time_budget}, but the trials of a sweep are compared at equal epochs. "
            "Leave it out, and give fewer --trials"
        )
    workers = options.workers_per_trial
    return dataclasses.replace(
        base,
        name=base.name or f"{base.run_name}-sweep",
        num_workers=str(workers) if workers > 1 else "0",
        feature_cache="never" if base.feature_cache == "never" else "auto",
    )


def plan_resources(options: SweepOptions, base: RunConfig, space: Space) -> TrialResources:
    """What the cluster has for trials.

    Raises:
        ConfigError: it has no room for one.
    """
    total = ray.cluster_resources()
    heads_only = base.phase2.epochs == 0 or space.possible_values(base, "unfreeze_blocks") == [0]
    cpus, gpus, memory = (total.get(name, 0.0) for name in ("CPU", "GPU", "memory"))
    room, workers = plan_trial_resources(options, cpus, gpus, memory, heads_only=heads_only), options.workers_per_trial
    if workers > 1:
        resources_per_worker(workers, workers, room.share * cpus, room.share * gpus)
    return room


def check_backbone_depths(space: Space, base: RunConfig, source: str) -> None:
    """Check the depths of a search space with the number of blocks of each backbone.

    Raises:
        ConfigError: a backbone has fewer blocks.
    """
    pools = [dataclasses.replace(config, num_workers="1") for config in feature_variants(base, space)]
    blocks = {str(pool.backbone): len(extract.measure_costs(pool)) - 1 for pool in pools}
    check_depths(space, base, blocks, source)
