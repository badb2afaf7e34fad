"""The rows of a run's nodes in its folder: `hardware/<node>.jsonl`, one row a line, and `hardware/warnings.json`.

Lines of JSON are read by anything, also by eye, and hold as many GPUs as a node has. Storage knows whole writes alone,
so a file is written anew each time, and stays small for it: from `MAX_ROWS` on two rows become one (see `samples`),
again and again. The file of days says less of each minute; peaks, sums and means stay what they were.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence

from pharmclf import storage
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.samples import NodeSample, merge_samples

FOLDER = "hardware"
WARNINGS_FILE = "hardware/warnings.json"
MAX_ROWS = 720
"""An hour of readings every five seconds, and as many points as a curve can show."""
_SUFFIX = ".jsonl"
_JITTER = 1.2  # readings come nearly, not quite, as far apart as they should
_PAUSE = 3.0  # a row that begins so many lengths behind the one before it came after a pause


class SampleLog:
    """The rows of one node, never more than `MAX_ROWS`."""

    def __init__(self, rows: Iterable[NodeSample] = ()) -> None:
        """Begin with the rows of earlier processes."""
        self._rows = list(rows)
        self._length_s = 0.0  # up to which rows are made one
        self._downsample()

    @property
    def rows(self) -> list[NodeSample]:
        """The rows, the oldest first."""
        return list(self._rows)

    @property
    def seconds(self) -> float:
        """That all rows stand for."""
        return sum(row.seconds for row in self._rows)

    def append(self, row: NodeSample) -> None:
        """Add a reading."""
        last = self._rows[-1:]
        if last and last[0].seconds + row.seconds <= self._length_s and _same_interval(last[0], row):
            self._rows[-1] = merge_samples(last[0], row)
        else:
            self._rows.append(row)
            self._downsample()

    def _downsample(self) -> None:
        """Make one of two, the shortest first; over a pause or between two phases only where no others are left."""
        while len(self._rows) > MAX_ROWS:
            pairs = list(zip(self._rows, self._rows[1:], strict=False))
            fitting = [pair for pair in pairs if _same_interval(*pair)]
            shortest_s = min(one.seconds + other.seconds for one, other in fitting or pairs)
            self._length_s = max(self._length_s, _JITTER * shortest_s)
            self._rows = _merge_neighbours(self._rows, self._length_s, strictly=bool(fitting))


def _merge_neighbours(rows: Sequence[NodeSample], length_s: float, *, strictly: bool) -> list[NodeSample]:
    """Neighbours made one, as long as both together are not longer than this."""
    found: list[NodeSample] = []
    place = 0
    while place < len(rows):
        pair = rows[place : place + 2]
        fits = len(pair) == 2 and pair[0].seconds + pair[1].seconds <= length_s
        fits = fits and (not strictly or _same_interval(*pair))
        found.append(merge_samples(*pair) if fits else pair[0])
        place += 2 if fits else 1
    return found


def _same_interval(one: NodeSample, other: NodeSample) -> bool:
    """Whether two rows are of one phase, without a pause between them."""
    return one.phase == other.phase and not has_pause(one, other)


def has_pause(one: NodeSample, other: NodeSample) -> bool:
    """Whether nothing was read for a while between two rows."""
    gap_s = other.at_s - other.seconds - one.at_s
    return gap_s > _PAUSE * min(one.seconds, other.seconds)


def samples_file(folder: str, node: str) -> str:
    """Location of a node's rows."""
    return storage.join(folder, FOLDER, re.sub(r"[^A-Za-z0-9._-]", "_", node) + _SUFFIX)


def write_samples(folder: str, node: str, rows: Iterable[NodeSample]) -> None:
    """Write the rows of a node, whole or not at all.

    Args:
        folder: of the run.
        node: its address.
        rows: all of them.

    Raises:
        OSError: the storage does not take them.
    """
    lines = [json.dumps(row.to_dict(), separators=(",", ":"), allow_nan=False) for row in rows]
    storage.write_bytes(samples_file(folder, node), ("\n".join(lines) + "\n").encode())


def read_samples(folder: str, node: str | None = None) -> list[NodeSample]:
    """The rows of a run, or of one node of it: by node, the oldest first; none where nothing was written.

    Args:
        folder: of the run.
        node: address of a node; None: all.

    Raises:
        OSError: the storage does not answer.
    """
    if node is not None:
        locations = [samples_file(folder, node)]
    else:
        locations = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = storage.list_files(storage.join(folder, FOLDER))
            locations = [entry.location for entry in files if entry.location.endswith(_SUFFIX)]
    rows: list[NodeSample] = []
    for location in locations:
        with contextlib.suppress(FileNotFoundError):
            rows += _parse_rows(storage.read_bytes(location))
    return rows


def _parse_rows(content: bytes) -> list[NodeSample]:
    """The rows of a file; lines that are none are left out."""
    rows = []
    for line in content.decode(errors="replace").splitlines():
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            rows.append(NodeSample.from_dict(json.loads(line)))
    return rows


def write_alerts(folder: str, findings: Iterable[HardwareAlert]) -> None:
    """Write the warnings of a run, the oldest first.

    Raises:
        OSError: the storage does not take them.
    """
    storage.write_json(storage.join(folder, WARNINGS_FILE), [found.to_dict() for found in findings])


def read_alerts(folder: str) -> list[HardwareAlert]:
    """The warnings of a run; none where nothing was written.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        content = storage.read_json(storage.join(folder, WARNINGS_FILE))
        return [HardwareAlert.from_dict(found) for found in content]
    except (FileNotFoundError, LookupError, TypeError, ValueError):
        return []
