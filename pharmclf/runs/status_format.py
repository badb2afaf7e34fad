"""Formats the status of runs and sweeps, as a table and in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pharmclf.core.errors import first_line
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_age, format_duration, format_price
from pharmclf.runs.status import MAX_REASON, TEST_PHASE, Status, utc_timestamp
from pharmclf.runs.status_reader import RunStatus, SweepStatus

_COLUMNS = (
    "name", "state", "phase", "epoch", "step", "done", "ETA", "images/s", "val_accuracy", "workers", "failures",
    "written", "price",
)  # fmt: skip
_UNKNOWN = "-"


def status_table(runs: Sequence[RunStatus], now_s: float) -> str:
    """Format runs and sweeps at a time, seconds since 1970, as an aligned table, then the reasons of their states."""
    rows = [_COLUMNS, *(_row(run, now_s) for run in runs)]
    if all(run.price is None for run in runs):
        rows = [row[:-1] for row in rows]
    reasons = [f"{run.name}: {run.reason}" for run in runs if run.reason]
    return "\n".join([*align_columns(rows), *(["", *reasons] if reasons else [])])


def _row(run: RunStatus, now_s: float) -> tuple[str, ...]:
    status = run.status or Status(name=run.name)
    done = failures = _UNKNOWN
    if run.sweep:
        done = f"{run.sweep.num_ended} of {run.sweep.total} trials"
    elif not run.is_partial:
        done, failures = f"{status.progress:.0%}", str(status.failures)
    eta = _UNKNOWN
    if status.eta_s is not None and run.is_active:
        eta = format_duration(status.eta_s) + ("" if status.eta_whole else "+")
    return (
        run.name,
        run.state,
        status.phase or _UNKNOWN,
        _count(status.epoch, status.epochs),
        _count(status.step, status.steps),
        done,
        eta,
        _number(status.images_per_second, ".1f"),
        _number(status.best_val_accuracy, ".4f"),
        _number(status.workers, "d"),
        failures,
        format_age(now_s - run.seen_s),
        _price_text(run),
    )


def status_details(run: RunStatus, now_s: float) -> str:
    """Format all that is known of a run, a sweep or a trial at a time, seconds since 1970, one item per line."""
    age_s = now_s - run.seen_s
    items = list(_sweep_items(run.sweep) if run.sweep else _run_items(run, age_s))
    items += [("written", f"{utc_timestamp(run.seen_s)}, {format_age(age_s)}"), ("folder", run.location)]
    heading = [run.reason] if run.reason.startswith(run.state) else [run.state, run.reason]
    lines = [f"{run.name}: {', '.join(filter(None, heading))}"]
    for title, text in items:
        for number, line in enumerate(text.splitlines()):
            lines.append(f"  {'' if number else title:<12}{line}")
    return "\n".join([*lines, *(["", run.sweep.table] if run.sweep and run.sweep.table else [])])


def _sweep_items(sweep: SweepStatus) -> Iterator[tuple[str, str]]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(sweep.states.items()))
    lines = [f"{sweep.num_ended} of {sweep.total} have ended" + (f": {states}" if states else "")]
    for trial in () if sweep.table else sweep.trials:
        reason = f" ({first_line(trial.reason, MAX_REASON)})" if trial.reason else ""
        lines.append(f"{trial.number}: {trial.state}, {format_duration(trial.seconds)}{reason}")
    yield "trials", "\n".join(lines)
    if sweep.winner is not None:
        yield "winner", f"trial {sweep.winner}, test accuracy {sweep.test_accuracy:.4f}"


def _run_items(run: RunStatus, age_s: float) -> Iterator[tuple[str, str]]:
    """Titles and texts; an empty text is not shown."""
    status = run.status
    if status is None:
        return
    counts = {"epoch": (status.epoch, status.epochs), "step": (status.step, status.steps)}
    reached = [status.phase, *(f"{name} {_count(*count)}" for name, count in counts.items() if count[0])]
    in_test = status.phase == TEST_PHASE
    yield "reached", "the test of the trained model" if in_test else ", ".join(filter(None, reached))
    if not run.is_partial:
        yield "done", f"{status.progress:.0%}{_time_left(status) if run.is_active else ''}"
        yield "images/s", _number(status.images_per_second, ".1f").strip(_UNKNOWN)
    scores = {
        "loss": status.loss,
        "accuracy": status.accuracy,
        "validation accuracy": status.val_accuracy,
        "best validation accuracy": status.best_val_accuracy,
    }
    yield "scores", ", ".join(f"{name} {score:.4f}" for name, score in scores.items() if score is not None)
    yield "checkpoint", _checkpoint_text(status, age_s)
    yield "price", "" if run.price is None else _price_text(run)
    if run.is_partial:
        return
    yield "workers", _workers_text(status)
    yield "failures", _failures_text(status)
    yield "hardware", "\n".join(first_line(alert.text, MAX_REASON) for alert in status.hardware_warnings)
    yield "says", status.says if run.is_active else ""
    yield "driver", f"process {status.pid} on {status.host}, since {status.started_at}"


def _price_text(run: RunStatus) -> str:
    """Price so far, and at the end where that is known: 1.20 of 3.40; with a + where the end may come later."""
    if run.price is None:
        return _UNKNOWN
    more = "" if run.status and run.status.eta_whole else "+"
    return format_price(run.price) + (f" of {format_price(run.final_price)}{more}" if run.final_price else "")


def _time_left(status: Status) -> str:
    if status.eta_s is None:
        return ", time left unknown"
    more = "" if status.eta_whole else " or more: not all parts are measured yet"
    return f", {format_duration(status.eta_s)} to go{more}"


def _checkpoint_text(status: Status, age_s: float) -> str:
    if not status.checkpoint_at:
        return status.checkpoint
    at, updated = datetime.fromisoformat(status.checkpoint_at), datetime.fromisoformat(status.updated_at)
    return f"{status.checkpoint}, {format_age((updated - at).total_seconds() + age_s)}"


def _workers_text(status: Status) -> str:
    if not status.workers:
        return "" if status.workers is None else "none, the driver trains"
    nodes = f" on {', '.join(status.nodes)}" if status.nodes else ""
    return f"{status.workers}{nodes}" + (f", start {status.attempt}" if status.attempt > 1 else "")


def _failures_text(status: Status) -> str:
    if not status.failures:
        return "0"
    lines = [f"{status.failures}; under this driver {status.failures_here} of {status.failures_allowed} allowed"]
    for failure in status.last_failures:
        place = failure.place
        where = f" in {place.phase}, epoch {place.epoch}, step {place.step}" if place else ""
        lines.append(f"{failure.at} {failure.kind}{where}: {failure.reason}")
    return "\n".join(lines)


def _count(count: int, total: int) -> str:
    """As 3/20; "-" before the first."""
    return (f"{count}/{total}" if total else str(count)) if count else _UNKNOWN


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)
