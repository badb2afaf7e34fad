"""Plot of a learning-rate range test, with the configured and the proposed rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pharmclf.reporting.figures import BLUE, FAINT, INK, ORANGE, SOFT, chart_style, new_figure
from pharmclf.training.lr_finder import LOWEST, LrCurve, LrSuggestion, smooth


@chart_style()
def lr_finder_figure(name: str, curves: Sequence[tuple[LrCurve, float, LrSuggestion]]) -> Figure:
    """A panel for each phase, loss over rate: its curve, the configured rate and the proposal.

    Raises:
        ValueError: no curves.
    """
    if not curves:
        raise ValueError("curves: received none, expected one or more")
    width, height, top = 1.2 + 5.2 * len(curves), 4.6, 1.15
    subtitle = f"{name} · the rate grows from step to step until the loss breaks down"
    figure = new_figure(width, height, "Learning-rate range test", subtitle)
    for place, (curve, configured, proposal) in enumerate(curves):
        left = 0.75 + place * 5.4
        axes = figure.add_axes((left / width, 0.62 / height, 4.6 / width, (height - top - 0.85) / height))
        _draw_curve(axes, curve, configured, proposal)
    return figure


def _draw_curve(axes: Axes, curve: LrCurve, configured: float, proposal: LrSuggestion) -> None:
    rates, losses = np.array(curve.rates), np.array(curve.losses)
    axes.set_xscale("log")
    axes.set_xlim(LOWEST / 2, 2 * max(LOWEST, configured, proposal.rate or 0.0, *curve.rates))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda rate, _: f"{rate:.0e}".replace("e-0", "e-")))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # the default writes powers as mathematics
    axes.set_title(curve.phase, pad=22)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if len(rates):
        mean = smooth(curve.losses)
        axes.plot(rates, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each step")
        axes.plot(rates, mean, color=BLUE, linewidth=1.8, label="smoothed")
        low, high = float(min(losses.min(), mean.min())), float(np.quantile(losses, 0.9))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.35 * (high - low) + 1e-9)
    lines = [(configured, SOFT, "--", f"configured {configured:.2g}", 14)]
    if proposal.rate is not None:
        lines.append((proposal.rate, ORANGE, "-", f"proposed {proposal.rate:.2g}", 4))
    for rate, colour, look, text, above in lines:
        if rate <= 0:
            continue
        axes.axvline(rate, color=colour, linestyle=look, linewidth=1.3)
        axes.annotate(
            text, (rate, 1), xycoords=("data", "axes fraction"), xytext=(0, above), textcoords="offset points",
            ha="center", size=8.5, color=colour, annotation_clip=False,
        )  # fmt: skip
    if proposal.rate is None:
        axes.annotate("no proposal", (0.5, 0.92), xycoords="axes fraction", ha="center", size=9, color=INK)
    if len(rates):
        axes.legend(loc="lower left", frameon=False, fontsize=8, labelcolor=SOFT)
