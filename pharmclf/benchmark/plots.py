"""Plots of the reports of the benchmarks; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pharmclf.reporting.benchmark_plots import Bar, BarPanel, bars_figure, curves_figure
from pharmclf.reporting.figures import png_bytes

_TITLES = {"plain": "plain Keras", "cached": "plain Keras, cache()", "ours": "this package"}
Report = Mapping[str, Any]
"""As `measure.Report`, and what `registry.run_benchmark` adds."""


def plot_report(name: str, report: Report) -> bytes | None:
    """PNG of the report of a benchmark; None where that draws itself, or has no rows."""
    if name == "peers":
        return _plot_peers(report)
    draw = _PANELS.get(name)
    panels = [panel for panel in draw(report) if panel.bars] if draw else []
    if not panels:
        return None
    return png_bytes(bars_figure(_HEADINGS[name], _subtitle(report), panels))


def _subtitle(report: Report) -> str:
    machine = report.get("machine")
    parts = [report["backbone"]] if "backbone" in report else []
    parts += [f"{machine['processor']}, {machine['cores']} cores"] if machine else []
    return " · ".join(parts)


def _plot_peers(report: Report) -> bytes:
    curves = {row["title"]: report["curves"][row["side"]] for row in report["rows"]}
    subtitle = f"{_subtitle(report)} · one run of each, {report['test_images']} test images"
    return png_bytes(curves_figure("Test accuracy of the best model so far", subtitle, curves, report["target"]))


def _plain(report: Report) -> list[BarPanel]:
    sides = report["sides"]
    by_what = {row["what"]: row for row in report["rows"]}

    def ratio(side: str, row: Report) -> str:
        if side not in row["ratios"]:
            return ""
        note = "" if report["comparable"][side] else ", not comparable"
        return f" · {row['ratios'][side]:.2f}x as long{note}"

    whole, read = (next(row for what, row in by_what.items() if what.startswith(begin))
                   for begin in ("all, from", "input alone"))  # fmt: skip
    first = [Bar(_TITLES[name], side["whole_s"], f"{side['whole_s']:.0f} s{ratio(name, whole)}", parts=side["parts_s"])
             for name, side in sides.items()]  # fmt: skip
    second = []
    for name, side in sides.items():
        slower = f" · ours {read['ratios'][name]:.2f}x" if name in read["ratios"] else ""
        second.append(Bar(_TITLES[name], side["input_per_s"], f"{side['input_per_s']:,.0f} images/s{slower}"))
    for phase, rate in sides["ours"]["kept_per_s"].items():
        second.append(Bar(f"this package, {phase}, feature cache", rate, f"{rate:,.0f} images/s"))
    third = [Bar(_TITLES[name], side["test_accuracy"], f"{side['test_accuracy']:.3f}", interval=tuple(side["interval"]))
             for name, side in sides.items()]  # fmt: skip
    return [
        BarPanel("From the start of the process to the tested model", first),
        BarPanel("The input alone", second),
        BarPanel("Test accuracy, with its 95 % interval", third),
    ]


def _devices(report: Report) -> list[BarPanel]:
    panels = []
    for phase in dict.fromkeys(row["phase"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["phase"] == phase and not row["skipped"]]
        speed, memory, energy = [], [], []
        for row in rows:
            label = f"{row['device']}, {row['precision']}"
            more = f" · {row['ratio']:.2f}x" if row["ratio"] else ""
            speed.append(Bar(label, row["images_per_second"], f"{row['images_per_second']:,.1f} images/s{more}"))
            memory.append(Bar(label, row["memory_bytes"] / 1e6, f"{row['memory_bytes'] / 1e6:,.0f} MB"))
            if row["joules_per_1000"] is not None:
                energy.append(Bar(label, row["joules_per_1000"], f"{row['joules_per_1000']:,.0f} J"))
        batch = ", ".join(sorted({str(row["batch_size"]) for row in rows}))
        panels += [
            BarPanel(f"{phase}: training step at batch {batch}, and as a multiple of the processors in float32", speed),
            BarPanel(f"{phase}: peak memory", memory),
            BarPanel(f"{phase}: energy of 1,000 images", energy),
        ]
    return panels


def _stages(report: Report) -> list[BarPanel]:
    panels = []
    for row in report["rows"]:
        least = min(row["stream"], row["step"])
        bars = [Bar(name, row[name], f"{row[name]:,.1f} images/s · {row[name] / least:.2f}x the slowest stage")
                for name in ("stream", "step", "loop")]  # fmt: skip
        panels.append(BarPanel(f"{row['backbone']}, {row['phase']}", bars))
    return panels


def _activations(report: Report) -> list[BarPanel]:
    runs = report["runs"]
    first = runs["streamed"]["seconds"]
    whole = []
    for name, run in runs.items():
        parts = {"activations": run["pass_s"], **run["phases"]}
        parts["other"] = max(0.0, run["seconds"] - sum(parts.values()))
        whole.append(Bar(name, run["seconds"], f"{run['seconds']:.0f} s · {first / run['seconds']:.2f}x", parts=parts))
    splits = [Bar(f"{row['depth']} blocks trained, {row['bytes'] / 1e3:,.0f} kB an image", row["gain"],
                f"{row['gain']:.2f}x") for row in report["rows"]]  # fmt: skip
    return [BarPanel("The run", whole), BarPanel("How many times as fast phase 2 is, by split", splits)]


def _sweep(report: Report) -> list[BarPanel]:
    rows = report["rows"]
    whole = [Bar(f"{row['sweep']}, {row['trials']} trials", row["seconds"], f"{row['seconds']:.0f} s")
             for row in rows]  # fmt: skip
    overhead = [Bar(row["sweep"], row["overhead_s"], f"{row['overhead_s']:.2f} s") for row in rows]
    return [BarPanel("The sweep", whole), BarPanel("Overhead of a trial", overhead)]


def _monitor(report: Report) -> list[BarPanel]:
    row = report["rows"][0]
    share = [Bar("share of one core", 100 * row["share"], f"{row['share']:.2%} · at most 1 %"),
             Bar("allowed", 1.0, "1 %")]  # fmt: skip
    loop = [Bar("without readings", row["without"], f"{row['without']:,.1f} images/s"),
            Bar("read ten times as often", row["with_often"],
                f"{row['with_often']:,.1f} images/s · {row['with_often'] / row['without']:.3f}x")]  # fmt: skip
    return [BarPanel("Processor time of the monitor, in %", share), BarPanel("The training step", loop)]


def _predict(report: Report) -> list[BarPanel]:
    bars = [Bar(row["what"], row["images_per_second"], f"{row['images_per_second']:,.0f}/s · {row['share']:.2f}x")
            for row in report["rows"]]  # fmt: skip
    return [BarPanel("Prediction, and as a share of the bare forward pass", bars)]


def _serve(report: Report) -> list[BarPanel]:
    bars = [Bar(f"{row['clients']} clients, {row['images']} images each", row["images_per_second"],
                f"{row['images_per_second']:,.0f}/s · {row['share']:.2f}x") for row in report["rows"]]  # fmt: skip
    return [BarPanel("Images/s of the server, and as a share of the bare forward pass", bars)]


def _folding(report: Report) -> list[BarPanel]:
    panels = []
    for row in report["rows"]:
        bars = [Bar(name, row[name], f"{row[name]:,.1f} images/s · {row[name] / row['plain']:.2f}x")
                for name in ("plain", "folded")]  # fmt: skip
        panels.append(BarPanel(f"{row['backbone']}, {row['kind']}", bars))
    return panels


_PANELS: dict[str, Callable[[Report], list[BarPanel]]] = {
    "plain": _plain, "devices": _devices, "stages": _stages, "activations": _activations, "sweep": _sweep,
    "monitor": _monitor, "predict": _predict, "serve": _serve, "folding": _folding,
}  # fmt: skip
_HEADINGS = {
    "plain": "A run and the same job in plain Keras", "devices": "The training step by device and precision",
    "stages": "The stages of a run", "activations": "Gain of the feature cache", "sweep": "Costs of a sweep",
    "monitor": "Costs of the hardware monitor", "predict": "Prediction", "serve": "Server",
    "folding": "Batch normalisation, plain and folded into the convolutions",
}  # fmt: skip
