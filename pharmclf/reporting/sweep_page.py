"""report.html of a sweep: what won and by how much, its parameters, and all trials in a table that can be sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.core.units import format_count, price_of
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting import sweep_plots as plots
from pharmclf.reporting.figures import chart_style, inline_svg
from pharmclf.reporting.html_report_tables import score_axis
from pharmclf.reporting.sweep_report import SweepReport, comparison_sentences, crowd_sentence, headline
from pharmclf.reporting.sweep_tables import MIN_IMPORTANCE_TRIALS, accuracy_estimate, parameter_cells
from pharmclf.reporting.table_pages import render_page
from pharmclf.reporting.trial_info import TrialInfo, best_trial, rank_trials, short_names

_MAX_ROWS = 500  # a browser takes seconds for thousands


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial in the table of the page."""

    trial: TrialInfo
    cells: Sequence[tuple[str, object]]
    """Each value of its parameters as text, with what it is sorted by."""
    accuracy: Estimate | None
    price: float | None
    marks: tuple[str, ...]
    """best, plain run."""


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """A searched parameter."""

    name: str
    """Dotted."""
    plain: str
    """Value in the plain run; "": that has not begun."""
    best: str
    """Value in the best trial."""
    importance: float | None
    """0..1; None: unknown."""


def sweep_page(report: SweepReport) -> str:
    """The page as HTML, UTF-8; equal reports give equal text."""
    ranked = rank_trials(report.trials)
    best = best_trial(report.trials)
    estimate = accuracy_estimate(best, report.val_images) if best else None
    rows = _trial_rows(report, ranked[:_MAX_ROWS])
    return render_page(
        "sweep.html.j2",
        report=report,
        best=best,
        headline=headline(report),
        sentences=comparison_sentences(report),
        crowd=crowd_sentence(report, estimate.low) if estimate else "",
        names=list(short_names(ranked[0].params).values()),
        rows=rows,
        left_out=len(ranked) - len(rows),
        axis=score_axis(row.accuracy for row in rows if row.accuracy),
        parameters=_parameter_rows(report, best),
        few=_importance_note(report),
        charts=_charts(report),
        seconds=(seconds := sum(trial.seconds for trial in report.trials)),
        price=price_of(seconds, report.price_per_hour),
    )


def _trial_rows(report: SweepReport, trials: list[TrialInfo]) -> list[TrialRow]:
    best = best_trial(trials)
    return [
        TrialRow(
            trial=trial,
            cells=list(zip(texts, trial.params.values(), strict=True)),
            accuracy=accuracy_estimate(trial, report.val_images),
            price=price_of(trial.seconds, report.price_per_hour),
            marks=(*(["best"] if trial is best else []), *(["plain run"] if trial.number == 0 else [])),
        )
        for trial, texts in zip(trials, parameter_cells(trials)[1], strict=True)
    ]


def _parameter_rows(report: SweepReport, best: TrialInfo | None) -> list[ParameterRow]:
    plain = next((trial for trial in report.trials if trial.number == 0), None)
    shown = [trial for trial in (plain, best) if trial is not None]
    texts = {trial.number: cells for trial, cells in zip(shown, parameter_cells(shown)[1], strict=True)}

    def text(trial: TrialInfo | None, place: int) -> str:
        return "" if trial is None else texts[trial.number][place]

    return [
        ParameterRow(
            name=name,
            plain=text(plain, place),
            best=text(best, place),
            importance=report.importances.get(name),
        )
        for place, name in enumerate(report.trials[0].params)
    ]


def _importance_note(report: SweepReport) -> str:
    """Why no importance is shown, or how far it can be believed."""
    ended = sum(trial.state in ("trained", "stopped", "diverged") for trial in report.trials)
    if report.importances:
        return (
            f"The importance of a parameter is its share in what the best trials have in common (PED-ANOVA), of "
            f"{format_count(ended, 'trial')}." + (" With fewer than 30 trials it is a hint." if ended < 30 else "")
        )
    if ended < MIN_IMPORTANCE_TRIALS:
        few = format_count(ended, "trial")
        return f"The importance of parameters is computed from {MIN_IMPORTANCE_TRIALS} trials up; this sweep has {few}."
    return "All trials are equally accurate, so that no parameter is important."


def _charts(report: SweepReport) -> list[tuple[str, str]]:
    """(title, SVG) of each figure that can be read on dark ground too; the others are files in the folder."""
    with chart_style():
        figures = {
            "Validation accuracy of each trial over its epochs": plots.trial_curves_figure(report.trials),
            "Best validation accuracy over each parameter": plots.parameters_figure(report.trials, report.log_names),
        }
        return [(title, inline_svg(figure, title)) for title, figure in figures.items()]
