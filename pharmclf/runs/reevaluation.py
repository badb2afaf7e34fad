"""A complete run that is tested again, on further sets from other sources: numbers, report and card are renewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE
from pharmclf.data.quarantine import Quarantine
from pharmclf.runs.final_evaluation import run_final_evaluation
from pharmclf.runs.record import RunRecord
from pharmclf.training.train_state import TrainState


def untested_datasets(config: RunConfig, result: Mapping[str, Any]) -> dict[str, str]:
    """The sets of `eval_data` that are not in the result.json of a complete run: name -> location."""
    known = {(each["name"], storage.absolute(each["source"])) for each in result.get("extra_tests") or ()}
    return {
        name: location
        for name, location in config.eval_locations.items()
        if (name, storage.absolute(location)) not in known
    }


def rerun_final_evaluation(
    config: RunConfig,
    folder: str,
    manifest: Manifest,
    state: Mapping[str, Any],
    result: Mapping[str, Any],
    record: RunRecord,
    say: Say,
) -> None:
    """Test the saved models of a complete run on all its sets, in this process, and renew what `run_final_evaluation`
    writes.

    Args:
        state: of its last checkpoint: history, monitors and best.

    Raises:
        ConfigError: a set has nothing to score, or too many images are quarantined.
    """
    trained = TrainState()
    trained.load_state_dict(state)
    device, precision = record.device or "not known", record.resolved.precision or "float32"
    outcome = trained.to_result(device=device, precision=precision, workers=result["workers"])
    quarantine = Quarantine(manifest, config.max_invalid_share, say, storage.join(folder, QUARANTINE_FILE))
    try:
        run_final_evaluation(config, folder, manifest, outcome, record, say, quarantine, actors=0)
    finally:
        quarantine.write()
