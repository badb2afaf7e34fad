"""TensorBoard's event files: their records, and files that grow on disk or are replaced whole in an object store.

The messages are those of tensorboardX, which comes with Ray Tune. Its writer is not used: that would start a process's
queue and a thread for each file, and knows no object store of ours.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pharmclf import storage

_SIZE_AT = slice(16, 24)  # of a PNG: width and height


class EventRecords:
    """The records of one event file, in order."""

    def __init__(self, began_s: float) -> None:
        """Begin with the record that every event file begins with.

        Args:
            began_s: seconds since 1970.
        """
        self.content = bytearray()
        """What the file holds."""
        self._add(0, began_s, file_version="brain.Event:2")

    def restart(self, step: int, at_s: float) -> None:
        """Earlier files of the run do not count from this step on: what follows stands in their place."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._add(step, at_s, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int, at_s: float) -> None:
        """Scalars by their tags."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, at_s, summary=Summary(value=scalars))

    def text(self, tag: str, markdown: str, step: int, at_s: float) -> None:
        """A text."""
        from tensorboardX import summary

        self._add(step, at_s, summary=summary.text(tag, markdown))

    def image(self, tag: str, png: bytes, step: int, at_s: float) -> None:
        """A picture, as it is."""
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[_SIZE_AT])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step, at_s, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def hyperparameters(self, values: Mapping[str, Any], at_s: float) -> None:
        """Settings for the table of hyperparameters; it finds its numbers among the scalars."""
        from tensorboardX import summary

        plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}
        _, start, end = summary.hparams(plain, {})
        self._add(0, at_s, summary=start)
        self._add(0, at_s, summary=end)

    def charts(self, tags: Mapping[str, Sequence[str]], at_s: float) -> None:
        """Charts of several curves each, by their titles."""
        from tensorboardX import summary

        layout = {"Curves": {title: ["Multiline", list(names)] for title, names in tags.items()}}
        self._add(0, at_s, summary=summary.custom_scalars(layout))

    def _add(self, step: int, at_s: float, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        record = Event(step=step, wall_time=at_s, **what).SerializeToString()
        size = struct.pack("<Q", len(record))
        self.content += size + struct.pack("<I", masked_crc32c(size))
        self.content += record + struct.pack("<I", masked_crc32c(record))


class EventFile:
    """The file that some events are kept in while more of them come."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._kept = 0  # bytes

    def write(self, content: bytes | bytearray) -> None:
        """Bring the file up to date.

        On disk it grows: TensorBoard reads on in the file that it has opened, and would not see one that took its
        place. In an object store, where nothing can grow, it is replaced whole, and TensorBoard asks for what is new.

        Args:
            content: all of it, beginning with what has been kept before.

        Raises:
            OSError: the storage does not answer, or the disk is full; the next call makes it whole.
        """
        if len(content) == self._kept:
            return
        if storage.is_remote(self.location):
            storage.write_bytes(self.location, bytes(content))
        else:
            path = Path(storage.absolute(self.location))
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = self._kept if path.is_file() else 0  # somebody may have cleared the folder
            with path.open("r+b" if begun else "wb") as file:
                file.truncate(begun)  # of the part of a record that a full disk took
                file.seek(begun)
                file.write(content[begun:])
                file.flush()
                os.fsync(file.fileno())
        self._kept = len(content)
