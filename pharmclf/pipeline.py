"""A whole run: images -> manifest -> splits -> training -> predictions -> metrics -> report."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import tempfile
import time

from pharmclf import storage
from pharmclf.cli import EXIT_FAILED, EXIT_OK, scan_progress
from pharmclf.config import RunConfig, to_dict
from pharmclf.console import ConsoleLogger
from pharmclf.core.console import Say
from pharmclf.core.errors import format_error
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_size
from pharmclf.data.class_balance import imbalance_note
from pharmclf.data.destination import destination_warnings
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE, check_storage, split_manifest, write_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.diagnostics.preflight import run_preflight
from pharmclf.distributed.cluster import node_address
from pharmclf.distributed.controller import autoscaling_request, connect
from pharmclf.evaluation.datasets import external_datasets
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.models.devices import configure_devices
from pharmclf.monitoring import HardwareMonitor, RunContext
from pharmclf.resume import inspect_run_folder, reopen_complete_run, run_manifest
from pharmclf.runs.final_evaluation import run_final_evaluation
from pharmclf.runs.prometheus import PrometheusExporter
from pharmclf.runs.record import (
    RUN_FILE,
    clear_folder,
    finalize_record,
    resolve_weights_path,
    result_settings,
    run_fingerprints,
    run_lock,
    versions,
)
from pharmclf.runs.status_writer import StatusWriter
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION
from pharmclf.tracking import Tracker, check_tracking
from pharmclf.training.feasible import batch_warning, check_feasible
from pharmclf.training_run import (
    build_training_context,
    feature_request,
    resolve_auto_settings,
    train_with_feature_cache,
)

# of a record, see `resolve_auto_settings` and `train_with_feature_cache`
_RESOLVED_FIELDS = ("precision", "microbatch", "activations")


def run(
    config: RunConfig, say: Say, folder: str = "", *, overwrite: bool = False, manifest: Manifest | None = None
) -> int:
    """Do a whole run, or resume it, or say that it is complete.

    Args:
        config: the run.
        say: takes lines for the console.
        folder: of the run; "": the one of its name below the storage.
        overwrite: delete the run that is there, and begin again.
        manifest: with splits, for a run that begins; None: it is made from the images.

    Returns:
        The exit code: 0, or 130 and 143 after a signal.

    Raises:
        ConfigError: bad input; nothing has been trained or changed.
        PreflightError: the machines or the storage are in a state in which it would fail; nothing has been changed.
    """
    began = time.monotonic()
    config = resolve_weights_path(config)
    folder = folder or storage.join(storage.absolute(config.storage), config.run_name)
    warnings = [*check_feasible(config), *destination_warnings(folder)]
    check_storage(config)
    check_tracking(config)
    start, settings = inspect_run_folder(config, folder, say, overwrite=overwrite), result_settings(config)
    record = start.record
    if record is not None and start.is_complete:
        return reopen_complete_run(config, folder, record, say)
    for warning in warnings:
        say(f"warning: {warning}")
    if not config.skip_checks:
        run_preflight(config, say)
    with GracefulShutdown() as stop:
        if manifest is None or record is not None:
            manifest = run_manifest(config, folder, record, say)
        for note in manifest.notes:
            say(f"note: {note}")
        describe_data(manifest, folder, say)
        if warning := batch_warning(config, len(manifest.rows("train"))):
            say(f"warning: {warning}")
        expected = record["fingerprints"] if record else run_fingerprints(config, manifest)
        for images in external_datasets(config, manifest, scan_progress(say)):
            say(f"{images.name}: {len(images.rows):,} images to test on, {'; '.join(images.notes) or 'all usable'}")
        if stop.received is not None:
            return stop.exit_code
        with run_lock(folder) as lease:
            if start.clears is not None:
                clear_folder(folder, start.clears)
            if start.grown:  # of the shorter run; the checkpoints know more from now on
                storage.delete_file(storage.join(folder, "history.json"))
            write_manifest(manifest, folder)
            # what was decided when the run began goes for its restarts too, or it would take other steps
            decided = {name: record[name] for name in _RESOLVED_FIELDS if name in record} if record else {}
            before, earlier = record["seconds"] if record else 0.0, decided.get("activations")
            record = {SCHEMA_KEY: SCHEMA_VERSION} | decided
            record |= {"name": config.run_name, "settings": settings, "config": to_dict(config)}
            record |= {
                "fingerprints": expected,
                "versions": versions(),
                "command": shlex.join(sys.argv),
                "state": "running",
                "seconds": before,
            }
            storage.write_json(storage.join(folder, RUN_FILE), record)
            with contextlib.ExitStack() as behind:
                sizes = {split: len(manifest.rows(split)) for split in ("train", "validation", "test")}
                board = StatusWriter(folder, config, sizes, lambda: lease.is_lost)
                behind.callback(board.close)
                tracker = Tracker(config, folder, record, lambda: lease.is_lost, say)
                behind.callback(lambda: tracker.close(str(record["state"])))
                reason = ""
                try:
                    connect(allow_open=config.allow_open_cluster)
                    behind.callback(PrometheusExporter(config.run_name, board.now).close)
                    hardware = HardwareMonitor(
                        folder,
                        node=node_address(),
                        every_s=config.hardware_every_s,
                        tell=lambda kind, **values: console.event(kind, **values),
                        lost=lambda: lease.is_lost,
                        setting=RunContext(
                            remote_data=storage.is_remote(config.data), wants_gpus=config.accelerator != "cpu"
                        ),
                    )
                    behind.callback(hardware.close)
                    location = storage.join(folder, QUARANTINE_FILE)
                    quarantine = Quarantine(manifest, config.max_bad_share, lambda text: console.say(text), location)
                    behind.callback(quarantine.write)
                    num_classes, listeners = len(manifest.class_names), (board, tracker, hardware)
                    console = ConsoleLogger(stop, lease, quarantine, listeners, say, num_classes=num_classes)
                    job = build_training_context(config, folder, manifest, expected)
                    job = dataclasses.replace(job, hardware_every_s=config.hardware_every_s)
                    behind.enter_context(autoscaling_request(config))
                    try:
                        job = resolve_auto_settings(job, console, record)
                        with console.explain_divergence():
                            outcome = train_with_feature_cache(job, manifest, console, record, earlier)
                    except StopRequested:
                        quarantine.check()  # too many bad images request a stop too
                        raise
                    quarantine.check()
                    record["state"] = "trained"
                    if line := hardware.line():
                        say(line)
                    console.event("test")
                    hardware.flush()
                    record["device"] = outcome["device"]
                    so_far = record | {"seconds": before + time.monotonic() - began}
                    stopped = console.should_stop
                    run_final_evaluation(
                        config, folder, manifest, outcome, so_far, say, quarantine, stop_requested=stopped
                    )
                    record["state"] = "complete"
                except StopRequested:
                    if record["state"] == "trained":
                        say("stopped on request; the model is trained and saved, the same command tests it")
                    record["state"] = "interrupted"
                except BaseException as error:
                    record["state"], reason = "failed", format_error(error)
                    raise
                finally:
                    record["seconds"] = before + time.monotonic() - began
                    board.event("end", state=record["state"], reason=reason)
                    finalize_record(folder, record, lease)
    return EXIT_OK if record["state"] == "complete" else stop.exit_code


def precompute_features(config: RunConfig, folder: str, manifest: Manifest, say: Say) -> int:
    """Compute the activations that a run of this configuration could train on, ahead of it.

    Returns:
        The exit code: 0; 1 where they cannot be kept; 130 and 143 after a signal, and what is computed by then stays.

    Raises:
        ConfigError: bad input.
    """
    config = dataclasses.replace(resolve_weights_path(config), activations="always")
    with GracefulShutdown() as stop:
        connect(allow_open=config.allow_open_cluster)
        quarantine = Quarantine(manifest, config.max_bad_share, say, storage.join(folder, QUARANTINE_FILE))

        def stopped() -> bool:
            return stop.received is not None or quarantine.exceeds_limit

        job = build_training_context(config, folder, manifest)
        try:
            found = get_or_compute(feature_request(job, manifest, 0, say, stopped, quarantine.add))
        except StopRequested:
            quarantine.check()
            return stop.exit_code
    for name, kept in found.items():
        say(f"{name}: {kept.location}, {format_size(kept.layout.num_bytes)}")
    return EXIT_OK if found else EXIT_FAILED


def dry_run(config: RunConfig, say: Say) -> int:
    """Say what a run would train, on which data, and end; nothing is kept.

    Raises:
        ConfigError: bad input.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        manifest = split_manifest(config, folder, scan_progress(say))
    with suppress_native_stderr():
        from pharmclf.models.model_summary import describe_model

        configure_devices(deterministic=False, gpus=False)
        say(describe_model(config, len(manifest.class_names)))
    describe_data(manifest, "", say)
    return EXIT_OK


def describe_data(manifest: Manifest, folder: str, say: Say) -> None:
    """Say how many images there are, and how many cannot be used; `folder` holds their list, if given."""
    counts = manifest.ok["split"].value_counts()
    parts = ", ".join(f"{counts.get(split, 0):,} {split}" for split in ("train", "validation", "test"))
    say(f"data: {len(manifest.ok):,} images of {len(manifest.class_names)} classes: {parts}")
    if note := imbalance_note(manifest.table.loc[manifest.rows("train"), "label"]):
        say(note)
    if len(manifest.quarantined):
        where = f", listed in {storage.join(folder, 'quarantine.csv')}" if folder else ""
        say(f"quarantined: {len(manifest.quarantined):,} images{where}")
