"""The files of some images, with what the manifest says of them: whoever decodes files is given this."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from pharmclf.data.manifest import Manifest
from pharmclf.data.plan import PADDING


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The files of n images; of a manifest, one entry per row."""

    paths: pa.Array
    """(n,) text: location of each file; "" stands for a black image, as padding is."""
    sha256: pa.Array
    """(n,) text: of each file's content when the manifest was made; "" where it is not known."""

    @staticmethod
    def of(manifest: Manifest) -> ImageSet:
        """The files of a manifest, row by row."""
        columns = (manifest.table[name].tolist() for name in ("path", "sha256"))
        return ImageSet(*(pa.array(column, pa.string()) for column in columns))

    @staticmethod
    def of_paths(paths: pa.Array | Iterable[str]) -> ImageSet:
        """Files of which nothing but the location is known."""
        paths = paths if isinstance(paths, pa.Array) else pa.array(paths, pa.string())
        return ImageSet(paths, pa.array([""] * len(paths), pa.string()))

    @staticmethod
    def join(sets: Sequence[ImageSet]) -> ImageSet:
        """The images of some sets, one set after the other."""
        return ImageSet(
            pa.concat_arrays([images.paths for images in sets]), pa.concat_arrays([images.sha256 for images in sets])
        )

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: ArrayLike) -> ImageSet:
        """The images of some rows, (m,) integers; `PADDING` gives a black image."""
        wanted = np.asarray(rows, np.int64)
        places = pa.array(wanted, mask=wanted == PADDING)
        return ImageSet(self.paths.take(places).fill_null(""), self.sha256.take(places).fill_null(""))

    def slice(self, first: int, count: int) -> ImageSet:
        """The `count` images from place `first` on, or as many as there are."""
        return ImageSet(self.paths.slice(first, count), self.sha256.slice(first, count))
