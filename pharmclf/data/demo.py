"""Writes the demo data set, ten classes of drawn images, to a folder."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from pharmclf.core.errors import ConfigError
from pharmclf.data.demo_images import CLASS_NAMES, render_jpeg
from pharmclf.progress import image_progress

MARKER = ".pharmclf-demo.json"
"""File in a folder of `write_demo` with the parameters of its images."""
GENERATOR_VERSION = 1
"""Raise it with every change of the pixels, so that existing folders are drawn again."""


def write_demo(folder: str | Path, *, seed: int, images_per_class: int) -> Path:
    """Write the data set as `<folder>/<Class>/<class>_0000.jpg`, atomically.

    A folder that holds the same data set is left as it is; another demo is replaced.

    Returns:
        The folder.

    Raises:
        ConfigError: the seed is negative, images_per_class is below 1, or the folder holds other files.
        OSError: the disk refuses.
    """
    folder = Path(folder)
    if seed < 0 or images_per_class < 1:
        raise ConfigError(
            f"received seed {seed} and {images_per_class} images per class; expected 0 or more and 1 or more. "
            "Give --seed 0 --demo.images-per-class 100"
        )
    wanted = {"generator_version": GENERATOR_VERSION, "seed": seed, "images_per_class": images_per_class}
    if _is_complete(folder, wanted):
        return folder
    if folder.exists() and not (folder / MARKER).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: received a folder with other files; expected a missing or empty folder, or one of the demo "
            f"(it holds {MARKER}). Give another folder, or move this one away"
        )
    temporary, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        progress = image_progress("drawing the demo")
        for class_index, name in enumerate(CLASS_NAMES):
            (temporary / name).mkdir(parents=True)
            for index in range(images_per_class):
                (temporary / name / f"{name.lower()}_{index:04d}.jpg").write_bytes(
                    render_jpeg(seed, class_index, index)
                )
                progress(class_index * images_per_class + index + 1, len(CLASS_NAMES) * images_per_class)
        (temporary / MARKER).write_text(json.dumps(wanted))
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def _is_complete(folder: Path, wanted: dict[str, int]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    counts = (sum(1 for _ in (folder / name).glob("*.jpg")) for name in CLASS_NAMES)
    return bool(marker == wanted) and all(count == wanted["images_per_class"] for count in counts)
