"""Writes the table, the figures and the page of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pharmclf import storage
from pharmclf.config import to_yaml
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting import sweep_plots as plots
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.sweep_page import sweep_page
from pharmclf.reporting.sweep_report import PlainComparison, SweepReport
from pharmclf.reporting.sweep_tables import parameter_importances, results_table, trial_frame
from pharmclf.reporting.trial_info import TrialInfo
from pharmclf.runs.record import REPORT_FILE
from pharmclf.tuning.trial_store import TrialStore

TABLE_FILE = "sweep.parquet"


def write_results(store: TrialStore, val_images: int) -> tuple[str, SweepReport]:
    """Write the table, the figures and the page of the trials so far.

    Args:
        store: the trials, of which at least one has begun.
        val_images: validation images, for the intervals.

    Returns:
        The table as text, and the content of the page.
    """
    folder, trials, log_names = store.plan.folder, store.trial_infos(), list(store.plan.space.log_names)
    price_per_hour = store.plan.base.price_per_hour
    report = SweepReport(
        name=store.plan.base.name,
        trials=trials,
        num_trials=store.plan.total,
        log_names=log_names,
        val_images=val_images,
        price_per_hour=price_per_hour,
        importances=parameter_importances(trials, log_names),
        settings=to_yaml(store.plan.base),
    )
    frame = trial_frame(trials, price_per_hour, val_images=val_images)
    storage.write_bytes(storage.join(folder, TABLE_FILE), frame.to_parquet(index=False))
    figures = {
        "trial_curves.png": plots.trial_curves_figure(trials),
        "parameters.png": plots.parameters_figure(trials, log_names),
        "parallel_coordinates.png": plots.parallel_coordinates_figure(trials, log_names),
    }
    for name, figure in figures.items():
        storage.write_bytes(storage.join(folder, name), png_bytes(figure))
    _write_page(folder, report)
    return results_table(trials, price_per_hour, val_images=val_images), report


def write_winner(
    folder: str,
    report: SweepReport,
    winner: TrialInfo,
    winner_folder: str,
    result: Mapping[str, Any],
    comparison: PlainComparison | None,
) -> None:
    """Write the page of a complete sweep.

    Args:
        comparison: with the plain run; None: there is none.
    """
    low, high = result["test_accuracy_interval"]
    report = dataclasses.replace(
        report,
        winner=winner,
        winner_folder=winner_folder.removeprefix(f"{folder}/"),
        test_accuracy=Estimate(result["test_accuracy"], low, high),
        comparison=comparison,
        verdict=str(result.get("verdict", "")),
    )
    _write_page(folder, report)


def _write_page(folder: str, report: SweepReport) -> None:
    report = dataclasses.replace(report, created=datetime.now(UTC).isoformat(timespec="seconds"))
    storage.write_bytes(storage.join(folder, REPORT_FILE), sweep_page(report).encode())
