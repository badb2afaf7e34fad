"""Suggests learning rates for a run: a range test of each phase and its plot."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from pharmclf import storage
from pharmclf.config import RunConfig, refuse_auto
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import EXIT_OK
from pharmclf.core.events import Callback
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.tables import align_columns
from pharmclf.core.terminal import Result
from pharmclf.core.usual_times import IMPORT_TENSORFLOW_S
from pharmclf.crop import crop_images
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.prepare import check_storage, split_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.distributed.cluster import connect
from pharmclf.distributed.controller import with_loader_cpus
from pharmclf.evaluation.label_alignment import adapt_to_model
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.models.devices import configure_devices_for, gpu_compute_capability, resolve_precision
from pharmclf.pipeline import describe_data
from pharmclf.progress import scan_progress
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.lr_finder_plot import lr_finder_figure
from pharmclf.runs.record import resolve_weights_path
from pharmclf.training.context import TrainingContext, TrainingDivergedError
from pharmclf.training.feasible import check_feasible
from pharmclf.training.lr_finder import LrCurve, LrSuggestion, candidate_lrs, measure_curve
from pharmclf.training.lr_schedule import has_diverged
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training_run import build_training_context, feature_request

_HEAD_STEPS = 200  # of phase 1 before the test of phase 2, or fewer if phase 1 has fewer


def find_learning_rates(config: RunConfig, say: Say) -> int:
    """Test learning rates for each phase of a run in this process, and suggest one; no run is started or changed.

    Writes `find-lr-NAME.png` and `.json` into the storage, next to the runs.

    Args:
        config: the run, whose data, batch size, augmentation and feature cache the test uses.
        say: takes lines for the console.

    Returns:
        The exit code: 0, or 130 and 143 after a signal, with nothing written.

    Raises:
        ConfigError: bad input.
    """
    refuse_auto(config.microbatch, "--find-lr")
    config = dataclasses.replace(resolve_weights_path(config), num_workers="0")
    for warning in check_feasible(config):
        say(f"warning: {warning}")
    check_storage(config)
    configured = {phase.name: phase.settings.learning_rate for phase in build_phases(config)}
    with GracefulShutdown() as stop, tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        manifest = crop_images(config, adapt_to_model(config, split_manifest(config, folder, scan_progress())))
        describe_data(manifest, "", say)
        connect(allow_open=config.allow_unauthenticated_cluster)
        quarantine = Quarantine(manifest, config.max_invalid_share, say)

        def should_stop() -> bool:
            return stop.received is not None or quarantine.exceeds_limit

        job = with_loader_cpus(build_training_context(config, folder, manifest))
        with suppress_native_stderr(), show_activity("importing TensorFlow", IMPORT_TENSORFLOW_S):
            configure_devices_for(config)
        try:
            features = get_or_compute(feature_request(job, manifest, 0, say, should_stop, quarantine.add))
            job = dataclasses.replace(job, activations=features)
            with suppress_native_stderr(), show_activity("testing learning rates"):
                curves = range_test(
                    job, say, lambda curve: curve.suggest().rate or configured[curve.phase], should_stop, quarantine
                )
        except StopRequested:
            quarantine.check()
            return stop.exit_code
    quarantine.check()
    found = [(curve, configured[curve.phase], curve.suggest()) for curve in curves]
    location = storage.join(storage.absolute(config.storage), f"find-lr-{config.run_name}")
    phases = [
        dataclasses.asdict(curve) | {"configured": rate, "proposed": suggestion.rate, "reason": suggestion.reason}
        for curve, rate, suggestion in found
    ]
    storage.write_json(f"{location}.json", {"phases": phases})
    storage.write_bytes(f"{location}.png", png_bytes(lr_finder_figure(config.run_name, found)))
    for line in map(Result, [*_format_table(found), f"curves: {location}.png, .json"]):
        say(line)
    return EXIT_OK


def _format_table(found: list[tuple[LrCurve, float, LrSuggestion]]) -> list[str]:
    """The suggestions, and the flags that set them."""
    rows = [("phase", "configured", "suggested", "reason")]
    for curve, configured, suggestion in found:
        rate = "none" if suggestion.rate is None else f"{suggestion.rate:.2g}"
        end = f"; {curve.ended}" if curve.ended else ""
        rows.append((curve.phase, f"{configured:.2g}", rate, f"{suggestion.reason}{end}"))
    flags = [f"--{curve.phase}.learning-rate {given.rate:.2g}" for curve, _, given in found if given.rate]
    return [*align_columns(rows, left=[0, -1]), *([f"to use them: {' '.join(flags)}"] if flags else [])]


def range_test(
    job: TrainingContext,
    say: Say,
    rate_of: Callable[[LrCurve], float],
    should_stop: Callable[[], bool],
    listener: Callback,
) -> list[LrCurve]:
    """Take the steps of a range test of each phase; the head is trained before phase 2, as in a run.

    Args:
        job: of a run in this process.
        say: takes lines for the console.
        rate_of: curve of phase 1 -> learning rate with which its head is trained for phase 2.
        should_stop: polled before each step.
        listener: receives the events of quarantined images.

    Returns:
        A curve for each phase.

    Raises:
        StopRequested: a stop was requested.
        TrainingDivergedError: the head diverged at that learning rate, so that there is no model to test phase 2 on.
    """
    from pharmclf.training import collectives
    from pharmclf.training.batch_loader import device_batches
    from pharmclf.training.model_step import ModelStep, build_networks
    from pharmclf.training.train_step import StepResult

    config, workers, phases = job.config, collectives.single_worker(), build_phases(job.config)
    precision = resolve_precision(config.precision, gpu_compute_capability())
    backbone, head = build_networks(job, workers, precision)
    steps_per_epoch = -(-len(job.train_rows) // config.batch_size)

    def take_steps(phase: Phase, model: ModelStep, rates: np.ndarray) -> Iterator[tuple[float, float]]:
        """A training step at each rate, on the batches of a run in their order -> rate, mean loss."""
        plan = BatchPlan(
            job.train_rows, job.validation_rows[:0], config.batch_size, config.seed, phase.first_epoch,
            -(-len(rates) // steps_per_epoch),
        )  # fmt: skip
        batches = device_batches(job, phase, plan, 0, listener)
        try:
            for rate in rates.tolist():
                if should_stop():
                    raise StopRequested
                model.set_learning_rates(np.array([rate]))
                result = StepResult.of(model.train_step(next(batches), 0.0))
                yield rate, float(result.loss_sum[0]) / max(1.0, float(result.images[0]))
        finally:
            batches.close()

    curves: list[LrCurve] = []
    for phase in phases:
        cached, microbatch = phase.name in job.activations, job.microbatches.get(phase.name, 0)
        model = ModelStep(
            config, workers, backbone, head, phase.unfreeze_blocks, precision, cached=cached, microbatch=microbatch
        )
        before = model.state_dict()
        say(f"{phase.name}: testing learning rates on {'the feature cache' if cached else 'images'}")
        curves.append(measure_curve(phase.name, take_steps(phase, model, candidate_lrs())))
        model.load_state_dict(before)
        if phase is phases[-1]:
            break
        rate = rate_of(curves[-1])
        num_steps = min(_HEAD_STEPS, phase.settings.epochs * steps_per_epoch)
        for _, loss in take_steps(phase, model, np.full(num_steps, rate)):
            if has_diverged(loss, len(job.class_names)):
                raise TrainingDivergedError(
                    f"the loss is {loss:.3g} in {phase.name}, which is trained before the test of the next phase at a "
                    f"rate of {rate:.2g}. Lower {phase.name}.learning_rate"
                )
    if should_stop():
        raise StopRequested
    return curves
