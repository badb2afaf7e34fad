"""TensorBoard event files: their records, and files that are appended to on disk or replaced in an object store.

The messages are those of tensorboardX, which Ray Tune installs. Its writer is not used: it starts a queue and a thread
per file, and does not know our object stores.
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
        """Add the record that every event file begins with; `began_s`: seconds since 1970."""
        self.content = bytearray()
        self._add(0, began_s, file_version="brain.Event:2")

    def restart(self, step: int, at_s: float) -> None:
        """Make TensorBoard ignore earlier files of the run from this step on."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._add(step, at_s, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int, at_s: float) -> None:
        """Add scalars by their tags."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, at_s, summary=Summary(value=scalars))

    def text(self, tag: str, markdown: str, step: int, at_s: float) -> None:
        """Add a text."""
        from tensorboardX import summary

        self._add(step, at_s, summary=summary.text(tag, markdown))

    def image(self, tag: str, png: bytes, step: int, at_s: float) -> None:
        """Add an image; its bytes are not decoded."""
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[_SIZE_AT])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step, at_s, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def hyperparameters(self, values: Mapping[str, Any], at_s: float) -> None:
        """Add settings for the table of hyperparameters, which finds its metrics among the scalars."""
        from tensorboardX import summary

        plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}
        _, start, end = summary.hparams(plain, {})
        self._add(0, at_s, summary=start)
        self._add(0, at_s, summary=end)

    def charts(self, tags: Mapping[str, Sequence[str]], at_s: float) -> None:
        """Add charts of several curves each, by their titles."""
        from tensorboardX import summary

        layout = {"Curves": {title: ["Multiline", list(names)] for title, names in tags.items()}}
        self._add(0, at_s, summary=summary.custom_scalars(layout))

    def _add(self, step: int, at_s: float, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        record = Event(step=step, wall_time=at_s, **fields).SerializeToString()
        size = struct.pack("<Q", len(record))
        self.content += size + struct.pack("<I", masked_crc32c(size))
        self.content += record + struct.pack("<I", masked_crc32c(record))


class EventFile:
    """A file whose content grows."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._written = 0  # bytes

    def write(self, content: bytes | bytearray) -> None:
        """Bring the file up to date; the content is all of it, and begins with that of the previous call.

        On disk it is appended to: TensorBoard keeps the file open, and would not see a replacement. In an object store
        it is replaced, and TensorBoard requests only the new part.

        Raises:
            OSError: the storage does not answer, or the disk is full; the next call repairs the file.
        """
        if len(content) == self._written:
            return
        if storage.is_remote(self.location):
            storage.write_bytes(self.location, bytes(content))
        else:
            path = Path(storage.absolute(self.location))
            path.parent.mkdir(parents=True, exist_ok=True)
            begin = self._written if path.is_file() else 0  # the folder may have been cleared
            with path.open("r+b" if begin else "wb") as file:
                file.truncate(begin)  # removes the partial record that a full disk left
                file.seek(begin)
                file.write(content[begin:])
                file.flush()
                os.fsync(file.fileno())
        self._written = len(content)
