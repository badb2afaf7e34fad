"""The files of some images, with what the manifest says of them: whoever decodes files is given this."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import WHITE
from pharmclf.data.plan import PADDING


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The files of n images; of a manifest, one entry per row."""

    paths: pa.Array
    """(n,) text: location of each file; "" stands for a black image, as padding is."""
    sha256: pa.Array
    """(n,) text: of each file's content when the manifest was made; "" where it is not known."""
    white_level: int = WHITE
    """The value that is white in files of 16 bits per channel."""

    @staticmethod
    def of(manifest: Manifest) -> ImageSet:
        """The files of a manifest, row by row."""
        paths, sums = (pa.array(manifest.table[name].tolist(), pa.string()) for name in ("path", "sha256"))
        return ImageSet(paths, sums, manifest.white_level)

    @staticmethod
    def of_paths(paths: pa.Array | Iterable[str], white_level: int = WHITE) -> ImageSet:
        """Files of which nothing but the location is known."""
        paths = paths if isinstance(paths, pa.Array) else pa.array(paths, pa.string())
        return ImageSet(paths, pa.array([""] * len(paths), pa.string()), white_level)

    @staticmethod
    def join(sets: Sequence[ImageSet]) -> ImageSet:
        """The images of some sets of one white level, one set after the other.

        Raises:
            ValueError: their white levels differ.
        """
        [white_level] = {images.white_level for images in sets}
        paths, sums = ([getattr(images, name) for images in sets] for name in ("paths", "sha256"))
        return ImageSet(pa.concat_arrays(paths), pa.concat_arrays(sums), white_level)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: ArrayLike) -> ImageSet:
        """The images of some rows, (m,) integers; `PADDING` gives a black image."""
        wanted = np.asarray(rows, np.int64)
        places = pa.array(wanted, mask=wanted == PADDING)
        return ImageSet(self.paths.take(places).fill_null(""), self.sha256.take(places).fill_null(""), self.white_level)

    def slice(self, first: int, count: int) -> ImageSet:
        """The `count` images from place `first` on, or as many as there are."""
        return replace(self, paths=self.paths.slice(first, count), sha256=self.sha256.slice(first, count))
