"""report.html: one file with all of a run or an evaluation, without external references.

Jinja2 escapes all text, images are `data:` URIs, and the page's content security policy allows one script by its hash
and forbids anything else. The page is readable without the script, which filters and sorts a table and moves between
enlarged images.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Iterator

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from pharmclf.evaluation.results import most_confused_pairs
from pharmclf.reporting import html_report_tables, text_format
from pharmclf.reporting.calibration_plots import reliability_figure, risk_coverage_figure
from pharmclf.reporting.figures import inline_svg
from pharmclf.reporting.fonts import format_names, numbered
from pharmclf.reporting.image_sample import DISPLAY_SIDE
from pharmclf.reporting.report_data import PredictedThumbnail, ReportData
from pharmclf.reporting.run_plots import CURVES, chosen_index, learning_curve_figure
from pharmclf.reporting.table_pages import load_script, page_environment

IMAGES_BUDGET_BYTES = 1_200_000
"""Approximate size of all images of a page as text."""
_SIDES = (DISPLAY_SIDE, 256, 208, 160, 128, 96)  # of images, pixels; the largest that fits
_QUALITY = 75
_HEAT_SIDE = 160  # of heatmaps, which show places and no details, pixels
_MAX_TRIED = 12  # images that are encoded to estimate their size
_HEAT = "inferno"
_DIMMED = 0.45  # brightness where the model found no evidence
_BASE64 = 4 / 3  # characters per byte


def page_html(report: ReportData) -> str:
    """The report as a page of HTML, UTF-8, without sections that have no data; equal data give equal text."""
    side = fit_side(report)
    return _environment().get_template("page.html.j2").render(
        facts=report,
        **load_script("report.js", "sortable.js"),
        test=report.test,
        uri=lambda image: _data_uri("webp", _webp(image, side)),
        sentences=text_format.score_sentences(report),
        curves=_curves(report),
        confidence=_confidence(report),
        heat_scale=_heat_scale(),
        heat_in=_first_heat(report),
    )  # fmt: skip


@functools.cache
def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters |= {
        "limit": text_format.format_limit,
        "confidence": text_format.format_confidence,
        "points": text_format.format_points,
        "shorten": format_names,
        "measured": text_format.format_measure,
        "heat": heat_overlay,
        "png": lambda content: _data_uri("png", content),
        "phase": text_format.phase_name,
        "tail": lambda path: "/".join(str(path).split("/")[-2:]),
    }
    environment.tests["finite"] = math.isfinite
    environment.globals |= {
        "tables": html_report_tables,
        "words": text_format,
        "numbered": numbered,
        "most_confused_pairs": most_confused_pairs,
    }
    return environment


def _curves(report: ReportData) -> list[tuple[str, str]]:
    """(title, SVG) of each panel of the learning curves."""
    if not report.history:
        return []
    chosen, svgs = chosen_index(report.history, report.best), list[tuple[str, str]]()
    for title in CURVES:
        description = f"{title} over the epochs{'' if title == 'Learning rate' else ', training and validation'}"
        svgs.append((title, inline_svg(learning_curve_figure(title, report.history, chosen), description)))
    return svgs


def _confidence(report: ReportData) -> dict[str, str]:
    """The SVG of reliability, and of risk and coverage."""
    threshold = report.decision.threshold if report.decision else None
    lines = {"validation": report.validation} if report.validation else {}
    lines |= {item.name: item.evaluation for item in report.sets}
    return {
        "reliability": inline_svg(
            reliability_figure(report.test.evaluation, threshold), "How often answers of some confidence are right"
        ),
        "risk": inline_svg(
            risk_coverage_figure(lines, report.decision), "Share of wrong answers over the share of images answered"
        ),
    }


def _first_heat(report: ReportData) -> str:
    """The first section with heatmaps, where they are explained; "" where there are none."""
    sections = {"mistakes": [item.worst for item in report.sets], "samples": [item.samples for item in report.sets]}
    for name, groups in sections.items():
        if any(image.heatmap is not None for group in groups for image in group):
            return name
    return ""


def fit_side(report: ReportData, budget_bytes: int = IMAGES_BUDGET_BYTES) -> int:
    """The side in pixels at which all images of a page stay within a budget, or the smallest side."""
    images = list(_images(report))
    tried = [images[index] for index in np.linspace(0, len(images) - 1, min(len(images), _MAX_TRIED)).astype(int)]
    for side in _SIDES:
        each = sum(len(_webp(image, side)) for image in tried) / max(1, len(tried))
        if each * len(images) * _BASE64 <= budget_bytes:
            break
    return side


def _images(report: ReportData) -> Iterator[np.ndarray]:
    """All images of a page, heat overlays included."""
    if report.data:
        groups = [*report.data.duplicate_groups, report.data.examples.values()]
        groups += [measure.extremes for measure in report.data.quality]
        yield from (item.image for group in groups for item in group)
    yield from (item.image for item in report.suspects)
    for item in report.sets:
        for thumbnail in (*item.samples, *item.worst, *(image for _, images in item.confused for image in images)):
            yield thumbnail.image
            if thumbnail.heatmap is not None:
                yield heat_overlay(thumbnail)


def heat_overlay(thumbnail: PredictedThumbnail) -> np.ndarray:
    """The image in grey and dimmed, lit up where the heatmap is high: (height, width, 3) uint8, small.

    Raises:
        ValueError: no heatmap.
    """
    if thumbnail.heatmap is None:
        raise ValueError(f"heatmap of {thumbnail.path}: received none, expected an array")
    shown = Image.fromarray(thumbnail.image).convert("L")
    shown.thumbnail((_HEAT_SIDE, _HEAT_SIDE), Image.Resampling.LANCZOS)
    evidence = Image.fromarray(np.nan_to_num(thumbnail.heatmap).astype(np.float32))
    heat = np.clip(np.asarray(evidence.resize(shown.size, Image.Resampling.BILINEAR)), 0, 1)
    grey = np.asarray(shown, np.float32)[..., None] / 255
    colour = colormaps[_HEAT](heat)[..., :3].astype(np.float32)
    strength = 0.75 * heat[..., None]
    mixed = (1 - strength) * grey * (_DIMMED + (1 - _DIMMED) * heat[..., None]) + strength * colour
    return np.asarray((255 * mixed).round().astype(np.uint8))


def _heat_scale() -> list[str]:
    """Colours of the heat from low to high, `#rrggbb`."""
    return [to_hex(colour) for colour in colormaps[_HEAT](np.linspace(0.1, 1, 8))]


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _webp(image: np.ndarray, side: int) -> bytes:
    """A (height, width, 3) uint8 image as WebP with sides of at most `side` pixels."""
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()
