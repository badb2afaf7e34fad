"""Where runs and sweeps stand, as a table and in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pharmclf.core.errors import first_line
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_age, format_duration
from pharmclf.runs.status import MAX_REASON, TEST_PHASE, utc_timestamp
from pharmclf.runs.status_reader import RunStatus


def status_table(found: Iterable[RunStatus], now_s: float) -> str:
    """Runs and sweeps as aligned lines under a heading, then what there is to say of each; "-" stands for unknown.

    Args:
        found: in the order of the lines.
        now_s: seconds since 1970.
    """
    found = list(found)
    rows = [
        (
            "name", "state", "phase", "epoch", "step", "done", "ETA", "images/s", "val_accuracy", "workers",
            "failures", "written",
        ),
        *(_row(run, now_s) for run in found),
    ]  # fmt: skip
    notes = [f"{run.name}: {run.reason}" for run in found if run.reason]
    return "\n".join([*align_columns(rows), *(["", *notes] if notes else [])])


def _row(run: RunStatus, now_s: float) -> tuple[str, ...]:
    about = run.about
    done = f"{about['progress']:.0%}" if "progress" in about else "-"
    if run.kind == "sweep":
        done = f"{run.trials['ended']} of {run.trials['total']} trials"
    return (
        run.name,
        run.state,
        about.get("phase") or "-",
        _progress_text(about, "epoch"),
        _progress_text(about, "step"),
        done,
        _eta(run),
        _number(about, "images_per_second", ".1f"),
        _number(about, "best_val_accuracy", ".4f"),
        _number(about, "workers", "d"),
        _number(about, "failures", "d"),
        format_age(now_s - run.seen_s),
    )


def status_details(run: RunStatus, now_s: float) -> str:
    """All that is known of a run, a sweep or a trial, one thing a line; what is not known is left out.

    Args:
        run: to be told of.
        now_s: seconds since 1970.
    """
    about, age_s = run.about, now_s - run.seen_s
    shown = []
    for title, text in _DETAILS:
        for number, line in enumerate(text(run, about, age_s).splitlines()):
            shown.append(f"  {'' if number else title:<12}{line}")
    parts = [run.state, run.reason][run.reason.startswith(run.state) :]
    head = f"{run.name}: {', '.join(part for part in parts if part)}"
    return "\n".join([head, *shown, *(["", run.table] if run.table else [])])


def _trials_text(run: RunStatus, _about: Mapping[str, Any], _age_s: float) -> str:
    if run.kind != "sweep":
        return ""
    states = ", ".join(f"{count} {state}" for state, count in sorted(run.trials["states"].items()))
    lines = [f"{run.trials['ended']} of {run.trials['total']} have ended" + (f": {states}" if states else "")]
    for trial in () if run.table else run.trials["each"]:
        reason = f" ({first_line(trial['reason'], MAX_REASON)})" if trial["reason"] else ""
        lines.append(f"{trial['number']}: {trial['state']}, {format_duration(trial['seconds'])}{reason}")
    return "\n".join(lines)


def _winner_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    return f"trial {about['winner']}, test accuracy {about['test_accuracy']:.4f}" if "winner" in about else ""


def _reached_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    if about.get("phase") == TEST_PHASE:
        return "the test of the trained model"
    parts = [
        about.get("phase"),
        *(f"{name} {_progress_text(about, name)}" for name in ("epoch", "step") if about.get(name)),
    ]
    return ", ".join(part for part in parts if part)


def _done_text(run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    if "progress" not in about:
        return ""
    left = ""
    if run.is_active and about["eta_s"] is None:
        left = ", time left unknown"
    elif run.is_active:
        more = "" if about["eta_whole"] else " or more: not all that is left could be measured yet"
        left = f", {format_duration(about['eta_s'])} to go{more}"
    return f"{about['progress']:.0%}{left}"


def _scores_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    named = {"loss": "loss", "accuracy": "accuracy", "val_accuracy": "validation accuracy"}
    named["best_val_accuracy"] = "best validation accuracy"
    return ", ".join(f"{title} {about[name]:.4f}" for name, title in named.items() if about.get(name) is not None)


def _checkpoint_text(_run: RunStatus, about: Mapping[str, Any], age_s: float) -> str:
    if not about.get("checkpoint_at"):
        return str(about.get("checkpoint", ""))
    at, updated = (datetime.fromisoformat(about[name]) for name in ("checkpoint_at", "updated_at"))
    return f"{about['checkpoint']}, {format_age((updated - at).total_seconds() + age_s)}"


def _workers_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    if about.get("workers") is None:
        return ""
    if about["workers"] == 0:
        return "none, the driver trains"
    where = f" on {', '.join(about['nodes'])}" if about["nodes"] else ""
    return f"{about['workers']}{where}" + (f", start {about['attempt']}" if about["attempt"] > 1 else "")


def _hardware_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    return "\n".join(first_line(warning["text"], MAX_REASON) for warning in about.get("hardware_warnings", ()))


def _failures_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    if not about.get("failures"):
        return "0" if "failures" in about else ""
    lines = [f"{about['failures']}; under this driver {about['failures_here']} of {about['failures_allowed']} allowed"]
    for failure in about["last_failures"]:
        place = failure["place"]
        where = f" in {place['phase']}, epoch {place['epoch']}, step {place['step']}" if place else ""
        lines.append(f"{failure['at']} {failure['kind']}{where}: {failure['reason']}")
    return "\n".join(lines)


def _driver_text(_run: RunStatus, about: Mapping[str, Any], _age_s: float) -> str:
    return f"process {about['pid']} on {about['host']}, since {about['started_at']}" if about.get("host") else ""


_DETAILS: tuple[tuple[str, Callable[[RunStatus, Mapping[str, Any], float], str]], ...] = (
    ("trials", _trials_text),
    ("winner", _winner_text),
    ("reached", _reached_text),
    ("done", _done_text),
    ("images/s", lambda _run, about, _age_s: _number(about, "images_per_second", ".1f").strip("-")),
    ("scores", _scores_text),
    ("checkpoint", _checkpoint_text),
    ("workers", _workers_text),
    ("failures", _failures_text),
    ("hardware", _hardware_text),
    ("says", lambda run, about, _age_s: str(about.get("says", "")) if run.is_active else ""),
    ("driver", _driver_text),
    ("written", lambda run, _about, age_s: f"{utc_timestamp(run.seen_s)}, {format_age(age_s)}"),
    ("folder", lambda run, _about, _age_s: run.location),
)


def _progress_text(about: Mapping[str, Any], name: str) -> str:
    """As 3/20; "-" where nothing is known."""
    if not about.get(name):
        return "-"
    return f"{about[name]}/{about[f'{name}s']}" if about.get(f"{name}s") else str(about[name])


def _number(about: Mapping[str, Any], name: str, form: str) -> str:
    return "-" if about.get(name) is None else format(about[name], form)


def _eta(run: RunStatus) -> str:
    """Time left, with a + where not all of it could be measured; "-" where it is unknown."""
    eta_s = run.about.get("eta_s")
    if eta_s is None or not run.is_active:
        return "-"
    return format_duration(eta_s) + ("" if run.about["eta_whole"] else "+")
