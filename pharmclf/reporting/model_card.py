"""The model card, Markdown next to the model: its purpose, scores, failures, and when it should not answer.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Names of classes, sets and files are escaped: readers see
them as they are, whatever they hold.
"""

from __future__ import annotations

import functools
import re

import jinja2
from jinja2.filters import do_mark_safe

from pharmclf.core.units import format_count, format_examples
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.result_files import MAX_OPEN_CLASSES
from pharmclf.evaluation.results import ClassResult
from pharmclf.reporting import load_image_snippet, text_format
from pharmclf.reporting.html_report_tables import sort_by_recall
from pharmclf.reporting.report_data import EvalSetReport, ReportData
from pharmclf.reporting.table_pages import page_environment

CARD_FILE = "README.md"
"""File name of the card, next to the model."""
_WORST = 5  # classes and pairs that are named
_MOST_NAMES = 30  # classes that are listed
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&#!$^])")
_BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # would reverse the rest of the line


def model_card(report: ReportData) -> str:
    """The card as Markdown (CommonMark with tables), without what is unknown; equal data give equal text."""
    classes = report.test.evaluation.classes
    tested = [item for item in classes if item.support]
    snippet = load_image_snippet.load_image_text(report.data.white_level if report.data else MAX_VALUE)
    text = _environment().get_template("model_card.md.j2").render(
        report=report,
        sentences=text_format.score_sentences(report),
        classes=classes if len(classes) <= MAX_OPEN_CLASSES else sort_by_recall(report.test.evaluation)[0],
        has_fall=any(item.drop and item.drop.high < 0 for item in report.sets),
        vaguest=max(tested, key=lambda item: item.recall.high - item.recall.low),
        untested=format_examples([item.name for item in classes if not item.support], _MOST_NAMES),
        snippet=f"{load_image_snippet.IMPORTS}\n\n{snippet}",
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def escape_markdown(text: object) -> str:
    """A text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", _BIDI_CONTROLS.sub("", " ".join(str(text).split())))


@functools.cache
def _environment() -> jinja2.Environment:
    """Templates in which each value is escaped for Markdown, except numbers that a filter has formatted."""
    environment = page_environment(
        finalize=lambda value: value if hasattr(value, "__html__") else do_mark_safe(escape_markdown(value))
    )
    environment.filters |= {
        "percent": lambda share: do_mark_safe(text_format.format_percent(share)),
        "with_interval": lambda estimate: do_mark_safe(text_format.format_with_interval(estimate)),
        "thousands": lambda number: do_mark_safe(f"{number:,}"),
        "count": lambda number, word: do_mark_safe(format_count(number, word)),
    }
    environment.globals |= {
        "words": text_format,
        "thin": do_mark_safe(text_format.THIN),
        "missed_classes": _missed_classes,
        "worst": _WORST,
        "most_names": _MOST_NAMES,
    }
    return environment


def _missed_classes(item: EvalSetReport) -> list[ClassResult]:
    """The classes with mistakes, those with the lowest recall."""
    missed = [result for result in item.evaluation.classes if result.support and result.recall.value < 1]
    return sorted(missed, key=lambda result: result.recall.value)[:_WORST]
