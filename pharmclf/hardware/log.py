"""The rows of a run's nodes in its folder: `hardware/<node>.jsonl`, one row a line, and `hardware/warnings.json`.

Lines of JSON are read by anything, also by eye, and hold as many GPUs as a node has. Storage knows whole writes alone,
so a file is written anew each time, and stays small for it: from `MAX_ROWS` on two rows become one (see `readings`),
again and again. The file of days says less of each minute; peaks, sums and means stay what they were.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence

from pharmclf import storage
from pharmclf.hardware.readings import Row, merge_rows
from pharmclf.hardware.watch import Finding

FOLDER = "hardware"
WARNINGS_FILE = "hardware/warnings.json"
MAX_ROWS = 720
"""An hour of readings every five seconds, and as many points as a curve can show."""
_SUFFIX = ".jsonl"
_JITTER = 1.2  # readings come nearly, not quite, as far apart as they should
_PAUSE = 3.0  # a row that begins so many lengths behind the one before it came after a pause


class NodeLog:
    """The rows of one node, never more than `MAX_ROWS`."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Begin with the rows of earlier processes."""
        self._rows = list(rows)
        self._length_s = 0.0  # up to which rows are made one
        self._thin()

    @property
    def rows(self) -> list[Row]:
        """The rows, the oldest first."""
        return list(self._rows)

    @property
    def seconds(self) -> float:
        """That all rows stand for."""
        return sum(row.seconds for row in self._rows)

    def append(self, row: Row) -> None:
        """Add a reading."""
        last = self._rows[-1:]
        if last and last[0].seconds + row.seconds <= self._length_s and _belong(last[0], row):
            self._rows[-1] = merge_rows(last[0], row)
        else:
            self._rows.append(row)
            self._thin()

    def _thin(self) -> None:
        """Make one of two, the shortest first; over a pause or between two phases only where no others are left."""
        while len(self._rows) > MAX_ROWS:
            pairs = list(zip(self._rows, self._rows[1:], strict=False))
            fitting = [pair for pair in pairs if _belong(*pair)]
            shortest_s = min(one.seconds + other.seconds for one, other in fitting or pairs)
            self._length_s = max(self._length_s, _JITTER * shortest_s)
            self._rows = _joined(self._rows, self._length_s, strictly=bool(fitting))


def _joined(rows: Sequence[Row], length_s: float, *, strictly: bool) -> list[Row]:
    """Neighbours made one, as long as both together are not longer than this."""
    found: list[Row] = []
    place = 0
    while place < len(rows):
        pair = rows[place : place + 2]
        fits = len(pair) == 2 and pair[0].seconds + pair[1].seconds <= length_s
        fits = fits and (not strictly or _belong(*pair))
        found.append(merge_rows(*pair) if fits else pair[0])
        place += 2 if fits else 1
    return found


def _belong(one: Row, other: Row) -> bool:
    """Whether two rows are of one phase, without a pause between them."""
    return one.phase == other.phase and not paused(one, other)


def paused(one: Row, other: Row) -> bool:
    """Whether nothing was read for a while between two rows."""
    gap_s = other.at_s - other.seconds - one.at_s
    return gap_s > _PAUSE * min(one.seconds, other.seconds)


def file_of(folder: str, node: str) -> str:
    """Location of a node's rows."""
    return storage.join(folder, FOLDER, re.sub(r"[^A-Za-z0-9._-]", "_", node) + _SUFFIX)


def write_rows(folder: str, node: str, rows: Iterable[Row]) -> None:
    """Write the rows of a node, whole or not at all.

    Args:
        folder: of the run.
        node: its address.
        rows: all of them.

    Raises:
        OSError: the storage does not take them.
    """
    lines = [json.dumps(row.to_dict(), separators=(",", ":"), allow_nan=False) for row in rows]
    storage.write_bytes(file_of(folder, node), ("\n".join(lines) + "\n").encode())


def read_rows(folder: str, node: str | None = None) -> list[Row]:
    """The rows of a run, or of one node of it: by node, the oldest first; none where nothing was written.

    Args:
        folder: of the run.
        node: address of a node; None: all.

    Raises:
        OSError: the storage does not answer.
    """
    if node is not None:
        locations = [file_of(folder, node)]
    else:
        locations = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = storage.list_files(storage.join(folder, FOLDER))
            locations = [entry.location for entry in files if entry.location.endswith(_SUFFIX)]
    rows: list[Row] = []
    for location in locations:
        with contextlib.suppress(FileNotFoundError):
            rows += _parsed(storage.read_bytes(location))
    return rows


def _parsed(content: bytes) -> list[Row]:
    """The rows of a file; lines that are none are left out."""
    rows = []
    for line in content.decode(errors="replace").splitlines():
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            rows.append(Row.from_dict(json.loads(line)))
    return rows


def write_warnings(folder: str, findings: Iterable[Finding]) -> None:
    """Write the warnings of a run, the oldest first.

    Raises:
        OSError: the storage does not take them.
    """
    storage.write_json(storage.join(folder, WARNINGS_FILE), [found.to_dict() for found in findings])


def read_warnings(folder: str) -> list[Finding]:
    """The warnings of a run; none where nothing was written.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        content = storage.read_json(storage.join(folder, WARNINGS_FILE))
        return [Finding.from_dict(found) for found in content]
    except (FileNotFoundError, LookupError, TypeError, ValueError):
        return []
