"""Quarantines images during a run whose files have changed since the manifest was made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.events import Event, ImagesQuarantined
from pharmclf.core.timeouts import OPTIONAL_STORAGE_S
from pharmclf.core.units import format_count, format_examples
from pharmclf.data.manifest import Manifest

OnLost = Callable[[Mapping[int, str]], None]
"""Called with rows of the manifest whose files differ from it, and the reasons."""
_MAX_NAMED = 5  # reported one by one; the others are counted
_WRITE_INTERVAL_S = 10.0  # between two writes of the list


class Quarantine:
    """Collects such images from all decoders, reports each once, and decides whether there are too many.

    Images that the manifest has quarantined count too. Thread-safe.
    """

    def __init__(self, manifest: Manifest, max_invalid_share: float, say: Say, location: str = "") -> None:
        """Start without further quarantined images.

        Args:
            max_invalid_share: largest share of quarantined images among all, 0..1.
            location: of the list of quarantined images, as CSV; "": none is written.
        """
        self._manifest, self._share, self._say, self._location = manifest, max_invalid_share, say, location
        self._lock = threading.Lock()
        self._lost: dict[int, str] = {}
        self._reported = 0
        self._written_at = -_WRITE_INTERVAL_S

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        if isinstance(event, ImagesQuarantined):
            self.add(event.reasons)

    def add(self, reasons: Mapping[int, str]) -> None:
        """Quarantine rows of the manifest; those that are quarantined already are ignored."""
        with self._lock:
            new = {row: reason for row, reason in reasons.items() if row not in self._lost}
            if not new:
                return
            named = dict(list(new.items())[: max(0, _MAX_NAMED - len(self._lost))])
            self._lost |= new
            due = time.monotonic() - self._written_at >= _WRITE_INTERVAL_S
        for row, reason in named.items():
            self._say(f"warning: quarantined: {self._manifest.table['path'][row]}: {reason}")
        with self._lock:
            self._reported += len(named)
        if due:
            self.write()

    def write(self) -> None:
        """Write the list, and report the number of further images."""
        with self._lock:
            self._written_at, count = time.monotonic(), len(self._lost)
            more, self._reported = count - self._reported, count
        if not count:
            return
        where = ""
        if self._location:
            try:  # the run does not wait for the list
                with storage.timeout(OPTIONAL_STORAGE_S):
                    self.manifest.write_quarantine(self._location)
                where = f", listed in {self._location}"
            except OSError as error:
                self._say(f"warning: {self._location} cannot be written: {error}")
        if more:
            self._say(f"warning: quarantined: {format_count(more, 'more image')}{where}")

    @property
    def rows(self) -> frozenset[int]:
        """Rows of the manifest that were quarantined during the run."""
        with self._lock:
            return frozenset(self._lost)

    @property
    def manifest(self) -> Manifest:
        """The manifest with these images quarantined; splits and classes stay."""
        with self._lock:
            return self._manifest.with_status(self._lost)

    @property
    def exceeds_limit(self) -> bool:
        """Whether more images are quarantined than allowed."""
        with self._lock:
            bad = len(self._manifest.quarantined) + len(self._lost)
            return bool(self._lost) and bad > self._share * len(self._manifest.table)

    def check(self) -> None:
        """Raise where too many images are quarantined.

        Raises:
            ConfigError: more than `max_invalid_share` of the images are quarantined; the message names some.
        """
        if not self.exceeds_limit:
            return
        self.write()
        with self._lock:
            lost = dict(self._lost)
        total, bad = len(self._manifest.table), len(self._manifest.quarantined) + len(lost)
        first = _format_rows(self._manifest, lost)
        where = f", the full list is in {self._location}" if self._location else ""
        raise ConfigError(
            f"{bad:,} of {total:,} images are bad ({bad / total:.1%}), expected at most {self._share:.1%}; "
            f"{len(lost):,} of them have changed since the data set was listed: {first}{where}. "
            "Restore them, or accept more with --max-invalid, and give the same command again"
        )


def quarantine_note(manifest: Manifest, rows: Mapping[int, str]) -> str:
    """A note on images that are left out of a set: their number, and the names of some.

    Args:
        manifest: of the set.
        rows: row and reason of each image; one or more.
    """
    first = _format_rows(manifest, rows)
    return f"left out, since the file changed after the set was listed: {format_count(len(rows), 'image')} ({first})"


def _format_rows(manifest: Manifest, rows: Mapping[int, str]) -> str:
    paths = manifest.table["path"]
    return format_examples([f"{paths[row]}: {reason}" for row, reason in rows.items()], _MAX_NAMED, "; ")
