"""report.html: one file that shows all of a run or an evaluation, and reaches for nothing outside itself.

Text is escaped by Jinja2, every picture is a `data:` URI, there is no script, and the page's own content security
policy forbids all else.
"""

from __future__ import annotations

import functools

import jinja2
from matplotlib.figure import Figure

from pharmclf.core.units import format_count, format_duration
from pharmclf.report import calibration_plots, page_pictures, page_tables, plots, words
from pharmclf.report.facts import ReportFacts
from pharmclf.report.fonts import numbered
from pharmclf.report.svg import inline_svg

_PANELS = {
    "Loss": "Loss over the epochs, training and validation",
    "Accuracy": "Accuracy over the epochs, training and validation",
    "Learning rate": "Learning rate over the epochs",
}


def page_html(facts: ReportFacts) -> str:
    """The report as a page of HTML, UTF-8; equal facts give equal text.

    Args:
        facts: what it shows; sections of what is not known are left out.
    """
    side = page_pictures.fitting_side(facts)
    template = _environment().get_template("page.html.j2")
    return template.render(
        facts=facts,
        test=facts.test,
        uri=functools.partial(page_pictures.image_uri, side=side),
        verdict=words.verdict(facts),
        curves=_curves(facts),
        confidence=_confidence(facts),
        heat_scale=page_pictures.heat_scale(),
        heat_in=_first_heat(facts),
    )


def _first_heat(facts: ReportFacts) -> str:
    """The first section that shows heatmaps, where they are explained; "" where there are none."""
    sections = {"samples": [item.samples for item in facts.sets], "mistakes": [item.worst for item in facts.sets]}
    for name, groups in sections.items():
        if any(picture.heatmap is not None for group in groups for picture in group):
            return name
    return ""


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pharmclf.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "number": words.number,
        "limit": words.limit,
        "confidence": words.confidence,
        "interval": words.interval,
        "with_interval": words.with_interval,
        "points": words.points,
        "count": format_count,
        "shorten": plots.format_names,
        "duration": format_duration,
        "heat": page_pictures.heat_overlay,
        "png": page_pictures.png_uri,
        "phase": lambda name: plots.phase_name({"phase": name}),
        "tail": lambda path: "/".join(str(path).split("/")[-2:]),
    }
    environment.globals |= {"tables": page_tables, "words": words, "numbered": numbered}
    return environment


def _curves(facts: ReportFacts) -> list[tuple[str, str]]:
    """(title, SVG) of each panel of the learning curves."""
    history = facts.history
    if not history:
        return []
    keys = [(entry["phase"], entry["epoch"]) for entry in history]
    chosen = keys.index(facts.best) if facts.best else plots.best_epoch(history)
    found = []
    with plots.styled():
        for title, description in _PANELS.items():
            figure = Figure(figsize=(3.7, 2.8), dpi=plots.DPI)
            axes = figure.add_axes((0.125, 0.165, 0.855, 0.72))
            plots.draw_curves(axes, title, history, chosen)
            found.append((title, inline_svg(figure, description)))
    return found


def _confidence(facts: ReportFacts) -> dict[str, str]:
    """The SVG of reliability and of risk and coverage."""
    threshold = facts.decision.threshold if facts.decision else None
    lines = {"validation": facts.validation} if facts.validation else {}
    lines |= {item.name: item.evaluation for item in facts.sets}
    with plots.styled():
        reliability = calibration_plots.reliability_figure(facts.test.evaluation, threshold)
        risk = calibration_plots.risk_coverage_figure(lines, facts.decision)
        return {
            "reliability": inline_svg(reliability, "How often answers of some confidence are right"),
            "risk": inline_svg(risk, "Share of wrong answers over the share of images answered"),
        }
