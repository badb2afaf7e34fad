"""Prepares the manifest of a run: draw the demo if requested, scan images once, split, write."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pharmclf import storage
from pharmclf.config import DEMO, RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_examples
from pharmclf.data.build_manifest import scan_listing
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.destination import check_destination
from pharmclf.data.folder_layouts import DEFAULT_LAYOUT_OPTIONS, LayoutOptions
from pharmclf.data.label_corrections import correct_labels
from pharmclf.data.manifest import Manifest
from pharmclf.data.scan import NOT_READ, ProgressCallback
from pharmclf.data.splits import SPLITS, TRAIN, rare_classes, split_rows

MANIFEST_FILE = "manifest.parquet"
QUARANTINE_FILE = "quarantine.csv"
_MAX_CLASS_LINES, _RAREST = 30, 20  # more classes than the first are not all printed, but the second number of them
_UNBALANCED = 3.0  # ratio of the largest to the smallest class from which a run notes it


def prepare_manifest(config: RunConfig, folder: str, progress: ProgressCallback | None = None) -> Manifest:
    """Make the manifest of a run, with splits, and write it and the list of quarantined images to a folder.

    Args:
        config: its data, storage, max_invalid, seed, split and demo decide the result.
        folder: of `manifest.parquet` and `quarantine.csv`; local or a URI.

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
    """Check that the storage of a run can be reached, and outlives the job, and that its further test sets exist.

    Raises:
        ConfigError: no such bucket, no right to it, or a folder that is deleted with the job; no such test set.
        StorageUnavailableError: it does not answer.
    """
    if config.data != DEMO:  # results of the demo may be lost
        check_destination("--storage", storage.absolute(config.storage))
    with storage.errors_as_config_errors(config.storage):
        storage.list_folders(storage.absolute(config.storage))
    sets = {f"--eval-data {name}": location for name, location in config.eval_locations.items()}
    sets |= {f"--unknown {name}": location for name, location in config.unknown_locations.items()}
    for flag, location in sets.items():
        if not storage.exists(location):
            word = storage.place_word(location)
            raise ConfigError(f"{flag}={location}: nothing there. Give a readable {word} or list")


def split_manifest(config: RunConfig, folder: str, progress: ProgressCallback | None = None) -> Manifest:
    """Make the manifest of a run, with splits; write the list of bad images only where there are too many.

    Args and Raises: as `prepare_manifest`.
    """
    check_storage(config)
    manifest = cached_manifest(
        data_location(config),
        manifest_cache(config.storage),
        max_invalid_share=config.max_invalid_share,
        progress=progress,
        quarantine=storage.join(folder, QUARANTINE_FILE),
        reading=layout_options(config),
    )
    if config.labels:
        manifest = correct_labels(manifest, config.labels)
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
            f"{num_torn} images have copies in several splits, as given by the data: scores will be too high"
        )
    if (given != "").all():
        for name in sorted(set(SPLITS) - set(given)):
            drawn = f"{int((splits == name).sum())} of the {int((given == TRAIN).sum())} images given to train"
            manifest.notes.append(f"no image is given to {name}: {drawn} are drawn into it")
    manifest = _exclude_untrained_classes(manifest, config)
    return replace(manifest, in_all_splits=config.folds > 0)


def _exclude_rare_classes(manifest: Manifest, config: RunConfig) -> Manifest:
    """Leave out the classes with too few different images to be divided; refuse fewer than two others."""
    rows = manifest.ok
    rare = rare_classes(rows["label"].to_numpy(), rows["group"].to_numpy(), config.min_images, rows["split"].to_numpy())
    if not rare:
        return manifest
    sizes = rows["label"].value_counts()
    examples = format_examples(
        [
            f"{name} ({count})"
            if sizes[name] == count
            else f"{name} ({sizes[name]} images, which count as copies of {count})"
            for name, count in rare.items()
        ]
    )
    hint = ""
    if any(sizes[name] != count for name, count in rare.items()):
        hint = (
            "where images that count as copies show different objects, as those of a fixed camera, give a list with "
            "the columns path, label, and group or split, which decides the division itself"
        )
    if len(manifest.class_names) - len(rare) < 2:
        raise ConfigError(
            f"--data {config.data}: fewer than two classes have {config.min_images} different images or more "
            f"(--min-images); the others: {examples}. Add images of them{f', or, {hint}' if hint else ''}"
        )
    reason = f"fewer than {config.min_images} different images"
    note = f"classes left out, {reason} (--min-images {config.min_images}): {examples}{f'; {hint}' if hint else ''}"
    return manifest.exclude_classes(rare, reason, note)


def _exclude_untrained_classes(manifest: Manifest, config: RunConfig) -> Manifest:
    """Leave out the classes without a training image; refuse fewer than two others, or a split without rows."""
    rows = manifest.ok
    untrained = sorted(set(manifest.class_names) - set(rows["label"][rows["split"] == TRAIN]))
    if not untrained:
        return manifest
    count = int(rows["label"].isin(untrained).sum())
    text = f"labels without a training image: {format_examples(untrained)}"
    manifest = manifest.exclude_classes(
        untrained, "no training image of its label", f"{text}; left out with {count} images"
    )
    empty = [name for name in SPLITS if not len(manifest.rows(name))]
    if len(manifest.class_names) < 2 or empty:
        left = "fewer than two labels are left" if len(manifest.class_names) < 2 else f"{' and '.join(empty)} loses all"
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
    """Folder of the manifests of all data sets in a storage."""
    return storage.join(storage.absolute(location), "manifests")


def data_location(config: RunConfig) -> str:
    """Location of the images of a run; those of the demo are drawn first, below the storage."""
    if config.data != DEMO:
        return config.data
    from pharmclf.data.demo import MARKER, write_demo  # only the demo needs the drawing code

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
    max_invalid_share: float = 1.0,
    progress: ProgressCallback | None = None,
    quarantine: str = "",
    min_classes: int = 2,
    reading: LayoutOptions = DEFAULT_LAYOUT_OPTIONS,
) -> Manifest:
    """Scan a data set, or read its manifest from a cache where names, sizes and times of its files are the same.

    Args:
        data: folder or prefix with one folder per class, at any depth, or a CSV or Parquet list: path, label[, group,
            split], paths relative to the list's folder.
        cache_location: folder or prefix of the cache, one Parquet file per data set.
        max_invalid_share: largest share of quarantined images, 0..1.
        quarantine: where the list of quarantined images is written if there are too many; "": nowhere.
        min_classes: fewer classes with usable images are refused.
        reading: which folders are labels and splits.

    Raises:
        ConfigError: nothing there, no image, too few classes, or too many bad images.
    """
    with show_activity("listing the images"):
        listing = list_dataset(data, reading)
    location = storage.join(cache_location, f"{listing.key}.parquet")
    manifest = None
    if storage.is_file(location):
        with contextlib.suppress(ConfigError):  # damaged, or of another version
            manifest = Manifest.read(location)
    if manifest is None or len(manifest.class_names) < min_classes:
        manifest = scan_listing(listing, progress, min_classes)
        if not manifest.table["status"].str.startswith(NOT_READ).any():  # storage may give those the next time
            manifest.write(location)
    _check_bad_share(manifest, max_invalid_share, quarantine)
    return manifest


def _check_bad_share(manifest: Manifest, max_invalid_share: float, quarantine: str) -> None:
    bad = manifest.quarantined
    share = len(bad) / max(1, len(manifest.table))
    if share <= max_invalid_share:
        return
    if quarantine:
        manifest.write_quarantine(quarantine)
    first = format_examples([f"{row.path}: {row.status}" for row in bad.itertuples()], separator="; ")
    where = f", the full list is in {quarantine}" if quarantine else ""
    raise ConfigError(
        f"{len(bad)} of {len(manifest.table)} images are bad ({share:.1%}), expected at most {max_invalid_share:.1%}: "
        f"{first}{where}. Repair or remove them, or accept more with --max-invalid"
    )


def imbalance_note(labels: Iterable[str]) -> str:
    """A note on classes that differ much in size; "" where they do not.

    Args:
        labels: of the training images.
    """
    counts = pd.Series(list(labels), dtype=object).value_counts(sort=False).sort_index()
    if counts.empty or counts.max() < _UNBALANCED * counts.min():
        return ""
    most, fewest = counts.idxmax(), counts.idxmin()
    return (
        f"note: unbalanced classes: {counts.max():,} training images of {most}, {counts.min():,} of {fewest}. Accuracy "
        "says little of small classes; with optimizer.class_weights auto all classes weigh alike, and epochs are "
        "chosen by balanced accuracy"
    )


def format_split_counts(counts: Sequence[tuple[str, int, int, int]], more_in: str) -> list[str]:
    """The result of `split_counts` as aligned text; of many classes only the rarest.

    Args:
        counts: from `split_counts`.
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
