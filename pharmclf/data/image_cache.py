"""Decoded images on a node's local disk: the squares that training takes, so that large photos are decoded once.

An entry is a file, named after the sha256 of the image's file in the manifest, the size, the white level, the decoder
and the part of the image; all runs and processes of a node share them. `PHARMCLF_STORAGE_IMAGE_CACHE` names the folder,
and `PHARMCLF_STORAGE_IMAGE_CACHE_GB` the bound. The files are spread over 256 folders, each with its share of the
bound, so that a process that adds one looks at few others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import shutil
import statistics
import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pharmclf.core.errors import error_reason
from pharmclf.core.hashing import fingerprint
from pharmclf.core.units import format_size
from pharmclf.data.decoded_image import InvalidImageError, Pixels
from pharmclf.data.image_set import ImageSet
from pharmclf.storage.local_disk import cache_folder, cache_limit

_DECODERS = ("pillow", "pillow-heif", "simplejpeg")
_RULES = 1  # a new number for each change of the decoding or of the resizing
_FOLDERS = 256
_DISK_SHARE = 0.25  # of the disk, where no bound is given
_MIN_FREE_SHARE = 0.05  # of the disk, which stays free for others
_MIN_GAIN = 10.0  # of reading over decoding, below which `auto` saves the space
_SAMPLES = 9  # images that are measured
_DIGEST_BYTES = 32

_failures: dict[Path, str] = {}
"""Why this process no longer writes to a folder."""


@dataclass(frozen=True)
class ImageCache:
    """The entries of the node on which it is used."""

    folder: Path | None = None
    """None: from the environment."""
    limit_bytes: float | None = None
    """Bytes that it may hold; None: from the environment, or a quarter of the disk."""
    began: float = field(default_factory=time.time)
    """Entries that were used since are not evicted: the run that uses them would only have others decoded again."""

    def decode(self, files: ImageSet, place: int, image_size: int) -> Pixels:
        """As `ImageSet.decode`, from the entry if there is one, which is made otherwise.

        What the manifest names is returned also where the file has changed since, or is not there any more.
        """
        if not files.sha256[place].as_py():
            return files.decode(place, image_size)
        path = self._entry(files, place, image_size)
        pixels = _read(path, image_size)
        if pixels is None:
            pixels = files.decode(place, image_size)
            self._write(path, pixels)
        return pixels

    def measure(self, files: ImageSet, image_size: int) -> tuple[float, float]:
        """Median seconds of decoding some images, and of reading their entries from the disk; infinite without any."""
        decode_s, read_s = [], []
        for place in range(len(files)):
            with contextlib.suppress(InvalidImageError):
                began = time.perf_counter()
                files.decode(place, image_size)
                decode_s.append(time.perf_counter() - began)
                self.decode(files, place, image_size)  # there is an entry now
                path = self._entry(files, place, image_size)
                _forget(path)
                began = time.perf_counter()
                if _read(path, image_size) is not None:
                    read_s.append(time.perf_counter() - began)
        return statistics.median(decode_s or [0.0]), statistics.median(read_s or [math.inf])

    @property
    def location(self) -> Path:
        """The folder on this node."""
        return self.folder or cache_folder("PHARMCLF_STORAGE_IMAGE_CACHE", "images")

    @property
    def failure(self) -> str:
        """One line on why this process no longer writes entries; "": it does."""
        return _failures.get(self.location, "")

    def limit(self) -> float:
        """Bytes that it may hold on this node.

        Raises:
            ConfigError: the bound in the environment is not a number.
        """
        limit = self.limit_bytes or cache_limit("PHARMCLF_STORAGE_IMAGE_CACHE_GB")
        return limit or _DISK_SHARE * shutil.disk_usage(self.location).total

    def _entry(self, files: ImageSet, place: int, image_size: int) -> Path:
        sha256, white_level = str(files.sha256[place]), files.white_level[place]
        part = "" if (crop := files.crop(place)) is None else "-" + np.array(crop, np.float32).tobytes().hex()
        return self.location / sha256[:2] / f"{sha256}-{image_size}-{white_level}-{_decoder()}{part}"

    def _write(self, path: Path, pixels: Pixels) -> None:
        """Write an entry if there is room; after a failure this process leaves it."""
        if self.failure:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk = shutil.disk_usage(path.parent)
            if disk.free - pixels.nbytes < _MIN_FREE_SHARE * disk.total:
                raise OSError("the disk is nearly full")
            if not self._make_room(path.parent, pixels.nbytes + _DIGEST_BYTES):
                return
            temporary = path.with_name(f".{uuid.uuid4().hex}")
            try:
                with temporary.open("wb") as file:
                    file.write(_digest(path, pixels.reshape(-1)))
                    file.write(pixels.data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            reason = error_reason(error, 80)
            _failures[self.location] = f"image cache: nothing more is written to {self.location}: {reason}"

    def _make_room(self, folder: Path, size: int) -> bool:
        """Evict what was used longest ago -> whether an entry of this size fits into a folder."""
        entries = []
        with os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # another process has moved or evicted it since
                    entries.append((file.stat().st_mtime, file.stat().st_size, file.path))
        entries.sort()
        room = self.limit() / _FOLDERS - sum(entry[1] for entry in entries)
        for used, entry_size, path in entries:
            if room >= size or used >= self.began:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            room += entry_size
        return room >= size


@functools.cache
def _decoder() -> str:
    """A name for what decides the pixels of a file."""
    return fingerprint([_RULES, *map(version, _DECODERS)])[:12]


def _digest(path: Path, pixels: NDArray[np.uint8]) -> bytes:
    """The sha256 of an entry and its name, so that neither can be of another image."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(pixels.data)
    return digest.digest()


def _read(path: Path, image_size: int) -> Pixels | None:
    """The pixels of an entry, and a mark of its use; None where there is none, or a damaged one."""
    try:
        with path.open("rb") as file:
            content = np.frombuffer(file.read(), np.uint8)
            with contextlib.suppress(OSError):  # of another user: it may be read, but not marked
                os.utime(file.fileno())
    except OSError:
        return None
    digest, pixels = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if len(pixels) != image_size * image_size * 3 or digest.tobytes() != _digest(path, pixels):
        return None
    return pixels.reshape(image_size, image_size, 3)


def _forget(path: Path) -> None:
    """Drop a file from the memory of the system, so that it is read from the disk as in a later epoch."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def choose_image_cache(
    setting: str, images: ImageSet, rows: NDArray[np.int64], image_size: int
) -> tuple[ImageCache | None, str]:
    """Decide whether a run keeps its decoded images.

    Args:
        setting: `image_cache` of the configuration.
        images: of every row of the manifest.
        rows: (n,) that are streamed.
        image_size: S, side in pixels.

    Returns:
        The cache, or None; and one line on the decision.

    Raises:
        ConfigError: the bound in the environment is not a number.
    """
    cache = ImageCache()
    if setting == "off":
        return None, ""
    decode_s, read_s = cache.measure(images.select(rows[:: -(-len(rows) // _SAMPLES)]), image_size)
    if cache.failure:
        return None, f"{cache.failure}; the run decodes its images in every epoch"
    size = format_size(len(rows) * image_size * image_size * 3)
    where = f"up to {size} in {cache.location}, of at most {format_size(cache.limit())}"
    if setting == "on":
        return cache, f"image cache: on, {where}"
    costs = f"decoding takes {decode_s * 1e3:.1f} ms an image, reading a decoded one {read_s * 1e3:.1f} ms"
    if decode_s < _MIN_GAIN * read_s:
        return None, f"image cache: off, {costs}"
    return cache, f"image cache: on, {costs}; {where}"
