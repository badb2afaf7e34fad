"""report.html: one file that shows all of a run or an evaluation, and reaches for nothing outside itself.

Text is escaped by Jinja2, every picture is a `data:` URI, there is no script, and the page's own content security
policy forbids all else.
"""

from __future__ import annotations

import functools

import jinja2
from matplotlib.figure import Figure

from pharmclf.core.units import format_count, format_duration
from pharmclf.reporting import calibration_plots, html_report_images, html_report_tables, plots, text_format
from pharmclf.reporting.fonts import numbered
from pharmclf.reporting.report_data import ReportData
from pharmclf.reporting.svg import inline_svg

_PANELS = {
    "Loss": "Loss over the epochs, training and validation",
    "Accuracy": "Accuracy over the epochs, training and validation",
    "Learning rate": "Learning rate over the epochs",
}


def page_html(facts: ReportData) -> str:
    """The report as a page of HTML, UTF-8; equal facts give equal text.

    Args:
        facts: what it shows; sections of what is not known are left out.
    """
    side = html_report_images.fit_side(facts)
    template = _environment().get_template("page.html.j2")
    return template.render(
        facts=facts,
        test=facts.test,
        uri=functools.partial(html_report_images.image_uri, side=side),
        verdict=text_format.build_verdict(facts),
        curves=_curves(facts),
        confidence=_confidence(facts),
        heat_scale=html_report_images.heat_scale(),
        heat_in=_first_heat(facts),
    )


def _first_heat(facts: ReportData) -> str:
    """The first section that shows heatmaps, where they are explained; "" where there are none."""
    sections = {"samples": [item.samples for item in facts.sets], "mistakes": [item.worst for item in facts.sets]}
    for name, groups in sections.items():
        if any(picture.heatmap is not None for group in groups for picture in group):
            return name
    return ""


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pharmclf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text_format.format_percent,
        "number": text_format.format_number,
        "limit": text_format.format_limit,
        "confidence": text_format.format_confidence,
        "interval": text_format.format_interval,
        "with_interval": text_format.format_with_interval,
        "points": text_format.format_points,
        "count": format_count,
        "shorten": plots.format_names,
        "duration": format_duration,
        "heat": html_report_images.heat_overlay,
        "png": html_report_images.png_uri,
        "phase": plots.phase_name,
        "tail": lambda path: "/".join(str(path).split("/")[-2:]),
    }
    environment.globals |= {"tables": html_report_tables, "words": text_format, "numbered": numbered}
    return environment


def _curves(facts: ReportData) -> list[tuple[str, str]]:
    """(title, SVG) of each panel of the learning curves."""
    history = facts.history
    if not history:
        return []
    keys = [(record.phase, record.epoch) for record in history]
    chosen = keys.index(facts.best) if facts.best else plots.best_epoch(history)
    found = []
    with plots.styled():
        for title, description in _PANELS.items():
            figure = Figure(figsize=(3.7, 2.8), dpi=plots.DPI)
            axes = figure.add_axes((0.125, 0.165, 0.855, 0.72))
            plots.draw_curves(axes, title, history, chosen)
            found.append((title, inline_svg(figure, description)))
    return found


def _confidence(facts: ReportData) -> dict[str, str]:
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
