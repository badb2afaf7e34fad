"""Writes index.html in a storage: all its runs and sweeps, renewed at the end of each.

index.json next to it holds the same entries. At the end of a run those that are complete are taken from it, so that the
time does not grow with the number of complete runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import format_error
from pharmclf.core.timeouts import FINAL_STORAGE_S, OPTIONAL_STORAGE_S, run_with_timeout
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting.index_page import IndexEntry, index_page
from pharmclf.runs.record import REPORT_FILE, RecordState
from pharmclf.runs.status import utc_timestamp
from pharmclf.runs.status_reader import SWEEP_FILE, RunStatus, list_status, read_in_threads, read_or_skip
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, load_record

INDEX_FILE = "index.html"
_ENTRIES_FILE = "index.json"


def write_index(location: str) -> str:
    """Read all runs and sweeps of a storage and write its index -> its location.

    Raises:
        ConfigError: no such storage, no right to read it, or no run in it.
        OSError: the storage does not answer, or may not be written.
    """
    location = storage.absolute(location)
    runs = list_status(location)
    return _write(location, read_in_threads(_read_entry, runs))


def renew_index(location: str, name: str, say: Say) -> None:
    """Renew the index at the end of a run or a sweep of this name; a failure is said, and has no other effect."""

    def renew() -> None:
        with storage.timeout(OPTIONAL_STORAGE_S):
            folders = storage.list_folders(location)
            known = {
                entry.name: entry
                for entry in _read_entries(location)
                if entry.state == RecordState.COMPLETE and entry.name != name and entry.name in folders
            }
            changed = [folder for folder in folders if folder not in known]
            runs = read_in_threads(functools.partial(read_or_skip, location), changed)
            _write(location, [*known.values(), *read_in_threads(_read_entry, runs)])

    try:
        run_with_timeout(FINAL_STORAGE_S, renew)
    except Exception as error:  # the run has ended already, and an index is no reason to fail
        say(f"note: {INDEX_FILE} is not renewed ({format_error(error)}); pharmclf status --html renews it")


def _read_entries(location: str) -> list[IndexEntry]:
    """The entries of the present index; [] where there is none, or it is of another version."""
    try:
        content = load_record(storage.join(location, _ENTRIES_FILE))
        return [IndexEntry.from_dict(values) for values in content["entries"]]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []


def _write(location: str, entries: list[IndexEntry]) -> str:
    content = {SCHEMA_KEY: SCHEMA_VERSION, "entries": [entry.to_dict() for entry in entries]}
    storage.write_json(storage.join(location, _ENTRIES_FILE), content)
    page = storage.join(location, INDEX_FILE)
    storage.write_bytes(page, index_page(location, entries, utc_timestamp()).encode())
    return page


def _read_entry(run: RunStatus) -> IndexEntry:
    report, size_bytes, has_report = storage.join(run.location, REPORT_FILE), 0, False
    for file in storage.list_files(run.location):
        size_bytes += file.size_bytes
        has_report = has_report or file.location == report
    result = _read_result(run)
    interval = result.get("test_accuracy_interval")
    return IndexEntry(
        name=run.name,
        kind=run.kind,
        state=run.state,
        reason=run.reason,
        trials=(run.sweep.num_ended, run.sweep.total) if run.sweep else None,
        test_accuracy=Estimate(result["test_accuracy"], *interval) if interval else None,
        test_images=result.get("test_images"),
        val_accuracy=run.status.best_val_accuracy if run.status else None,
        verdict=str(result.get("verdict", "")),
        size_bytes=size_bytes,
        has_report=has_report,
        changed_s=run.seen_s,
    )


def _read_result(run: RunStatus) -> Mapping[str, Any]:
    """The content of result.json of a complete run or of a sweep's winner; {} where there is none."""
    if run.state != RecordState.COMPLETE:
        return {}
    try:
        record = load_record(storage.join(run.location, SWEEP_FILE if run.kind == "sweep" else "result.json"))
        result: Mapping[str, Any] = record.get("result") or {} if run.kind == "sweep" else record
        return result
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}
