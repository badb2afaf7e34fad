"""The trials of a sweep as tables for the console and as rows of sweep.parquet; the importance of its parameters."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_count, format_price, price_of
from pharmclf.evaluation.metrics import Estimate, wilson_interval
from pharmclf.reporting.trial_info import (
    ParameterValue,
    TrialInfo,
    TrialState,
    best_trial,
    is_category,
    rank_trials,
    short_names,
)  # fmt: skip

if TYPE_CHECKING:
    import optuna

MIN_IMPORTANCE_TRIALS = 10
"""Trials from which importances are computed; of fewer they are noise."""
_MAX_ROWS = 40  # of the table of results
_MAX_LIVE = 8  # running trials in the live table
_MAX_REASON = 48  # characters


def trial_frame(trials: Iterable[TrialInfo], price_per_hour: float, *, val_images: int) -> pd.DataFrame:
    """The rows of sweep.parquet: one per trial, by number.

    Columns: number, state, reason, one per searched parameter under its dotted name, epochs (finished), best_phase,
    best_epoch (within the phase, from 1), val_accuracy and its 95 % interval val_accuracy_low and _high, val_loss,
    train_s (in epochs), overhead_s (the rest of seconds), seconds, cpu_s, gpu_s, price. Unknown values are null.

    Args:
        price_per_hour: of the share of the cluster that a trial holds; 0: unknown.
        val_images: images of the validation split.
    """
    trials, rows = sorted(trials, key=lambda trial: trial.number), list[dict[str, Any]]()
    for trial in trials:
        best = trial.best
        interval = accuracy_estimate(trial, val_images)
        rows.append(
            {
                "number": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                **trial.params,
                "epochs": len(trial.history),
                "best_phase": best.phase if best else None,
                "best_epoch": best.epoch + 1 if best else None,
                "val_accuracy": trial.best_accuracy,
                "val_accuracy_low": interval.low if interval else math.nan,
                "val_accuracy_high": interval.high if interval else math.nan,
                "val_loss": best.val_loss if best else math.nan,
                "train_s": trial.train_s,
                "overhead_s": trial.seconds - trial.train_s,
                "seconds": trial.seconds,
                "cpu_s": trial.cpu_s,
                "gpu_s": trial.gpu_s,
                "price": price_of(trial.seconds, price_per_hour),
            }
        )
    frame = pd.DataFrame(rows).astype({"best_epoch": "Int64", "price": float} if rows else {})
    for name in trials[0].params if trials else ():
        values = [trial.params[name] for trial in trials]
        if is_category(values) and len(set(map(type, values))) > 1:
            frame[name] = frame[name].map(str)  # a column of Parquet has one type
    return frame


def results_table(trials: Sequence[TrialInfo], price_per_hour: float, *, val_images: int) -> str:
    """Trials as aligned lines under a heading, the best first, and a last line with their sums.

    Args: as `trial_frame`; without a price there is no such column.
    """
    shown = rank_trials(trials)[:_MAX_ROWS]
    prices = [price for trial in shown if (price := price_of(trial.seconds, price_per_hour)) is not None]
    names, values = parameter_cells(shown)
    rows = [["trial", *names, "epochs", "val acc (95 %)", "seconds", *(["price"] if prices else []), "state"]]
    for index, trial in enumerate(shown):
        numbers = [str(len(trial.history)), _format_accuracy(trial, val_images), f"{trial.seconds:.1f}"]
        cost = [format_price(prices[index], max(prices))] if prices else []
        rows.append([str(trial.number), *values[index], *numbers, *cost, _format_state(trial)])
    lines = align_columns(rows, left=[-1])
    if len(trials) > len(shown):
        lines.append(f"and {len(trials) - len(shown)} more")
    return "\n".join([*lines, _sums_line(trials, price_per_hour)])


def live_table(trials: Sequence[TrialInfo], eta: str, *, num_trials: int | None = None) -> str:
    """The progress of a sweep in a few lines: the number of its trials, the best trial so far, and the running ones.

    Args:
        eta: the time to the end of the sweep as text, such as 3:12.
        num_trials: of the complete sweep; None: unknown.
    """
    best = best_trial(trials)
    running = sorted((trial for trial in trials if trial.state == "running"), key=lambda trial: trial.number)
    shown = ([best] if best else []) + [trial for trial in running if trial is not best][:_MAX_LIVE]
    names, values = parameter_cells(shown)
    rows = [["", "trial", *names, "epochs", "val acc", "last", "state"]]
    for trial, cells in zip(shown, values, strict=True):
        last = f"{list(trial.history.values())[-1].val_accuracy:.3f}" if trial.history else "-"
        mark, accuracy = "best" if trial is best else "", _format_accuracy(trial, 0)
        rows.append([mark, str(trial.number), *cells, str(len(trial.history)), accuracy, last, trial.state])
    of = "" if num_trials is None else f" of {num_trials}"
    head = f"{len(trials) - len(running)}{of} trials done ({_count_states(trials)}), ETA {eta}"
    more = len(set(map(id, running)) - set(map(id, shown)))
    return "\n".join(
        [head, *(align_columns(rows, left=[-1]) if shown else []), *([f"and {more} more running"] if more else [])]
    )


def parameter_importances(trials: Iterable[TrialInfo], log_names: Collection[str] = ()) -> dict[str, float]:
    """How much each parameter decides whether a trial is among the best, as shares of 1.

    By PED-ANOVA (Watanabe, Bansal and Hutter 2023), which compares where the best trials lie with where all lie. It
    counts trials that ended, except failed ones, whose end says nothing of their parameters; a diverged one has
    accuracy 0.

    Args:
        log_names: parameters that were searched on a logarithmic scale; one with a value of 0 or less counts as linear.

    Returns:
        Parameter -> share, in the trials' order; {} with fewer than `MIN_IMPORTANCE_TRIALS` trials that count, or where
        all are equally accurate.
    """
    trials = [trial for trial in trials if trial.state == "diverged" or (_has_result(trial) and trial.best)]
    scores = [
        trial.best_accuracy if _has_result(trial) and math.isfinite(trial.best_accuracy) else 0.0 for trial in trials
    ]
    if len(scores) < MIN_IMPORTANCE_TRIALS or len(set(scores)) == 1:
        return {}
    import optuna  # here, because it takes a second, and only the end of a sweep needs it

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # of equal scores, all of which are among the best: then all parameters are equally important
            warnings.filterwarnings("ignore", "Target and region quantiles select the same set")
            study = _as_study([trial.params for trial in trials], scores, log_names)
            # the best tenth, or the best five where that is more
            judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(scores)))
            shares = optuna.importance.get_param_importances(study, evaluator=judge)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(shares[name]) for name in trials[0].params}


def _has_result(trial: TrialInfo) -> bool:
    return trial.state in ("trained", "stopped")


def _as_study(
    params: Sequence[Mapping[str, ParameterValue]], scores: Sequence[float], log_names: Collection[str]
) -> optuna.Study:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    columns: dict[str, list[Any]] = {name: [trial[name] for trial in params] for name in params[0]}
    for name, values in columns.items():
        log = name in log_names and not is_category(values) and min(values) > 0
        if is_category(values):
            columns[name] = [str(value) for value in values]
            distributions[name] = CategoricalDistribution(sorted(set(columns[name])))
        elif all(isinstance(value, int) for value in values):
            distributions[name] = IntDistribution(min(values), max(values), log=log)
        else:
            distributions[name] = FloatDistribution(min(values), max(values), log=log)
    study = optuna.create_study(direction="maximize")
    for index, score in enumerate(scores):
        row = {name: column[index] for name, column in columns.items()}
        study.add_trial(optuna.create_trial(params=row, distributions=distributions, value=score))
    return study


def accuracy_estimate(trial: TrialInfo, val_images: int) -> Estimate | None:
    """The best validation accuracy with its 95 % interval; None where there is none."""
    if not math.isfinite(trial.best_accuracy) or val_images <= 0:
        return None
    return wilson_interval(trial.best_accuracy * val_images, val_images)


def _format_accuracy(trial: TrialInfo, val_images: int) -> str:
    """0.912 (0.885-0.934), or 0.912 without a number of images."""
    if trial.best is None:
        return "-"
    estimate = accuracy_estimate(trial, val_images)
    return str(estimate) if estimate else f"{trial.best_accuracy:.3f}"


def _format_state(trial: TrialInfo) -> str:
    """The state and its reason: stopped: below the median of its rung."""
    text = trial.state if trial.number else f"{trial.state} (plain run)"
    reason = " ".join(trial.reason.split())
    if len(reason) > _MAX_REASON:
        reason = reason[: _MAX_REASON - 1].rstrip() + "…"
    return f"{text}: {reason}" if reason else text


def _count_states(trials: Iterable[TrialInfo]) -> str:
    """9 trained, 5 stopped, 1 failed."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{counts[state]} {state}" for state in get_args(TrialState) if counts[state]) or "none yet"


def _sums_line(trials: Sequence[TrialInfo], price_per_hour: float) -> str:
    overheads = [trial.seconds - trial.train_s for trial in trials if trial.state != "running"]
    seconds, cpu_s, gpu_s = (sum(getattr(trial, name) for trial in trials) for name in ("seconds", "cpu_s", "gpu_s"))
    parts = [f"{format_count(len(trials), 'trial')}: {_count_states(trials)}"]
    parts.append(f"{seconds:,.1f} s, {cpu_s:,.1f} CPU-s, {gpu_s:,.1f} GPU-s")
    if (price := price_of(seconds, price_per_hour)) is not None:
        parts.append(f"price {format_price(price)}")
    parts.append(f"median overhead {statistics.median(overheads):.1f} s a trial" if overheads else "no trial ended")
    return "; ".join(parts)


def parameter_cells(trials: Sequence[TrialInfo]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Short names of the parameters, and for each trial their values as texts; those of a parameter have one form."""
    short = short_names(trials[0].params if trials else ())
    columns = [_format_values([trial.params[name] for trial in trials]) for name in short]
    return list(short.values()), list(zip(*columns, strict=True)) if columns else [() for _ in trials]


def _format_values(values: Sequence[Any]) -> list[str]:
    """Values as texts, numbers in 3 digits; where all are small, they are written like 1.2e-03."""
    if is_category(values) or all(isinstance(value, int) for value in values):
        return [str(value) for value in values]
    if max(map(abs, values)) >= 0.1 or not any(0 < abs(value) < 0.01 for value in values):
        return [f"{value:.3g}" for value in values]
    return [f"{float(mantissa):g}e{power}" for mantissa, power in (f"{value:.2e}".split("e") for value in values)]
