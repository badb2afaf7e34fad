"""The real images that an export is tried and calibrated on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.image_decoding import InvalidImageError
from pharmclf.data.image_files import find_images
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE
from pharmclf.evaluation.saved_model import SavedModel

_MAX_IMAGES = 256
"""As many images show a difference in every layer and bound each tensor's range; more cost time and change little."""
_MAX_VALIDATION_IMAGES = 2048  # 300 MB at 224 pixels; 299 without an error assure 1 %


def sample_images(model: SavedModel, given: str, split: str, flag: str, say: Say) -> np.ndarray:
    """Images of one kind, spread evenly over all that are there.

    Args:
        model: of whose run the images are where none are given.
        given: a folder of images at any depth, or a list as `--data` takes; "": the run's own.
        split: of the run's own images.
        flag: how messages name `given`.

    Returns:
        (n, S, S, 3) uint8, S the model's input size and n from 1 to 256.

    Raises:
        ConfigError: no image that can be read.
        PermissionError, StorageUnavailableError: the storage gives nothing at all.
    """
    files = (
        ImageSet.of_paths(_list_given(given, flag), model.white_level) if given else _list_run_split(model, split, flag)
    )
    chosen = np.linspace(0, len(files) - 1, min(len(files), _MAX_IMAGES)).round().astype(int)
    images, _, failures = _load_all(files.select(chosen), model.input_size)
    where = given or f"the {split} split of {model.run_folder}"
    if not images:
        raise ConfigError(f"{flag}: no image of {where} can be read ({failures[0]}). {_remedy(flag)}")
    if failures:
        say(f"left out: {len(failures):,} of {len(chosen):,} images of {where}, the first: {failures[0]}")
    return np.stack(images)


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationImages:
    """Labelled images that a threshold is chosen on."""

    images: np.ndarray
    """(n, S, S, 3) uint8."""
    truth: np.ndarray
    """(n,) int64, class numbers."""
    groups: np.ndarray
    """(n,) numbers; images of one group are near duplicates."""


def validation_images(model: SavedModel, say: Say) -> ValidationImages | None:
    """The validation split of a model's run, spread evenly where it is large; None: it is not known or not there.

    Raises:
        PermissionError, StorageUnavailableError: the storage gives nothing at all.
    """
    if (manifest := _run_manifest(model)) is None:
        return None
    rows = manifest.rows("validation")
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_VALIDATION_IMAGES)).round().astype(int)]
    table = manifest.table.loc[chosen]
    images, good, failures = _load_all(ImageSet.of_rows(table, model.white_level), model.input_size)
    if failures:
        say(f"left out: {len(failures):,} of {len(chosen):,} validation images, the first: {failures[0]}")
    if not images:
        return None
    places = {name: number for number, name in enumerate(model.labels)}
    return ValidationImages(
        images=np.stack(images),
        truth=np.array([places[label] for label in table["label"][good]], np.int64),
        groups=table["group"].to_numpy()[good],
    )


def _remedy(flag: str) -> str:
    return f"Give {flag} DIR with images that the model is made for"


def _load_all(files: ImageSet, image_size: int) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """(S, S, 3) uint8 of each usable image; (n,) booleans, which images are usable; why the others are not."""

    def load(place: int) -> np.ndarray | str:
        try:
            return files.decode(place, image_size)
        except InvalidImageError as error:
            return f"{files.paths[place].as_py()}: {error}"

    found = files.map(load)
    images = [image for image in found if isinstance(image, np.ndarray)]
    good = np.array([isinstance(image, np.ndarray) for image in found], bool)
    return images, good, [reason for reason in found if isinstance(reason, str)]


def _run_manifest(model: SavedModel) -> Manifest | None:
    """The manifest of the run that the model lies in; None where there is none."""
    location = storage.join(model.run_folder or "", MANIFEST_FILE)
    return Manifest.read(location) if model.run_folder is not None and storage.is_file(location) else None


def _list_run_split(model: SavedModel, split: str, flag: str) -> ImageSet:
    """The images of a split of the run that the model lies in."""
    if (manifest := _run_manifest(model)) is None:
        raise ConfigError(
            f"{flag}: received nothing, and {model.location} lies in no run that lists its images. {_remedy(flag)}"
        )
    rows = manifest.rows(split)
    if not len(rows):
        where = storage.join(model.run_folder or "", MANIFEST_FILE)
        raise ConfigError(f"{flag}: received nothing, and {where} has no image in its {split} split. {_remedy(flag)}")
    return ImageSet.of_rows(manifest.table.loc[rows], manifest.white_level)  # the model crops by itself


def _list_given(where: str, flag: str) -> list[str]:
    """Locations of the images of a folder or list."""
    location = storage.absolute(where)
    try:
        if storage.is_file(location):
            return [item.location for item in list_dataset(location).items]
        found = find_images(location)
    except ConfigError as error:
        raise ConfigError(f"{flag} {str(error).removeprefix('--data ')}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{flag} {where}: nothing there. {_remedy(flag)}") from error
    places = [entry.location for entry in found.images if not entry.unreadable]
    if not places:
        seen = "; ".join(found.notes) or "it is empty"
        raise ConfigError(f"{flag} {where}: no image there that is read ({seen}). {_remedy(flag)}")
    return places
