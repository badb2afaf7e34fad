"""What a sweep says of its trials: the table on the console, the rows of sweep.parquet, which parameters matter."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd

from pharmclf.core.events import EpochRecord
from pharmclf.core.tables import align_columns
from pharmclf.evaluation.metrics import wilson_interval
from pharmclf.training.lr_schedule import selection_score

TrialState = Literal["running", "trained", "stopped", "diverged", "failed"]
_MAX_ROWS = 40  # of the table of results
_MAX_LIVE = 8  # running trials in the table on the way
_MAX_REASON = 48  # characters


@dataclass(frozen=True, kw_only=True)
class TrialInfo:
    """What is known of one trial."""

    number: int
    """0 is the configuration of the plain run."""
    params: Mapping[str, float | int | str | bool]
    """The searched parameters with the values in effect; every trial of a sweep has the same names, in one order."""
    state: TrialState
    """running; trained to its end; stopped by successive halving; diverged: its loss is not finite; failed."""
    reason: str = ""
    """Why it was stopped, diverged or failed; "" where there is nothing to say."""
    history: Mapping[int, EpochRecord] = field(default_factory=dict)
    """Its epochs in order, by their number from 1, counted over both phases."""
    seconds: float = 0.0
    """Wall-clock time of the trial in its worker; of trials that were trained as one program, its share."""
    cpu_s: float = 0.0
    """CPU-seconds of its workers."""
    gpu_s: float = 0.0
    """GPU-seconds that it held."""

    @property
    def best_number(self) -> int | None:
        """Number of the epoch that the trial has chosen: by `selection_score`, of equals the lowest loss."""
        return max(self.history, key=lambda number: _score(self.history[number]), default=None)

    @property
    def best(self) -> EpochRecord | None:
        """Record of that epoch."""
        return None if self.best_number is None else self.history[self.best_number]

    @property
    def train_s(self) -> float:
        """Seconds of all its epochs."""
        return sum(epoch.seconds for epoch in self.history.values())


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each dotted name with the fewest of its last parts that no other name ends in: head.dropout -> dropout."""
    split = {name: name.split(".") for name in names}

    def short(name: str) -> str:
        for count in range(1, len(split[name])):
            tail = split[name][-count:]
            if sum(parts[-count:] == tail for parts in split.values()) == 1:
                return ".".join(tail)
        return name

    return {name: short(name) for name in split}


def rank_trials(trials: Iterable[TrialInfo]) -> list[TrialInfo]:
    """The best validation accuracy first, of equals the lowest loss, then the number; trials without epochs last."""

    def place(trial: TrialInfo) -> tuple[bool, float, float, int]:
        if trial.best is None:
            return (True, 0.0, 0.0, trial.number)
        accuracy, loss = _score(trial.best)
        return (False, -accuracy, -loss, trial.number)

    return sorted(trials, key=place)


def best_trial(trials: Iterable[TrialInfo]) -> TrialInfo | None:
    """The first of the ranked trials; None where no epoch is finished."""
    ranked = rank_trials(trials)
    return ranked[0] if ranked and ranked[0].best is not None else None


def trial_frame(
    trials: Iterable[TrialInfo], price_per_hour: float | None, share: float, *, val_images: int
) -> pd.DataFrame:
    """The rows of sweep.parquet: one per trial, by number.

    Columns: number, state, reason, one per searched parameter under its dotted name, epochs (finished), best_phase,
    best_epoch (within the phase, from 1), val_accuracy and its 95 % interval val_accuracy_low and _high, val_loss,
    train_s (in epochs), overhead_s (the rest of seconds), seconds, cpu_s, gpu_s, price. Unknown values are null.

    Args:
        trials: in any order.
        price_per_hour: of the whole cluster; None: no price.
        share: of the cluster that a trial holds, 0..1.
        val_images: images of the validation split.
    """
    trials, rows = sorted(trials, key=lambda trial: trial.number), list[dict[str, Any]]()
    for trial in trials:
        best = trial.best
        low, high = _interval(trial, val_images) or (math.nan, math.nan)
        price = _price(trial, price_per_hour, share)
        rows.append(
            {
                "number": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                **trial.params,
                "epochs": len(trial.history),
                "best_phase": best.phase if best else None,
                "best_epoch": best.epoch + 1 if best else None,
                "val_accuracy": best.val_accuracy if best else math.nan,
                "val_accuracy_low": low,
                "val_accuracy_high": high,
                "val_loss": best.val_loss if best else math.nan,
                "train_s": trial.train_s,
                "overhead_s": trial.seconds - trial.train_s,
                "seconds": trial.seconds,
                "cpu_s": trial.cpu_s,
                "gpu_s": trial.gpu_s,
                "price": math.nan if price is None else price,
            }
        )
    frame = pd.DataFrame(rows).astype({"best_epoch": "Int64"} if rows else {})
    for name in trials[0].params if trials else ():
        values = [trial.params[name] for trial in trials]
        if is_category(values) and len(set(map(type, values))) > 1:
            frame[name] = frame[name].map(str)  # a column of Parquet has one type
    return frame


def results_table(trials: Sequence[TrialInfo], price_per_hour: float | None, share: float, *, val_images: int) -> str:
    """Trials as aligned lines under a heading, the best first, and a last line with their sums.

    Args:
        trials: in any order.
        price_per_hour: of the whole cluster; None: no price, and no such column.
        share: of the cluster that a trial holds, 0..1.
        val_images: images of the validation split, for the 95 % intervals.
    """
    shown = rank_trials(trials)[:_MAX_ROWS]
    prices = [price for trial in shown if (price := _price(trial, price_per_hour, share)) is not None]
    digits = 2 if max(prices, default=1.0) >= 1 else 4
    names, columns = _parameters(shown)
    heading = ["trial", *names, "epochs", "val acc (95 %)", "seconds", *(["price"] if prices else []), "state"]
    rows = [heading]
    for index, trial in enumerate(shown):
        cost = [f"{prices[index]:.{digits}f}"] if prices else []
        values = [column[index] for column in columns]
        accuracy = _accuracy(trial, val_images)
        rows.append(
            [
                str(trial.number),
                *values,
                str(len(trial.history)),
                accuracy,
                f"{trial.seconds:.1f}",
                *cost,
                _format_state(trial),
            ]
        )
    lines = align_columns(rows, left=[-1])
    if len(trials) > len(shown):
        lines.append(f"and {len(trials) - len(shown)} more")
    return "\n".join([*lines, _sums_line(trials, price_per_hour, share)])


def live_table(trials: Sequence[TrialInfo], eta: str, *, num_trials: int | None = None) -> str:
    """How far a sweep is, in a few lines: the count of its trials, the best one so far, and those that run.

    Args:
        trials: those that have begun, in any order.
        eta: the time to the end of the sweep as text, such as 3:12.
        num_trials: how many there will be; None: unknown.
    """
    best = best_trial(trials)
    running = sorted((trial for trial in trials if trial.state == "running"), key=lambda trial: trial.number)
    shown = ([best] if best else []) + [trial for trial in running if trial is not best][:_MAX_LIVE]
    names, columns = _parameters(shown)
    rows = [["", "trial", *names, "epochs", "val acc", "last", "state"]]
    for index, trial in enumerate(shown):
        last = f"{list(trial.history.values())[-1].val_accuracy:.3f}" if trial.history else "-"
        values = [column[index] for column in columns]
        mark = "best" if trial is best else ""
        rows.append([mark, str(trial.number), *values, str(len(trial.history)), _accuracy(trial, 0), last, trial.state])
    of = "" if num_trials is None else f" of {num_trials}"
    head = f"{len(trials) - len(running)}{of} trials done ({_count_states(trials)}), ETA {eta}"
    more = len(set(map(id, running)) - set(map(id, shown)))
    return "\n".join(
        [head, *(align_columns(rows, left=[-1]) if shown else []), *([f"and {more} more running"] if more else [])]
    )


def is_category(values: Iterable[Any]) -> bool:
    """Whether a parameter with these values has no order: texts, or yes and no."""
    return any(isinstance(value, str | bool) for value in values)


def parameter_importances(trials: Iterable[TrialInfo], log_names: Collection[str] = ()) -> dict[str, float]:
    """The share of the variation of the best validation accuracy that each parameter explains by itself, 0..1.

    By fANOVA (Hutter, Hoos and Leyton-Brown 2014): a random forest is fitted, and its variance over the searched box is
    taken apart. What is missing from 1 is due to combinations of parameters. It counts trials that ended, apart from
    failed ones, whose end says nothing of their parameters; a diverged one has accuracy 0.

    Args:
        trials: those of one sweep.
        log_names: parameters that were searched on a logarithmic scale; one with a value of 0 or less is taken as
            linear.

    Returns:
        Parameter -> share, in the trials' order; {} with fewer than 4 trials, or where all are equally accurate.
    """
    scores: list[tuple[TrialInfo, float]] = []
    for trial in trials:
        if trial.state == "diverged":
            scores.append((trial, 0.0))
        elif trial.state in ("trained", "stopped") and trial.best is not None:
            accuracy = trial.best.val_accuracy
            scores.append((trial, accuracy if math.isfinite(accuracy) else 0.0))
    if len(scores) < 4 or len({accuracy for _, accuracy in scores}) == 1:
        return {}
    import optuna  # here, because it takes a second, and only the end of a sweep needs it

    chatter = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _fanova([trial.params for trial, _ in scores], [score for _, score in scores], log_names)
    finally:
        optuna.logging.set_verbosity(chatter)


def _fanova(
    params: Sequence[Mapping[str, Any]], scores: Sequence[float], log_names: Collection[str]
) -> dict[str, float]:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    columns = {name: [trial[name] for trial in params] for name in params[0]}
    for name, values in columns.items():
        if is_category(values):
            values = [str(value) for value in values]
            distributions[name] = CategoricalDistribution(sorted(set(values)))
        elif name in log_names and min(values) > 0:
            # Optuna's evaluator integrates over the bare values, where the largest decade is all there is.
            values = [math.log10(value) for value in values]
            distributions[name] = FloatDistribution(min(values), max(values))
        elif all(isinstance(value, int) for value in values):
            distributions[name] = IntDistribution(min(values), max(values))
        else:
            distributions[name] = FloatDistribution(min(values), max(values))
        columns[name] = values
    study = optuna.create_study(direction="maximize")
    for index, score in enumerate(scores):
        chosen = {name: values[index] for name, values in columns.items()}
        study.add_trial(optuna.create_trial(params=chosen, distributions=distributions, value=score))
    try:
        found = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    except RuntimeError:  # no tree of the forest has found a split
        return {}
    return {name: float(found[name]) for name in columns}


def _score(epoch: EpochRecord) -> tuple[float, float]:
    """(accuracy, -loss) of an epoch, with the worst for what is not a number, so that epochs always have an order."""
    numbers = selection_score(epoch), -epoch.val_loss
    accuracy, gain = (number if math.isfinite(number) else -math.inf for number in numbers)
    return accuracy, gain


def _price(trial: TrialInfo, price_per_hour: float | None, share: float) -> float | None:
    return None if price_per_hour is None else trial.seconds / 3600 * price_per_hour * share


def _interval(trial: TrialInfo, val_images: int) -> tuple[float, float] | None:
    """The 95 % interval of the best validation accuracy; None where there is none."""
    accuracy = trial.best.val_accuracy if trial.best else math.nan
    if not math.isfinite(accuracy) or val_images <= 0:
        return None
    estimate = wilson_interval(accuracy * val_images, val_images)
    return estimate.low, estimate.high


def _accuracy(trial: TrialInfo, val_images: int) -> str:
    """0.912 (0.885-0.934), or 0.912 without a number of images."""
    if trial.best is None:
        return "-"
    interval = _interval(trial, val_images)
    text = f"{trial.best.val_accuracy:.3f}"
    return f"{text} ({interval[0]:.3f}-{interval[1]:.3f})" if interval else text


def _format_state(trial: TrialInfo) -> str:
    """The state, and why: stopped: below the median of its rung."""
    text = trial.state if trial.number else f"{trial.state} (plain run)"
    reason = " ".join(trial.reason.split())
    if len(reason) > _MAX_REASON:
        reason = reason[: _MAX_REASON - 1].rstrip() + "…"
    return f"{text}: {reason}" if reason else text


def _count_states(trials: Iterable[TrialInfo]) -> str:
    """9 trained, 5 stopped, 1 failed."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{counts[state]} {state}" for state in get_args(TrialState) if counts[state]) or "none yet"


def _sums_line(trials: Sequence[TrialInfo], price_per_hour: float | None, share: float) -> str:
    over = [trial.seconds - trial.train_s for trial in trials if trial.state != "running"]
    seconds, cpu_s, gpu_s = (sum(getattr(trial, name) for trial in trials) for name in ("seconds", "cpu_s", "gpu_s"))
    parts = [f"{len(trials)} trials: {_count_states(trials)}"]
    parts.append(f"{seconds:,.1f} s, {cpu_s:,.1f} CPU-s, {gpu_s:,.1f} GPU-s")
    if price_per_hour is not None:
        price = sum(_price(trial, price_per_hour, share) or 0.0 for trial in trials)
        parts.append(f"price {price:.{2 if price >= 1 else 4}f}")
    parts.append(f"median overhead {statistics.median(over):.1f} s a trial" if over else "no trial ended")
    return "; ".join(parts)


def _parameters(trials: Sequence[TrialInfo]) -> tuple[list[str], list[list[str]]]:
    """Short names of the parameters, and for each the values of the trials as texts of one form."""
    if not trials:
        return [], []
    short = short_names(trials[0].params)
    return list(short.values()), [_format_values([trial.params[name] for trial in trials]) for name in short]


def _format_values(values: Sequence[Any]) -> list[str]:
    """Values as texts, numbers in 3 digits; where one is small, all are written like 1.2e-03."""
    if is_category(values) or all(isinstance(value, int) for value in values):
        return [str(value) for value in values]
    if not any(0 < abs(value) < 0.01 for value in values):
        return [f"{value:.3g}" for value in values]
    return [f"{float(mantissa):g}e{power}" for mantissa, power in (f"{value:.2e}".split("e") for value in values)]
