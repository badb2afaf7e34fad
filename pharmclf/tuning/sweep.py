"""Runs a sweep: images -> manifest -> feature cache -> trials -> winner -> test, tables and figures."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import ray

from pharmclf import storage
from pharmclf.config import RunConfig, refuse_auto, to_record
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_OK, ConfigError, RunError
from pharmclf.core.events import Event, Note
from pharmclf.core.signals import GracefulShutdown, StopRequested
from pharmclf.core.terminal import Result
from pharmclf.data.destination import destination_warnings
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import QUARANTINE_FILE, check_storage, write_manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.diagnostics.preflight import run_preflight
from pharmclf.distributed.cluster import connect, node_address
from pharmclf.models.devices import with_precision
from pharmclf.models.precision import run_precision
from pharmclf.monitoring import HardwareMonitor, RunContext
from pharmclf.pipeline import describe_data
from pharmclf.reporting.sweep_report import SweepReport
from pharmclf.reporting.trial_info import best_trial
from pharmclf.resume import run_manifest
from pharmclf.runs.record import (
    REPORT_FILE,
    RUN_FILE,
    check_settings,
    clear_folder,
    resolve_weights_path,
    result_settings,
    run_fingerprints,
    run_lock,
    versions,
    weights_fingerprint,
)
from pharmclf.runs.storage_index import renew_index
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, load_record
from pharmclf.storage.lease import Lease
from pharmclf.tracking import SweepTracker, check_tracking
from pharmclf.training.checkpoint import check_fingerprints
from pharmclf.training.feasible import batch_warning, check_feasible
from pharmclf.tuning.asha import default_grace, rungs
from pharmclf.tuning.best_trial import StopRequest, evaluate_winner
from pharmclf.tuning.options import SweepOptions, TrialResources
from pharmclf.tuning.precompute import max_blocks, precompute_features
from pharmclf.tuning.search import Search, SweepSpec
from pharmclf.tuning.space import Space, check_depths
from pharmclf.tuning.space_file import load_space
from pharmclf.tuning.sweep_results import TABLE_FILE, write_results, write_winner
from pharmclf.tuning.sweep_start import (
    SWEEP_FILE,
    check_backbone_depths,
    inspect_sweep_folder,
    plan_resources,
    reopen_complete_sweep,
    trial_config,
)
from pharmclf.tuning.trial import TrialContext
from pharmclf.tuning.trial_store import Trial, TrialStore
from pharmclf.tuning.tune_runner import TuneRunner

_FACTOR = 3  # the best third of the trials at a rung continues


class SweepError(RunError):
    """No trial has finished an epoch."""


def run_sweep(options: SweepOptions, base: RunConfig, space_file: Path, say: Say, *, overwrite: bool = False) -> int:
    """Run a sweep, or resume it, or report that it is complete.

    Args:
        base: the plain run, which is trial 0.
        overwrite: delete an existing sweep, with its trials, and begin again.

    Returns:
        The exit code: 0, or 130 and 143 after a signal.

    Raises:
        ConfigError: bad input; nothing has been trained or changed.
        PreflightError: the machines or the storage are in a state in which it would fail; nothing has been changed.
        StorageUnavailableError: the storage did not answer; the same command resumes.
        SweepError: every trial failed.
    """
    refuse_auto(base.microbatch, "a sweep")
    base = trial_config(resolve_weights_path(base), options)
    folder = storage.join(storage.absolute(base.storage), base.name)
    for warning in [*check_feasible(base), *destination_warnings(folder)]:
        say(f"warning: {warning}")
    check_storage(base)
    check_tracking(base, base.name)
    if storage.is_file(storage.join(folder, RUN_FILE)):
        raise ConfigError(f"--name {base.name}: {folder} holds a run, and a sweep needs another folder. Rename it")
    space = load_space(space_file, base)
    check_depths(space, base, max_blocks(base, space), str(space_file))
    search = Search(options.search, space, base.seed)
    total = int(min(options.trials, 1 + search.max_trials))
    settings = {"plain": result_settings(base), "space": space.to_dict(), "search": options.search}
    record, clears = inspect_sweep_folder(folder, say, overwrite=overwrite)
    if record is not None:
        check_settings(record["settings"], settings, f"sweep {folder}")
        there, now = record["fingerprints"].get("weights"), weights_fingerprint(base)
        check_fingerprints({"weights": there}, {"weights": now}, f"sweep {folder}")
        if record["state"] == "complete" and record["trials"] >= total:
            return reopen_complete_sweep(base, folder, record, say)
    if not base.skip_checks:
        run_preflight(base, say)
    with GracefulShutdown() as stop:
        known = record["fingerprints"]["data"] if record else None
        manifest = run_manifest(dataclasses.replace(base, num_workers="1"), folder, known, say)  # GPUs are for trials
        describe_data(manifest, folder, say)
        if warning := batch_warning(base, len(manifest.rows("train"))):
            say(f"warning: {warning}")
        prints = {name: value for name, value in run_fingerprints(base, manifest).items() if name != "settings"}
        if stop.received is not None:
            return stop.exit_code
        connect(allow_open=base.allow_unauthenticated_cluster)
        check_backbone_depths(space, base, str(space_file))
        room = plan_resources(options, base, space)
        with run_lock(folder) as lease:
            if clears:
                clear_folder(folder)
            write_manifest(manifest, folder)
            # as the sweep began: its trials are compared, and resume from checkpoints
            precision = (record or {}).get("precision") or run_precision(dataclasses.replace(base, num_workers="1"))
            record = {SCHEMA_KEY: SCHEMA_VERSION, "name": base.name}
            record |= {"settings": settings, "fingerprints": prints, "versions": versions()}
            record |= {"config": to_record(base), "options": dataclasses.asdict(options), "trials": total}
            record |= {"precision": precision, "state": "running"}
            work = _SweepRun(options, base, space, search, total, folder, manifest, record, room, say)
            return work.run(stop, lease)


@dataclasses.dataclass(frozen=True)
class _SweepRun:
    options: SweepOptions
    base: RunConfig
    space: Space
    search: Search
    total: int
    folder: str
    manifest: Manifest
    record: dict[str, Any]
    """Content of sweep.json."""
    room: TrialResources
    say: Say

    def run(self, stop: GracefulShutdown, lease: Lease) -> int:
        """Train the trials, then test the winner, and track both."""
        self._write()
        tracker = SweepTracker(self.base, self.folder, self.record, lambda: lease.is_lost, self.say)
        with contextlib.closing(self._hardware(lease)) as hardware:
            try:
                return self._run(stop, lease, tracker)
            finally:
                tracker.close(self.record)
                if line := hardware.line():
                    self.say(line)
                renew_index(storage.absolute(self.base.storage), self.base.name, self.say)

    def _hardware(self, lease: Lease) -> HardwareMonitor:
        """Watches the node of the sweep's driver; on one machine that is where all trials are."""

        def tell(event: Event) -> None:
            if isinstance(event, Note):
                self.say(event.text)

        return HardwareMonitor(
            self.folder,
            node=node_address(),
            every_s=self.base.monitor_interval_s,
            send=tell,
            is_lost=lambda: lease.is_lost,
            context=RunContext.of(self.base),
        )

    def _run(self, stop: GracefulShutdown, lease: Lease, tracker: SweepTracker) -> int:
        location = storage.join(self.folder, QUARANTINE_FILE)
        quarantine = Quarantine(self.manifest, self.base.max_invalid_share, self.say, location)

        def stop_requested() -> bool:
            return stop.received is not None or bool(lease.is_lost) or quarantine.exceeds_limit

        with contextlib.ExitStack() as behind:
            behind.callback(quarantine.write)
            try:
                return self._run_trials(stop_requested, tracker, quarantine)
            except StopRequested:
                if stop.received is None and not lease.is_lost:
                    self._write(state="interrupted")
                    quarantine.check()
                return self._mark_interrupted(stop, lease)

    def _run_trials(self, stop_requested: StopRequest, tracker: SweepTracker, quarantine: Quarantine) -> int:
        began = time.monotonic()
        base = with_precision(self.base, self.record["precision"])
        about = self.manifest, self.record["fingerprints"]
        kept = precompute_features(base, self.space, self.total, *about, self.say, stop_requested, quarantine.add)
        store, room = self._open_store(kept), self.room

        def ended(trial: Trial) -> None:
            tracker.on_trial_end(store.trial_info(trial), trial.folder)

        before = [trial for trial in store.trials.values() if trial.ended]
        for trial in before:
            ended(trial)
        if store.trials:
            self.say(f"resumed: {len(before)} trials have ended, {len(store.broken_off)} resume from their checkpoints")
        self.say(f"{self.total} trials, {room.concurrent} at a time ({room.reason})")
        reuse = self.options.reuse_workers
        conductor = TuneRunner(
            store, room, stop_requested, self.say, ended=ended, lost=quarantine.add, reuse_workers=reuse
        )
        conductor.run(self._trial_context(room))
        report = self._write_results(store)
        if store.fatal:
            raise storage.StorageUnavailableError(store.fatal)
        if stop_requested():
            raise StopRequested
        self.say(f"all trials have ended after {time.monotonic() - began:.0f} s")
        return self._finish(store, report, quarantine, stop_requested)

    def _open_store(self, kept: dict[str, list[int]]) -> TrialStore:
        epochs = self.base.phase1.epochs, self.base.phase2.epochs
        at = rungs(epochs, self.options.grace or default_grace(epochs), _FACTOR) if self.options.halving else []
        return TrialStore(
            SweepSpec(
                base=dataclasses.replace(self.base, price_per_hour=self.base.price_per_hour * self.room.share),
                space=self.space,
                search=self.search,
                total=self.total,
                folder=self.folder,
                fingerprints=self.record["fingerprints"],
                kept=kept,
                rungs=at,
                factor=_FACTOR,
                batch_heads=self.options.batch_heads and self.options.workers_per_trial == 1,
                precision=self.record["precision"],
            )
        )

    def _trial_context(self, room: TrialResources) -> TrialContext:
        cores = ray.cluster_resources().get("CPU", 1.0) / max(1, len(ray.nodes()))
        threads = max(1, int(cores / room.concurrent)) if room.concurrent > 1 else 0
        return TrialContext(manifest=self.manifest, share=room.share, threads=threads)

    def _write_results(self, store: TrialStore) -> SweepReport | None:
        """Write the table, the figures and the page of the trials so far; None: none has begun."""
        if not store.trial_infos():
            return None
        table, report = write_results(store, len(self.manifest.rows("validation")))
        self.say(Result(table))
        self.record.update(table=table, importances=dict(report.importances))
        return report

    def _finish(
        self, store: TrialStore, report: SweepReport | None, quarantine: Quarantine, stop_requested: StopRequest
    ) -> int:
        best = best_trial(report.trials) if report else None
        if report is None or best is None:
            self._write(state="failed")
            reasons = sorted({trial.reason for trial in store.trials.values() if trial.reason})
            raise SweepError(f"no trial has finished an epoch: {'; '.join(reasons[:3])}")
        self.say(f"the winner is trial {best.number}, chosen without the test images")
        folder, code, comparison = evaluate_winner(
            store, best.number, self.options, self.manifest, self.say, quarantine, stop_requested
        )
        if code != EXIT_OK:
            self._write(state="interrupted")
            return code
        result = load_record(storage.join(folder, "result.json"))
        write_winner(self.folder, report, best, folder, result, comparison)
        about = {"result": result, "comparison": comparison.to_dict() if comparison else None}
        self._write(state="complete", winner=best.number, winner_folder=folder, **about)
        written = f"{REPORT_FILE}, {TABLE_FILE} and its figures"
        self.say(Result(f"in {self.folder}: {written}; the model in {folder}/model"))
        return EXIT_OK

    def _mark_interrupted(self, stop: GracefulShutdown, lease: Lease) -> int:
        lease.check()
        self._write(state="interrupted")
        self.say("stopped on request; the same command resumes with the remaining trials")
        return stop.exit_code

    def _write(self, **more: Any) -> None:
        self.record.update(more)
        storage.write_json(storage.join(self.folder, SWEEP_FILE), self.record)
