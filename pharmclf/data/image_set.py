"""The files of some images, with the properties from the manifest that decoding needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pharmclf import storage
from pharmclf.core.errors import error_reason
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.batch_sampler import PADDING
from pharmclf.data.decoded_image import Crop, InvalidImageError, Pixels
from pharmclf.data.image_decoding import decode
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import MAX_VALUE

T = TypeVar("T")
_REMOTE_READS = 16  # concurrent reads from an object store
CHANGED = "changed since the data set was listed"
"""Why a file whose content differs from the manifest is not used."""


def read_verified(location: str, sha256: str) -> bytes:
    """Read a file, and check that its content is the one of the manifest.

    Args:
        sha256: of its content in the manifest; "": unknown.

    Raises:
        InvalidImageError: it has changed, is missing, or cannot be read.
        PermissionError, StorageUnavailableError: the storage cannot be read, which says nothing about the file.
    """
    try:
        content = storage.read_bytes(location)
    except (PermissionError, storage.StorageUnavailableError):
        raise
    except FileNotFoundError as error:
        raise InvalidImageError("not there") from error
    except OSError as error:
        raise InvalidImageError(f"not read: {error_reason(error, 80)}") from error
    if sha256 and sha256_bytes(content) != sha256:
        raise InvalidImageError(CHANGED)
    return content


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The files of n images; of a manifest, one entry per row."""

    paths: pa.Array
    """(n,) text: location of each file; "": a black image, as for padding."""
    sha256: pa.Array
    """(n,) text: of each file's content in the manifest; "": unknown."""
    white_level: pa.Array
    """(n,) integers: the white value of each file, if it has 16 bits per channel."""
    crops: NDArray[np.float32] | None = None
    """(n, 3) left, top and side of each `Crop` that is decoded; not a number: the whole image. None: all whole."""

    @staticmethod
    def of(manifest: Manifest) -> ImageSet:
        """The files of a manifest, row by row."""
        return replace(ImageSet.of_rows(manifest.table, manifest.white_level), crops=manifest.crops)

    @staticmethod
    def of_rows(table: pd.DataFrame, white_level: int) -> ImageSet:
        """The files of some rows of a manifest's table, in their order, with the manifest's white level."""
        paths, sums = (pa.array(table[name].tolist(), pa.string()) for name in ("path", "sha256"))
        return ImageSet(paths, sums, pa.repeat(white_level, len(paths)))

    @staticmethod
    def of_paths(paths: pa.Array | Iterable[str], white_level: int = MAX_VALUE) -> ImageSet:
        """Files of which only the location is known."""
        paths = paths if isinstance(paths, pa.Array) else pa.array(paths, pa.string())
        return ImageSet(paths, pa.array([""] * len(paths), pa.string()), pa.repeat(white_level, len(paths)))

    @staticmethod
    def join(sets: Sequence[ImageSet]) -> ImageSet:
        """Concatenate sets."""
        columns = ("paths", "sha256", "white_level")
        joined = ImageSet(*(pa.concat_arrays([getattr(images, name) for images in sets]) for name in columns))
        if all(images.crops is None for images in sets):
            return joined
        return replace(joined, crops=np.concatenate([images.crops_or_whole for images in sets]))

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: ArrayLike) -> Self:
        """The images of some rows, (m,) integers; `PADDING` gives a black image."""
        wanted = np.asarray(rows, np.int64)
        places = pa.array(wanted, mask=wanted == PADDING)
        columns = ((self.paths, ""), (self.sha256, ""), (self.white_level, MAX_VALUE))
        chosen = type(self)(*(column.take(places).fill_null(absent) for column, absent in columns))
        return chosen if self.crops is None else replace(chosen, crops=self.crops[wanted])

    @property
    def is_remote(self) -> bool:
        """Whether any file is in an object store."""
        return any(map(storage.is_remote, self.paths.to_pylist()))

    def map(self, read: Callable[[int], T]) -> list[T]:
        """Call a function that reads a file with every index, in threads where files are in an object store."""
        if not self.is_remote:
            return list(map(read, range(len(self))))
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            return list(pool.map(read, range(len(self))))

    def content(self, place: int) -> bytes:
        """Read a file as `read_verified` does."""
        return read_verified(self.paths[place].as_py(), self.sha256[place].as_py())

    def decode(self, place: int, image_size: int) -> Pixels:
        """Read and decode a file: (image_size, image_size, 3) uint8."""
        return decode(self.content(place), image_size, self.white_level[place].as_py(), self.crop(place))

    def crop(self, place: int) -> Crop | None:
        """The part of an image that is decoded; None: all of it."""
        if self.crops is None or np.isnan(self.crops[place, 0]):
            return None
        return Crop(*self.crops[place].tolist())

    @property
    def crops_or_whole(self) -> NDArray[np.float32]:
        """As `crops`, also where it is None."""
        return np.full((len(self), 3), np.nan, np.float32) if self.crops is None else self.crops

    def slice(self, first: int, count: int) -> ImageSet:
        """The `count` images from index `first` on, or fewer at the end."""
        columns = (self.paths, self.sha256, self.white_level)
        crops = None if self.crops is None else self.crops[first : first + count]
        return replace(ImageSet(*(column.slice(first, count) for column in columns)), crops=crops)
