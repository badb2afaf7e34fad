"""From a configuration to a manifest with splits: draw the demo if it is asked for, scan once, split, write."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pharmclf import storage
from pharmclf.config import DEMO, RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_examples
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.destination import check_destination
from pharmclf.data.folder_layouts import DEFAULT_LAYOUT_OPTIONS, LayoutOptions
from pharmclf.data.manifest import Manifest, check_invalid_share, scan_listing
from pharmclf.data.scan import NOT_READ
from pharmclf.data.splits import SPLITS, TRAIN, rare_classes, split_rows

MANIFEST_FILE = "manifest.parquet"
QUARANTINE_FILE = "quarantine.csv"
_MAX_CLASS_LINES, _RAREST = 30, 20  # up to so many classes a terminal lists all; of more, these few


def prepare_manifest(config: RunConfig, folder: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Make the manifest of a run, with splits, and write it and the list of quarantined images to a folder.

    Args:
        config: its data, storage, max_bad, seed, split and demo decide the result.
        folder: where `manifest.parquet` and `quarantine.csv` go; local or a URI.
        progress: called with (files done, files) while images are scanned.

    Raises:
        ConfigError: the data set cannot be used; the message says why.
    """
    manifest = split_manifest(config, folder, progress)
    write_manifest(manifest, folder)
    return manifest


def write_manifest(manifest: Manifest, folder: str) -> None:
    """Write a manifest and the list of its quarantined images to a folder."""
    manifest.write(storage.join(folder, MANIFEST_FILE))
    manifest.write_quarantine(storage.join(folder, QUARANTINE_FILE))


def check_storage(config: RunConfig) -> None:
    """See whether the storage of a run can be reached, and lasts, before anything is done.

    Raises:
        ConfigError: no such bucket, no right to it, or a folder that is deleted with the job.
        StorageUnavailableError: it does not answer.
    """
    if config.data != DEMO:  # whose results nobody misses
        check_destination("--storage", storage.absolute(config.storage))
    with storage_errors_as_config_errors(config.storage):
        storage.list_folders(storage.absolute(config.storage))


@contextlib.contextmanager
def storage_errors_as_config_errors(location: str) -> Iterator[None]:
    """Within, a storage that is not there or not ours to read is bad input."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"--storage {location}: {error}") from error


def split_manifest(config: RunConfig, folder: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Make the manifest of a run, with splits; only where there are too many bad images is their list written.

    Args and Raises: as `prepare_manifest`.
    """
    check_storage(config)
    manifest = cached_manifest(
        data_location(config),
        manifest_cache(config.storage),
        max_bad_share=config.max_bad_share,
        progress=progress,
        quarantine=storage.join(folder, QUARANTINE_FILE),
        reading=layout_options(config),
    )
    manifest = _exclude_rare_classes(manifest, config)
    rows = manifest.ok
    given = rows["split"].to_numpy()
    splits = split_rows(
        rows["label"].to_numpy(),
        rows["group"].to_numpy(),
        config.seed,
        config.split.test,
        config.split.validation,
        given if (given != "").any() else None,
    )
    num_torn = int((rows.assign(split=splits).groupby("group")["split"].nunique() > 1).sum())
    manifest = manifest.with_splits(splits)
    if num_torn:
        manifest.notes.append(
            f"{num_torn} images have copies in several splits, as the data gives them: scores will flatter"
        )
    if (given != "").all():
        for name in sorted(set(SPLITS) - set(given)):
            drawn = f"{int((splits == name).sum())} of the {int((given == TRAIN).sum())} images given to train"
            manifest.notes.append(f"no image is given to {name}: {drawn} are drawn into it")
    return _exclude_untrained_classes(manifest, config)


def _exclude_rare_classes(manifest: Manifest, config: RunConfig) -> Manifest:
    """Leave out the classes with too few different images to be divided.

    Raises:
        ConfigError: fewer than two classes are left.
    """
    rows = manifest.ok
    rare = rare_classes(rows["label"].to_numpy(), rows["group"].to_numpy(), config.min_images, rows["split"].to_numpy())
    if not rare:
        return manifest
    sizes = rows["label"].value_counts()
    named = [
        f"{name} ({count})"
        if sizes[name] == count
        else f"{name} ({sizes[name]} images, which count as copies of {count})"
        for name, count in rare.items()
    ]
    few, text = f"fewer than {config.min_images} different images", format_examples(named)
    hint = ""
    if any(sizes[name] != count for name, count in rare.items()):
        hint = (
            "where images that count as copies show different things, as those of a fixed camera, give a list with the "
            "columns path, label, and group or split, which decides the division itself"
        )
    if len(manifest.class_names) - len(rare) < 2:
        raise ConfigError(
            f"--data {config.data}: fewer than two classes have {config.min_images} different images or more "
            f"(--min-images); the others: {text}. Add images of them{f', or, {hint}' if hint else ''}"
        )
    note = f"classes left out, {few} (--min-images {config.min_images}): {text}{f'; {hint}' if hint else ''}"
    return manifest.exclude_classes(rare, few, note)


def _exclude_untrained_classes(manifest: Manifest, config: RunConfig) -> Manifest:
    """Leave out the classes without a row in train: no model can learn them.

    Raises:
        ConfigError: fewer than two classes are left, or a split without rows.
    """
    rows = manifest.ok
    untrained = sorted(set(manifest.class_names) - set(rows["label"][rows["split"] == TRAIN]))
    if not untrained:
        return manifest
    count = int(rows["label"].isin(untrained).sum())
    text = f"labels without a training image: {format_examples(untrained)}"
    manifest = manifest.exclude_classes(
        untrained, "no training image of its label", f"{text}; left out with {count} images"
    )
    lost = [name for name in SPLITS if not len(manifest.rows(name))]
    if len(manifest.class_names) < 2 or lost:
        left = "fewer than two labels are left" if len(manifest.class_names) < 2 else f"{' and '.join(lost)} loses all"
        raise ConfigError(f"--data {config.data}: {text}; without them {left}. Give some of their rows to train")
    return manifest


def layout_options(config: RunConfig) -> LayoutOptions:
    """How the folders of a run's data are read."""
    return LayoutOptions(
        label_level=config.label_level,
        keep_splits=not config.split.ignore_folders,
        results=storage.absolute(config.storage),
    )


def manifest_cache(location: str) -> str:
    """Where a storage keeps the manifests of all data sets."""
    return storage.join(storage.absolute(location), "manifests")


def data_location(config: RunConfig) -> str:
    """Where the images of a run lie; the demo's are drawn first, below the storage."""
    if config.data != DEMO:
        return config.data
    from pharmclf.data.demo import MARKER, write_demo  # the drawing code is wanted by the demo alone

    name = f"demo-data-{config.seed}-{config.demo.images_per_class}"
    location = storage.join(storage.absolute(config.storage), name)
    if not storage.is_remote(location):
        write_demo(location, seed=config.seed, images_per_class=config.demo.images_per_class)
    elif not storage.is_file(storage.join(location, MARKER)):
        with tempfile.TemporaryDirectory(prefix="pharmclf-demo-") as folder:
            write_demo(f"{folder}/{name}", seed=config.seed, images_per_class=config.demo.images_per_class)
            storage.upload_folder(Path(folder) / name, location, last=MARKER)
    return location


def cached_manifest(
    data: str,
    cache_location: str,
    *,
    max_bad_share: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    quarantine: str = "",
    min_classes: int = 2,
    reading: LayoutOptions = DEFAULT_LAYOUT_OPTIONS,
) -> Manifest:
    """As `build_manifest`, but a data set whose files kept their names, sizes and times is not scanned again.

    Args:
        data: folder, prefix or list, as in `build_manifest`.
        cache_location: folder or prefix of the cache, one Parquet file per data set.
        max_bad_share: largest share of quarantined images, 0..1.
        progress: called with (files done, files), not at all if nothing is scanned.
        quarantine: where the list of quarantined images goes when there are too many of them; "": nowhere.
        min_classes: fewer with usable images are refused.
        reading: which folders are labels and splits.

    Raises:
        ConfigError: as `build_manifest`.
    """
    listing = list_dataset(data, reading)
    location = storage.join(cache_location, f"{listing.key}.parquet")
    manifest = _read_cache(location)
    if manifest is None or len(manifest.class_names) < min_classes:
        manifest = scan_listing(listing, progress, min_classes)
        if not manifest.table["status"].str.startswith(NOT_READ).any():  # storage may give those the next time
            manifest.write(location)
    return check_invalid_share(manifest, max_bad_share, quarantine)


def _read_cache(location: str) -> Manifest | None:
    """A manifest scanned before; None where there is none, or where it is damaged or of another version."""
    if not storage.is_file(location):
        return None
    try:
        return Manifest.read(location)
    except ConfigError:
        return None


def format_split_counts(counts: Sequence[tuple[str, int, int, int]], more_in: str) -> list[str]:
    """A `split_counts` as aligned text; of many classes the rarest only, and where the others are.

    Args:
        counts: what `split_counts` returns.
        more_in: the file that has all classes.
    """
    classes, total = list(counts[:-1]), counts[-1]
    left_out = len(classes) - _RAREST if len(classes) > _MAX_CLASS_LINES else 0
    if left_out:
        classes = sorted(classes, key=lambda row: sum(row[1:]))[:_RAREST]
    rows = [("class", *SPLITS), *classes, total]
    lines = align_columns([[str(cell) for cell in row] for row in rows], left=[0])
    if left_out:
        lines.insert(-1, f"(the {_RAREST} classes with the fewest images; {left_out:,} more are in {more_in})")
    return lines


def split_counts(manifest: Manifest) -> list[tuple[str, int, int, int]]:
    """Usable rows of each class: (class, train, validation, test), and a last line "all" with the sums."""
    counts = manifest.ok.groupby(["label", "split"]).size()
    matrix = np.array([[int(counts.get((name, split), 0)) for split in SPLITS] for name in manifest.class_names])
    names = [*manifest.class_names, "all"]
    rows = [*matrix.tolist(), matrix.sum(axis=0).tolist()]
    return [(name, train, validation, test) for name, (train, validation, test) in zip(names, rows, strict=True)]
