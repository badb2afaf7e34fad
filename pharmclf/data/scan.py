"""Reads every file of a data set once, on all cores: its hash and properties, or why it cannot be used."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.core.errors import error_reason
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.image_decoding import ImageInfo, InvalidImageError, read_image_info
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.monitoring.cores import usable_cores

NOT_READ = "not read"
"""Beginning of the status of a file that storage could not read; another attempt may succeed."""
ProgressCallback = Callable[[int, int], None]
"""Called with the number of files done and of all files."""
_MIN_FILES_FOR_PROCESSES = 500  # fewer files take less time than the start of processes
_CHUNK_FILES = 64
_REMOTE_THREADS = 8


@dataclass(frozen=True)
class ScanResult:
    """The result for one file."""

    status: str
    """"ok", or why the image cannot be used."""
    size_bytes: int = 0
    sha256: str = ""
    """Of the content, also of an unusable image; "" where it could not be read."""
    info: ImageInfo | None = None


def scan_file(location: str, white_level: int = MAX_VALUE) -> ScanResult:
    """Read, hash and describe one file.

    Raises:
        StorageUnavailableError: the storage does not answer, which says nothing about the file.
    """
    try:
        content = storage.read_bytes(location)
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        return ScanResult(f"{NOT_READ}: {error_reason(error, 80)}")
    digest = sha256_bytes(content)
    try:
        return ScanResult("ok", len(content), digest, read_image_info(content, location, white_level))
    except InvalidImageError as error:
        return ScanResult(str(error), len(content), digest)


def scan_files(
    locations: list[str], progress: ProgressCallback | None = None, white_level: int = MAX_VALUE
) -> Iterator[ScanResult]:
    """Scan files on all cores, in order: many files in processes, few in threads.

    Memory does not grow with the number of files.

    Args:
        white_level: as in `image_decoding.decode`.
    """
    if progress and locations:
        progress(0, len(locations))
    cores = usable_cores()
    many = len(locations) > _MIN_FILES_FOR_PROCESSES
    size = _CHUNK_FILES if many else 8
    chunks = [locations[start : start + size] for start in range(0, len(locations), size)]
    executor: Executor = ThreadPoolExecutor(cores)
    if many:
        spawn = multiprocessing.get_context("spawn")
        ignore = (signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
        executor = ProcessPoolExecutor(cores, spawn, initializer=signal.signal, initargs=ignore)
    try:
        done, waiting = 0, deque[Future[list[ScanResult]]]()
        for number in range(len(chunks) + 2 * cores):
            if number < len(chunks):
                with _hidden_main():
                    waiting.append(executor.submit(_scan_chunk, chunks[number], white_level))
            scans = waiting.popleft().result() if waiting and number >= 2 * cores else []
            yield from scans
            done += len(scans)
            if progress and scans:
                progress(done, len(locations))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the user's script from processes that start now: they would run it, and need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _scan_chunk(locations: list[str], white_level: int) -> list[ScanResult]:
    scan = functools.partial(scan_file, white_level=white_level)
    if not storage.is_remote(locations[0]):
        return list(map(scan, locations))
    with ThreadPoolExecutor(_REMOTE_THREADS) as threads:
        return list(threads.map(scan, locations))
