"""Finds learning rates ahead of a run: a range test of each phase, its picture, and what it proposes."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

from pharmclf import storage
from pharmclf.cli import EXIT_OK, scan_progress
from pharmclf.config import RunConfig, refuse_auto
from pharmclf.core.console import Say
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.tables import align_columns
from pharmclf.data.prepare import check_storage, split_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.distributed.controller import connect, with_loader_cpus
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.models.devices import configure_devices_for
from pharmclf.pipeline import describe_data
from pharmclf.reporting.lr_finder_plot import lr_finder_png
from pharmclf.runs.record import resolve_weights_path
from pharmclf.training.feasible import check_feasible
from pharmclf.training.lr_finder import LrCurve, LrSuggestion, suggest_lr
from pharmclf.training.phases import build_phases
from pharmclf.training_run import build_training_context, feature_request


def find_learning_rates(config: RunConfig, say: Say) -> int:
    """Try learning rates with each phase of a run, in this process, and propose one; no run is begun or changed.

    Writes `find-lr-NAME.png` and `.json` into the storage, beside the runs.

    Args:
        config: the run; its data, batch, augmentation and activations are those of the test.
        say: takes lines for the console.

    Returns:
        The exit code: 0, or 130 and 143 after a signal, with nothing written.

    Raises:
        ConfigError: bad input.
    """
    refuse_auto(config.microbatch, "--find-lr")
    config = dataclasses.replace(resolve_weights_path(config), workers="0")
    for warning in check_feasible(config):
        say(f"warning: {warning}")
    check_storage(config)
    place = storage.join(storage.absolute(config.storage), f"find-lr-{config.run_name}")
    with GracefulShutdown() as stop, tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        manifest = split_manifest(config, folder, scan_progress(say))
        describe_data(manifest, "", say)
        connect(allow_open=config.allow_open_cluster)

        quarantine = Quarantine(manifest, config.max_bad_share, say)

        def stopped() -> bool:
            return stop.received is not None or quarantine.exceeds_limit

        job = with_loader_cpus(build_training_context(config, folder, manifest))
        with suppress_native_stderr():
            configure_devices_for(config)
        configured = {phase.name: phase.settings.learning_rate for phase in build_phases(config)}
        try:
            job = dataclasses.replace(
                job, activations=get_or_compute(feature_request(job, manifest, 0, say, stopped, quarantine.add))
            )
            with suppress_native_stderr():
                from pharmclf.training.range_test import range_test

                curves = range_test(
                    job,
                    say,
                    lambda curve: _format_suggestion(curve).rate or configured[curve.phase],
                    stopped,
                    quarantine,
                )
        except StopRequested:
            quarantine.check()
            return stop.exit_code
    quarantine.check()
    found = [(curve, configured[curve.phase], _format_suggestion(curve)) for curve in curves]
    storage.write_json(f"{place}.json", {"phases": [_to_dict(*each) for each in found]})
    storage.write_bytes(f"{place}.png", lr_finder_png(config.run_name, found))
    for line in _format_table(found):
        say(line)
    say(f"curves: {place}.png, .json")
    return EXIT_OK


def _format_suggestion(curve: LrCurve) -> LrSuggestion:
    return suggest_lr(curve.rates, curve.losses, diverged=bool(curve.ended))


def _to_dict(curve: LrCurve, configured: float, proposal: LrSuggestion) -> dict[str, Any]:
    about = {"configured": configured, "proposed": proposal.rate, "reason": proposal.reason}
    return dataclasses.asdict(curve) | about


def _format_table(found: list[tuple[LrCurve, float, LrSuggestion]]) -> list[str]:
    """What is proposed, and the flags that take it."""
    rows = [("phase", "configured", "proposed", "why")]
    for curve, configured, proposal in found:
        rate = "none" if proposal.rate is None else f"{proposal.rate:.2g}"
        end = f"; {curve.ended}" if curve.ended else ""
        rows.append((curve.phase, f"{configured:.2g}", rate, f"{proposal.reason}{end}"))
    flags = [f"--{curve.phase}.learning-rate {proposal.rate:.2g}" for curve, _, proposal in found if proposal.rate]
    return [*align_columns(rows, left=[0, -1]), *([f"to take it: {' '.join(flags)}"] if flags else [])]
