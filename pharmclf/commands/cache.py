"""List the feature caches of a storage, and delete those that are no longer needed.

pharmclf cache                                 a table of those of runs/, the last used first
pharmclf cache --storage s3://bucket/prefix    of a bucket
pharmclf cache --delete-older-than 30d         delete what no run has used for 30 days
pharmclf cache --delete-down-to 20GB           delete the least recently used, until 20 GB are left

A cache that is being computed is never deleted. A deleted cache is computed again when a run needs it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.commands.parser import OptionsParser
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_size, parse_duration, parse_size


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the caches are, and which are deleted."""

    storage: str = "runs"
    """Folder or s3:// prefix that holds the runs."""
    delete_older_than: str = ""
    """Delete what was not used for so long: a number with d, h, min or s, as 30d. Empty: nothing for its age."""
    delete_down_to: str = ""
    """Delete the least recently used until so much is left: a number with TB, GB, MB or kB, as 20GB. Empty: none."""


PARSER = OptionsParser("cache", __doc__, Options, shows_progress=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, list the caches, delete those selected -> the exit code."""
    options = PARSER.parse(arguments)
    age, size = options.delete_older_than, options.delete_down_to
    older_than_s = parse_duration(age, "--delete-older-than") if age else None
    down_to_bytes = parse_size(size, "--delete-down-to") if size else None
    from pharmclf.feature_cache.inventory import delete_entries, entries_table, list_entries, select_for_eviction

    location = storage.absolute(options.storage)
    with storage.errors_as_config_errors(location):
        if not storage.exists(location):
            raise ConfigError(
                f"--storage {location}: nothing there. Give the {storage.place_word(location)} of the runs"
            )
        kept = list_entries(location)
        for entry in select_for_eviction(kept, time.time(), older_than_s, down_to_bytes):
            deleted, skipped = delete_entries([entry])  # one by one, so that each is reported when it is deleted
            for gone in deleted:
                print(f"deleted: {gone.key}, {format_size(gone.size_bytes)}", flush=True)
                kept.remove(gone)
            for reason in skipped:
                print(f"left: {reason}", flush=True)
    print(entries_table(kept, time.time()) if kept else f"no feature cache in {location}")
    return 0
