"""Writes the table and the figures of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pharmclf import storage
from pharmclf.reporting import sweep_plots as plots
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.sweep_tables import parameter_importances, results_table, trial_frame
from pharmclf.reporting.trial_info import TrialInfo

TABLE_FILE = "sweep.parquet"


def write_results(
    folder: str,
    trials: Sequence[TrialInfo],
    log_names: Collection[str],
    price_per_hour: float | None,
    share: float,
    val_images: int,
) -> tuple[str, dict[str, float]]:
    """Write the table and the figures of the trials so far -> the table as text, the importance of each parameter.

    Args:
        folder: of the sweep.
        trials: those that have begun, at least one.
        log_names: parameters that are searched by factors.
        price_per_hour: of the whole cluster; None: unknown.
        share: of the cluster that a trial uses, 0..1.
        val_images: validation images, for the intervals.
    """
    frame = trial_frame(trials, price_per_hour, share, val_images=val_images)
    storage.write_bytes(storage.join(folder, TABLE_FILE), frame.to_parquet(index=False))
    importances = parameter_importances(trials, log_names)
    figures = {
        "trial_curves.png": plots.trial_curves_figure(trials),
        "parameters.png": plots.parameters_figure(trials, log_names),
        "parallel_coordinates.png": plots.parallel_coordinates_figure(trials, log_names),
        **({"importance.png": plots.importance_figure(importances)} if importances else {}),
    }
    for name, figure in figures.items():
        storage.write_bytes(storage.join(folder, name), png_bytes(figure))
    return results_table(trials, price_per_hour, share, val_images=val_images), importances
