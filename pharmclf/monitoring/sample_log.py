"""Samples and alerts in the folder of a run: `hardware/<node>.jsonl`, one sample a line, and `hardware/warnings.json`.

Storage has no appends, so each write is of a complete file. To keep it small, neighbouring samples are merged (see
`samples`) once there are more than `MAX_SAMPLES`; sums, peaks and means stay the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence

from pharmclf import storage
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.samples import NodeSample, merge_samples

FOLDER = "hardware"
WARNINGS_FILE = "hardware/warnings.json"
MAX_SAMPLES = 720
"""An hour of samples every five seconds, and as many points as a curve can show."""
_SUFFIX = ".jsonl"
_JITTER = 1.2  # samples are nearly, not exactly, the same interval apart
_PAUSE = 3.0  # a sample that begins so many lengths after the one before it follows a pause


class SampleLog:
    """The samples of one node, at most `MAX_SAMPLES`, the oldest first."""

    def __init__(self, samples: Iterable[NodeSample] = ()) -> None:
        """Start with the samples of earlier processes."""
        self._samples = list(samples)
        self._length_s = 0.0  # up to which samples are merged
        self._downsample()

    @property
    def samples(self) -> list[NodeSample]:
        """A copy."""
        return list(self._samples)

    @property
    def seconds(self) -> float:
        """Time that all samples cover."""
        return sum(sample.seconds for sample in self._samples)

    def append(self, sample: NodeSample) -> None:
        """Add a sample."""
        last = self._samples[-1] if self._samples else None
        if last and last.seconds + sample.seconds <= self._length_s and _same_interval(last, sample):
            self._samples[-1] = merge_samples(last, sample)
        else:
            self._samples.append(sample)
            self._downsample()

    def _downsample(self) -> None:
        """Merge pairs, the shortest first; over a pause or between two phases only where there are no others."""
        while len(self._samples) > MAX_SAMPLES:
            pairs = list(itertools.pairwise(self._samples))
            within = [pair for pair in pairs if _same_interval(*pair)]
            shortest_s = min(one.seconds + other.seconds for one, other in within or pairs)
            self._length_s = max(self._length_s, _JITTER * shortest_s)
            self._samples = _merge_neighbours(self._samples, self._length_s, over_gaps=not within)


def _merge_neighbours(samples: Sequence[NodeSample], length_s: float, *, over_gaps: bool) -> list[NodeSample]:
    """Merge each two neighbours that together are not longer than this."""
    merged: list[NodeSample] = []
    position = 0
    while position < len(samples):
        pair = samples[position : position + 2]
        fits = len(pair) == 2 and pair[0].seconds + pair[1].seconds <= length_s
        fits = fits and (over_gaps or _same_interval(*pair))
        merged.append(merge_samples(*pair) if fits else pair[0])
        position += 2 if fits else 1
    return merged


def _same_interval(one: NodeSample, other: NodeSample) -> bool:
    """Whether two samples are of one phase, without a pause between them."""
    return one.phase == other.phase and not has_pause(one, other)


def has_pause(one: NodeSample, other: NodeSample) -> bool:
    """Whether nothing was sampled for a while between two samples."""
    gap_s = other.at_s - other.seconds - one.at_s
    return gap_s > _PAUSE * min(one.seconds, other.seconds)


def write_samples(folder: str, node: str, samples: Iterable[NodeSample]) -> None:
    """Write all samples of the node with this address atomically.

    Raises:
        OSError: the storage does not accept them.
    """
    lines = [json.dumps(sample.to_dict(), separators=(",", ":"), allow_nan=False) for sample in samples]
    storage.write_bytes(_samples_file(folder, node), ("\n".join(lines) + "\n").encode())


def read_samples(folder: str, node: str | None = None) -> list[NodeSample]:
    """Samples of a run, or of its node with this address, the oldest first; none where nothing was written.

    Raises:
        OSError: the storage does not answer.
    """
    locations = [] if node is None else [_samples_file(folder, node)]
    if node is None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = storage.list_files(storage.join(folder, FOLDER))
            locations = [entry.location for entry in files if entry.location.endswith(_SUFFIX)]
    samples: list[NodeSample] = []
    for location in locations:
        with contextlib.suppress(FileNotFoundError):
            samples += _parse_samples(storage.read_bytes(location))
    return samples


def write_alerts(folder: str, alerts: Iterable[HardwareAlert]) -> None:
    """Write the alerts of a run, the oldest first.

    Raises:
        OSError: the storage does not accept them.
    """
    storage.write_json(storage.join(folder, WARNINGS_FILE), [alert.to_dict() for alert in alerts])


def read_alerts(folder: str) -> list[HardwareAlert]:
    """Alerts of a run; none where nothing was written.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        content = storage.read_json(storage.join(folder, WARNINGS_FILE))
        return [HardwareAlert.from_dict(alert) for alert in content]
    except (FileNotFoundError, LookupError, TypeError, ValueError):
        return []


def _samples_file(folder: str, node: str) -> str:
    return storage.join(folder, FOLDER, re.sub(r"[^A-Za-z0-9._-]", "_", node) + _SUFFIX)


def _parse_samples(content: bytes) -> list[NodeSample]:
    """Samples of a file; other lines are skipped."""
    samples = []
    for line in content.decode(errors="replace").splitlines():
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            samples.append(NodeSample.from_dict(json.loads(line)))
    return samples
