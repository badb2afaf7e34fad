"""A bounded cache of remote shards on each node's local disk, which evicts the least recently used.

`PHARMCLF_STORAGE_CACHE` names its folder, `PHARMCLF_STORAGE_CACHE_GB` its bound. All processes of a node share it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pharmclf import storage
from pharmclf.feature_cache.shards import FeatureCacheUnavailableError
from pharmclf.storage.local_disk import cache_folder, cache_limit

T = TypeVar("T")
_FREE_SHARE = 0.5  # of the free space, where no bound is given


class LocalCache:
    """Copies of remote files. The last part of a file's location is its name here, and must identify its content."""

    def __init__(self, folder: Path | None = None, limit_bytes: float | None = None) -> None:
        """Open the cache.

        Args:
            folder: on local disk; None: from the environment.
            limit_bytes: bytes that it may hold; None: from the environment, or half of the free space.

        Raises:
            ConfigError: the bound in the environment is not a number.
        """
        self.folder = folder or default_folder()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock("room"):  # no copy comes or goes while they are counted
            self.limit_bytes = _limit_bytes(self.folder) if limit_bytes is None else limit_bytes

    def open(self, location: str, opener: Callable[[Path], T]) -> T:
        """Open the local copy of a file, which is fetched if needed, and not evicted before `opener` has returned.

        A file that is open by then stays readable after its eviction.

        Raises:
            OSError: the file cannot be read.
            FeatureCacheUnavailableError: the disk is full.
        """
        path = self._copy_path(location)
        with self._lock(f"{sum(path.name.encode()) % 64}"):  # of two processes that need a file, one fetches it
            with self._lock("room", fcntl.LOCK_SH):
                if path.exists():
                    os.utime(path)
                    return opener(path)
            temporary = path.with_suffix(".part")
            try:
                storage.download(location, temporary)
                with self._lock("room"):
                    self._make_room(temporary.stat().st_size)
                    temporary.replace(path)
                    return opener(path)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise FeatureCacheUnavailableError(
                    f"{self.folder} is full; PHARMCLF_STORAGE_CACHE may name another folder"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)

    def evict(self, location: str) -> None:
        """Delete the copy of a file."""
        with self._lock("room"):
            self._copy_path(location).unlink(missing_ok=True)

    def _copy_path(self, location: str) -> Path:
        return self.folder / location.rsplit("/", 1)[-1]

    def _make_room(self, size: int) -> None:
        """Evict the least recently used files until a file of this size fits; a larger one is stored nevertheless."""
        files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.npy"))
        total = sum(file_size for _, file_size, _ in files)
        for _, file_size, path in files:
            if total + size <= self.limit_bytes:
                return
            path.unlink()
            total -= file_size

    @contextlib.contextmanager
    def _lock(self, name: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        with (self.folder / f".lock-{name}").open("ab") as lock:
            fcntl.flock(lock, kind)
            yield


def default_folder() -> Path:
    """The folder that the environment names, else one for this user among the temporary files."""
    return cache_folder("PHARMCLF_STORAGE_CACHE", "activations")


def _limit_bytes(folder: Path) -> float:
    if (limit := cache_limit("PHARMCLF_STORAGE_CACHE_GB")) is not None:
        return limit
    cached = sum(path.stat().st_size for path in folder.glob("*.npy"))
    return _FREE_SHARE * (shutil.disk_usage(folder).free + cached)
