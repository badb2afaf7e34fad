"""The labelled sets that a model is tested on: the splits of the run's data, and sets from other sources."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_count
from pharmclf.data.folder_layouts import LayoutOptions, label_key
from pharmclf.data.image_set import ImageSet
from pharmclf.data.leakage import find_leaked_images
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.data.prepare import cached_manifest, manifest_cache
from pharmclf.data.quarantine import quarantine_note
from pharmclf.data.scan import ProgressCallback
from pharmclf.evaluation.label_alignment import align_labels


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalDataset:
    """Labelled images that a model is scored on."""

    name: str
    """Of the split, or of the entry in `eval_data`; also the folder below evaluation/."""
    source: str
    """Location of the images."""
    manifest: Manifest
    rows: np.ndarray
    """(n,) int64 rows of the manifest that are scored."""
    notes: tuple[str, ...] = ()
    """Remarks for readers of the scores, one line each."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """Row -> reason, of rows left out because their files differ from the manifest."""

    def without(self, reasons: Sequence[str]) -> EvalDataset:
        """The set without unusable images.

        Args:
            reasons: n texts, why the image cannot be used; "" where it can.

        Raises:
            ConfigError: none is left.
        """
        lost = {int(row): reason for row, reason in zip(self.rows, reasons, strict=True) if reason}
        if not lost:
            return self
        note = quarantine_note(self.manifest, lost)
        if len(lost) == len(self.rows):
            raise ConfigError(f"{self.name}: no image is left to test on: {note}. Restore the files")
        rows = self.rows[[not reason for reason in reasons]]
        return replace(self, rows=rows, notes=(*self.notes, note), lost={**self.lost, **lost})

    def with_crops(self, crops: NDArray[np.float32]) -> EvalDataset:
        """The set with the part of each of its n images that was looked at, (n, 3) as `ImageSet.crops`."""
        if np.isnan(crops).all():
            return self
        every = np.full((len(self.manifest.table), 3), np.nan, np.float32)
        every[self.rows] = crops
        return replace(self, manifest=replace(self.manifest, crops=every))

    @property
    def files(self) -> ImageSet:
        """The n files."""
        return ImageSet.of(self.manifest).select(self.rows)

    @property
    def paths(self) -> list[str]:
        """Locations of the n images."""
        return [str(path) for path in self.manifest.table["path"].loc[self.rows]]

    @property
    def labels(self) -> list[str]:
        """True classes of the n images."""
        return [str(label) for label in self.manifest.table["label"].loc[self.rows]]

    @property
    def groups(self) -> np.ndarray:
        """(n,) numbers; images of one group are near duplicates."""
        return self.manifest.table["group"].loc[self.rows].to_numpy()


def split_dataset(manifest: Manifest, split: str, source: str) -> EvalDataset:
    """A split of a data set."""
    return EvalDataset(name=split, source=source, manifest=manifest, rows=manifest.rows(split))


def external_dataset(
    name: str,
    location: str,
    class_names: Sequence[str],
    *,
    cache: str,
    max_invalid_share: float = 1.0,
    known: Manifest | None = None,
    white_level: int = MAX_VALUE,
    progress: ProgressCallback | None = None,
) -> EvalDataset:
    """Load a set from another source; images that the model was trained on are left out.

    Args:
        location: folder, s3:// prefix or list, as `RunConfig.data`.
        class_names: the model's classes; images of others cannot be scored, and are named in a note.
        cache: folder or prefix that keeps manifests.
        max_invalid_share: largest share of images that cannot be read, 0..1.
        known: the data set of the model with its splits; None: unknown.
        white_level: that the model was trained with; it replaces a lower one of the set unless it is the default.

    Raises:
        ConfigError: no image to score.
    """
    with _named(name):
        reading = LayoutOptions(keep_splits=False, results=storage.parent(cache), classes=tuple(class_names))
        manifest, lost = _read_manifest(location, cache, max_invalid_share, reading, white_level, progress)
        match = align_labels(Counter(manifest.ok["label"].tolist()), class_names)
    usable = manifest.ok[manifest.ok["label"].isin(set(class_names))]
    rows = usable.index.to_numpy(np.int64)
    notes = [*manifest.notes, *match.notes(), *lost]
    if known is not None:
        seen = np.intersect1d(find_leaked_images(manifest, known, ("train", "validation")), rows)
        if len(seen):
            notes.append(f"left out, as the model was trained on copies of them: {format_count(len(seen), 'image')}")
            rows = np.setdiff1d(rows, seen)
    if not len(rows):
        raise ConfigError(f"{name}: {location}: no image is left to test on ({'; '.join(notes)}). Give other images")
    return EvalDataset(name=name, source=location, manifest=manifest, rows=rows, notes=tuple(notes))


def unknown_dataset(
    name: str,
    location: str,
    class_names: Sequence[str],
    *,
    cache: str,
    max_invalid_share: float = 1.0,
    white_level: int = MAX_VALUE,
) -> EvalDataset:
    """Load images of products that a model does not know, in a folder for each product or in none.

    Args:
        class_names: the model's classes; their images are left out.
        location, cache, max_invalid_share, white_level: as `external_dataset`.

    Raises:
        ConfigError: no image of another product.
    """
    with _named(name):
        reading = LayoutOptions(keep_splits=False, results=storage.parent(cache), loose_label=name)
        manifest, lost = _read_manifest(location, cache, max_invalid_share, reading, white_level)
    known = manifest.ok["label"].map(label_key).isin(set(map(label_key, class_names)))
    rows, notes = manifest.ok.index[~known].to_numpy(np.int64), [*manifest.notes, *lost]
    if known.any():
        notes.append(f"left out, as the model knows their products: {format_count(int(known.sum()), 'image')}")
    if not len(rows):
        raise ConfigError(
            f"{name}: {location}: no image of an unknown product is left ({'; '.join(notes)}). Give other images"
        )
    return EvalDataset(name=name, source=location, manifest=manifest, rows=rows, notes=tuple(notes))


def unknown_datasets(config: RunConfig, manifest: Manifest) -> list[EvalDataset]:
    """Load the sets of `unknown`.

    Raises:
        ConfigError: one of them has no image of an unknown product.
    """
    return [
        unknown_dataset(
            name,
            location,
            manifest.class_names,
            cache=manifest_cache(config.storage),
            max_invalid_share=config.max_invalid_share,
            white_level=manifest.white_level,
        )
        for name, location in config.unknown_locations.items()
    ]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the set in an error of the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {str(error).removeprefix('--data ')}") from error


def _read_manifest(
    location: str,
    cache: str,
    max_invalid_share: float,
    reading: LayoutOptions,
    white_level: int,
    progress: ProgressCallback | None = None,
) -> tuple[Manifest, list[str]]:
    """The images of a set, and a note of those that cannot be read, if there are any."""
    manifest = cached_manifest(
        location, cache, max_invalid_share=max_invalid_share, progress=progress, min_classes=1, reading=reading
    )
    if manifest.white_level <= white_level < MAX_VALUE:
        manifest = replace(manifest, white_level=white_level)
    bad = len(manifest.quarantined)
    return manifest, [f"left out, because they cannot be read: {format_count(bad, 'image')}"] if bad else []


def external_datasets(
    config: RunConfig, manifest: Manifest, progress: ProgressCallback | None = None
) -> list[EvalDataset]:
    """Load the sets of `eval_data`.

    Raises:
        ConfigError: one of them has no image to score.
    """
    return [
        external_dataset(
            name,
            location,
            manifest.class_names,
            cache=manifest_cache(config.storage),
            max_invalid_share=config.max_invalid_share,
            known=manifest,
            white_level=manifest.white_level,
            progress=progress,
        )
        for name, location in config.eval_locations.items()
    ]
