"""The splits of a run as folders of links, one for each class, which is how plain Keras wants them."""

from __future__ import annotations

from pathlib import Path

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.data.manifest import Manifest
from pharmclf.data.splits import SPLITS

_READS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # what image_dataset_from_directory looks for


def link_splits(manifest: Manifest, folder: Path) -> None:
    """Lay class folders `<split>/<class number>/<row>.jpg` of links to the images, as the plain way wants them.

    Raises:
        ConfigError: images that it cannot read.
    """
    rows = manifest.ok
    remote = [path for path in rows["path"] if storage.is_remote(path)]
    odd = remote or [path for path in rows["path"] if Path(path).suffix.lower() not in _READS]
    if odd:
        raise ConfigError(
            f"{odd[0]} and {len(odd)} images in all: plain Keras reads {', '.join(_READS)} from a local disk, nothing "
            "else. Give a data set of those to compare with it"
        )
    for split in SPLITS:
        for place in range(len(manifest.class_names)):
            (folder / split / f"{place:04d}").mkdir(parents=True)
    numbers = {name: place for place, name in enumerate(manifest.class_names)}
    for row, path, label, split in zip(rows.index, rows["path"], rows["label"], rows["split"], strict=True):
        link = folder / split / f"{numbers[label]:04d}" / f"{row:09d}{Path(path).suffix.lower()}"
        link.symlink_to(storage.absolute(path))
