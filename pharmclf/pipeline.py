"""Runs a training from images to a report: prepare -> services -> train -> evaluate."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator

from pharmclf import storage
from pharmclf.config import RunConfig, to_record
from pharmclf.console import ConsoleLogger
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import EXIT_OK, format_error
from pharmclf.core.events import ActivityStarted, FinalEvaluationStarted, RunEnd
from pharmclf.core.program import command_line
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.units import format_count
from pharmclf.data.destination import destination_warnings
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE, check_storage, imbalance_note, write_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.diagnostics.preflight import run_preflight
from pharmclf.distributed.cluster import autoscaling_request, node_address, resolve_workers
from pharmclf.distributed.controller import connect_for_training
from pharmclf.evaluation.datasets import external_datasets
from pharmclf.monitoring import HardwareMonitor, RunContext
from pharmclf.progress import scan_progress
from pharmclf.resume import RunStart, inspect_run_folder, reopen_complete_run, run_manifest
from pharmclf.runs.final_evaluation import run_final_evaluation
from pharmclf.runs.folds import Fold, train_folds
from pharmclf.runs.prometheus import PrometheusExporter
from pharmclf.runs.record import (
    RecordState,
    ResolvedSettings,
    RunRecord,
    clear_folder,
    resolve_weights_path,
    result_settings,
    run_fingerprints,
    run_lock,
    versions,
    write_final_record,
)
from pharmclf.runs.status_writer import StatusWriter
from pharmclf.runs.storage_index import renew_index
from pharmclf.storage.lease import Lease
from pharmclf.tracking import Tracker, check_tracking
from pharmclf.training.feasible import batch_warning, check_feasible
from pharmclf.training.time_budget import deadline
from pharmclf.training.train_state import TrainResult
from pharmclf.training_run import build_training_context, resolve_auto_settings, train_with_feature_cache


def run(
    config: RunConfig, say: Say, folder: str = "", *, overwrite: bool = False, manifest: Manifest | None = None
) -> int:
    """Train and evaluate a run, or resume it, or report that it is complete.

    Args:
        config: the run.
        say: takes lines for the console.
        folder: of the run; "": the one of its name below the storage.
        overwrite: delete the existing run of this name, and begin again.
        manifest: with splits, for a run that begins; None: it is made from the images.

    Returns:
        The exit code: 0, or 130 and 143 after a signal.

    Raises:
        ConfigError: bad input; nothing has been trained or changed.
        PreflightError: the machines or the storage would make the run fail; nothing has been changed.
    """
    started = time.monotonic()
    config = resolve_weights_path(config)
    is_trial = bool(folder)
    folder = folder or storage.join(storage.absolute(config.storage), config.run_name)
    warnings = [*check_feasible(config), *destination_warnings(folder)]
    check_storage(config)
    check_tracking(config)
    start = inspect_run_folder(config, folder, say, overwrite=overwrite)
    if start.record is not None and start.is_complete:
        return reopen_complete_run(config, folder, start.record, say)
    for warning in warnings:
        say(f"warning: {warning}")
    config, choice = resolve_workers(config)
    if choice:
        say(choice)
    if not config.skip_checks:
        run_preflight(config, say)
    with GracefulShutdown() as stop:
        manifest = prepare(config, folder, start.record, manifest, say)
        if stop.received is not None:
            return stop.exit_code
        with run_lock(folder) as lease:
            record = begin_record(config, folder, start, manifest)
            record.seconds += time.monotonic() - started
            try:
                _ActiveRun(config, folder, manifest, record, stop, lease, say).train_and_evaluate(folds=not is_trial)
            finally:
                if not is_trial:
                    renew_index(storage.absolute(config.storage), config.run_name, say)
    return EXIT_OK if record.state is RecordState.COMPLETE else stop.exit_code


def prepare(config: RunConfig, folder: str, record: RunRecord | None, manifest: Manifest | None, say: Say) -> Manifest:
    """Make or read the manifest of a run, check all data that it needs, and describe them.

    Args:
        record: of the run that is resumed; None: it begins.
        manifest: with splits, for a run that begins; None: it is made from the images.

    Raises:
        ConfigError: data that cannot be used, or that differ from those of the run that is resumed.
    """
    if manifest is None or record is not None:
        manifest = run_manifest(config, folder, record.fingerprints["data"] if record else None, say)
    describe_data(manifest, folder, say)
    if warning := batch_warning(config, len(manifest.rows("train"))):
        say(f"warning: {warning}")
    for images in external_datasets(config, manifest, scan_progress()):
        count = format_count(len(images.rows), "image")
        say(f"{images.name}: {count} to test on, {'; '.join(images.notes) or 'all usable'}")
    return manifest


def begin_record(config: RunConfig, folder: str, start: RunStart, manifest: Manifest) -> RunRecord:
    """Write the record of a run that begins or is resumed, and its manifest. (holder of the lease)

    Args:
        config: the run.
        folder: of the run.
        start: how it begins.
        manifest: with splits.
    """
    if start.clears is not None:
        clear_folder(folder, start.clears)
    if start.grown:  # it is that of the shorter run; the checkpoints hold the history
        storage.delete_file(storage.join(folder, "history.json"))
    write_manifest(manifest, folder)
    previous = start.record
    record = RunRecord(
        name=config.run_name,
        settings=result_settings(config),
        config=to_record(config),
        fingerprints=previous.fingerprints if previous else run_fingerprints(config, manifest),
        versions=versions(),
        command=shlex.join(word for word in command_line() if word != "--overwrite"),
        seconds=previous.seconds if previous else 0.0,
        resolved=previous.resolved if previous else ResolvedSettings(),
    )
    record.write(folder)
    return record


@dataclasses.dataclass
class _ActiveRun:
    """A run that holds the lease of its folder, with the services that accompany it."""

    config: RunConfig
    folder: str
    manifest: Manifest
    record: RunRecord
    stop: GracefulShutdown
    lease: Lease
    say: Say

    def __post_init__(self) -> None:
        self.started = time.monotonic() - self.record.seconds
        self.services = contextlib.ExitStack()
        location = storage.join(self.folder, QUARANTINE_FILE)
        # the console exists before the first image is read
        self.quarantine = Quarantine(
            self.manifest, self.config.max_invalid_share, lambda text: self.console.say(text), location
        )

    def train_and_evaluate(self, *, folds: bool) -> None:
        """Train, test the trained models, and record how it ended.

        Args:
            folds: whether it trains its folds first, if it has some.

        Raises:
            RunError, ConfigError, OSError: the run failed; the record says so.
        """
        with show_activity(), self.services:  # the activity ends after what the console shows
            sizes = {split: len(self.manifest.rows(split)) for split in ("train", "validation", "test")}
            self.status = StatusWriter(self.folder, self.config, sizes, lambda: self.lease.is_lost)
            self.services.callback(self.status.close)
            tracker = Tracker(self.config, self.folder, self.record, lambda: self.lease.is_lost, self.say)
            self.services.callback(lambda: tracker.close(self.record.state))
            with self._record_end():
                if folds and self.config.folds:
                    train_folds(self.config, self.folder, self.manifest, self._train_fold, self.say)
                self._start_services(tracker)
                self._evaluate(self._train())

    def _train_fold(self, fold: Fold, say: Say) -> None:
        self.status.on_event(ActivityStarted(text=f"training fold {fold.number} of {self.config.folds}"))
        code = run(fold.config, say, fold.folder, manifest=fold.manifest)
        if code != EXIT_OK:
            self.stop.pass_on(code)
            raise StopRequested

    def _start_services(self, tracker: Tracker) -> None:
        """Connect to Ray; start metrics, hardware monitoring and the console."""
        config = self.config
        connect_for_training(config)
        self.services.callback(PrometheusExporter(config.run_name, self.status.now).close)
        self.hardware = HardwareMonitor(
            self.folder,
            node=node_address(),
            every_s=config.monitor_interval_s,
            send=lambda event: self.console.on_event(event),
            is_lost=lambda: self.lease.is_lost,
            context=RunContext.of(config),
        )
        self.services.callback(self.hardware.close)
        self.services.callback(self.quarantine.write)
        callbacks, num_classes = (self.status, tracker, self.hardware), len(self.manifest.class_names)
        self.console = ConsoleLogger(
            self.stop, self.lease, self.quarantine, callbacks, self.say, num_classes=num_classes
        )
        self.services.enter_context(autoscaling_request(config))

    def _train(self) -> TrainResult:
        context = build_training_context(self.config, self.folder, self.manifest, self.record.fingerprints)
        ends = deadline(self.config.time_budget_s, time.monotonic() - self.started)
        context = dataclasses.replace(context, monitor_interval_s=self.config.monitor_interval_s, deadline=ends)
        try:
            context = resolve_auto_settings(context, self.console, self.record)
            with self.console.explain_divergence():
                result = train_with_feature_cache(context, self.manifest, self.console, self.record)
        except StopRequested:
            self.quarantine.check()  # too many invalid images request a stop too
            raise
        self.quarantine.check()
        self.record.state, self.record.device = RecordState.TRAINED, result.device
        return result

    def _evaluate(self, result: TrainResult) -> None:
        if line := self.hardware.line():
            self.say(line)
        self.console.on_event(FinalEvaluationStarted())
        self.hardware.flush()
        self.record.seconds = time.monotonic() - self.started
        run_final_evaluation(
            self.config,
            self.folder,
            self.manifest,
            result,
            self.record,
            self.say,
            self.quarantine,
            stop_requested=self.console.should_stop,
        )
        self.record.state = RecordState.COMPLETE
        self.console.on_event(ActivityStarted(text="closing the records"))

    @contextlib.contextmanager
    def _record_end(self) -> Iterator[None]:
        """Record how the block ended; a requested stop is no error."""
        reason = ""
        try:
            yield
        except StopRequested:
            if self.record.state is RecordState.TRAINED:
                self.say("stopped on request; the model is trained and saved, the same command tests it")
            self.record.state = RecordState.INTERRUPTED
        except BaseException as error:
            self.record.state, reason = RecordState.FAILED, format_error(error)
            raise
        finally:
            self.record.seconds = time.monotonic() - self.started
            self.status.on_event(RunEnd(state=self.record.state, reason=reason))
            write_final_record(self.folder, self.record, self.lease)


def describe_data(manifest: Manifest, folder: str, say: Say) -> None:
    """Report notes and the numbers of usable and quarantined images; `folder`, if not empty, lists the latter."""
    for note in manifest.notes:
        say(f"note: {note}")
    counts = manifest.ok["split"].value_counts()
    parts = ", ".join(f"{counts.get(split, 0):,} {split}" for split in ("train", "validation", "test"))
    say(f"data: {format_count(len(manifest.ok), 'image')} of {len(manifest.class_names)} classes: {parts}")
    if note := imbalance_note(manifest.table.loc[manifest.rows("train"), "label"]):
        say(note)
    if len(manifest.quarantined):
        where = f", listed in {storage.join(folder, 'quarantine.csv')}" if folder else ""
        say(f"quarantined: {format_count(len(manifest.quarantined), 'image')}{where}")
