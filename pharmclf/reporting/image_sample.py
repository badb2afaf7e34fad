"""Reads a bounded sample of a data set for a report: an example of each class, and the quality of the images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from pharmclf.data.decoded_image import Crop, Pixels
from pharmclf.data.image_decoding import InvalidImageError, decode_upright
from pharmclf.data.image_quality import measure_brightness, measure_sharpness, outlier_scores
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.reporting.report_data import MeasuredThumbnail, MeasureName, QualityMeasure, Thumbnail

DISPLAY_SIDE = 320
"""Bound on the sides of images for readers, pixels."""
SAMPLED_IMAGES = 200
"""Images that are read to measure brightness and sharpness, and the most classes of which an example is shown."""
_EXTREMES = 3  # images shown at an end of a range, if they are outliers; else 1
_THREADS = 8
_LEAST_SPREAD: dict[MeasureName, float] = {"size": 0.1, "brightness": 0.03, "sharpness": 0.15}
"""In the logarithm for size and sharpness, so that a factor up and down are equally far."""


def load_upright(files: ImageSet) -> list[np.ndarray | None]:
    """Read images for readers: (height, width, 3) uint8 with their aspect ratio; None where one cannot be used.

    The part that a model looks at is framed.

    Raises:
        PermissionError, StorageUnavailableError: the storage cannot be read.
    """

    def load(place: int) -> np.ndarray | None:
        try:
            image = decode_upright(files.content(place), DISPLAY_SIDE, files.white_level[place].as_py())
        except InvalidImageError:
            return None
        crop = files.crop(place)
        return image if crop is None else draw_frame(image, crop)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(load, range(len(files))))


def draw_frame(image: Pixels, crop: Crop) -> Pixels:
    """A copy of an image with a frame around a part of it: white on black, so that it is seen on any background."""
    framed = Image.fromarray(image)
    left, top, right, bottom = crop.in_pixels(*framed.size)
    for width, colour in ((5, "black"), (3, "white")):
        ImageDraw.Draw(framed).rectangle((left, top, right, bottom), outline=colour, width=width)
    return np.asarray(framed)


def load_thumbnails(manifest: Manifest, rows: Sequence[int]) -> dict[int, Thumbnail]:
    """Row of the manifest -> image for readers, without those that cannot be used."""
    table = manifest.table.loc[list(rows)]
    images = load_upright(ImageSet.of_rows(table, manifest.white_level))
    return {
        row: Thumbnail(image=image, path=str(path), label=str(label))
        for row, image, path, label in zip(rows, images, table["path"], table["label"], strict=True)
        if image is not None
    }


def sample_rows(labels: Sequence[str], most: int) -> np.ndarray:
    """Indices of an even sample: as many images of each class as fit, evenly spaced; of too many classes one each.

    Args:
        labels: (n,) the class of each image.
        most: bound on the sample.

    Returns:
        (at most `most`,) rising indices.
    """
    rows_of = pd.Series(labels, dtype=object).groupby(np.asarray(labels, object)).indices
    names = list(rows_of)
    shown = evenly_spaced_indices(len(names), most)
    each = most // max(1, len(shown))
    parts = [rows_of[names[place]] for place in shown]
    chosen = [part[evenly_spaced_indices(len(part), each)] for part in parts]
    return np.sort(np.concatenate([np.zeros(0, int), *chosen]))


def sample_dataset(manifest: Manifest) -> tuple[dict[str, Thumbnail], list[QualityMeasure]]:
    """An example of each class, and measures of the images; at most `SAMPLED_IMAGES` are read, and the smallest."""
    rows = manifest.ok
    sampled = rows.index[sample_rows(rows["label"].tolist(), SAMPLED_IMAGES)].tolist()
    thumbnails = load_thumbnails(manifest, sampled)
    examples: dict[str, Thumbnail] = {}
    for thumbnail in thumbnails.values():
        examples.setdefault(thumbnail.label, thumbnail)
    brightness = {row: measure_brightness(item.image) for row, item in thumbnails.items()}
    sharpness = {row: measure_sharpness(item.image) for row, item in thumbnails.items()}
    sides = rows[["width", "height"]].min(axis=1).to_numpy(float)
    size = dict(zip(rows.index.tolist(), sides.tolist(), strict=True))
    by_name: dict[MeasureName, dict[int, float]] = {"size": size, "brightness": brightness, "sharpness": sharpness}
    measures = []
    for name, values in by_name.items():
        extremes = find_extremes(name, list(values.values()))
        chosen = [list(values)[place] for place, _ in extremes]
        shown = thumbnails | load_thumbnails(manifest, [row for row in chosen if row not in thumbnails])
        measures.append(
            QualityMeasure(
                name=name,
                values=np.sort(list(values.values())),
                extremes=[
                    MeasuredThumbnail(**vars(shown[row]), value=values[row], is_outlier=is_outlier)
                    for row, (_, is_outlier) in zip(chosen, extremes, strict=True)
                    if row in shown
                ],
            )
        )
    return examples, [measure for measure in measures if len(measure.values)]


def find_extremes(name: MeasureName, values: Sequence[float]) -> list[tuple[int, bool]]:
    """The images that a reader should see: the outliers, at most a few at each end, or else the one at the end.

    Args:
        name: of the measure; small, blurred, dark and bright images are shown, large and sharp ones are not.
        values: (n,) of the images.

    Returns:
        (index, whether it is an outlier), by rising value; empty where all values are equal.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or numbers.min() == numbers.max():
        return []
    scores = outlier_scores(numbers if name == "brightness" else np.log(numbers + 1e-3), _LEAST_SPREAD[name])
    order = np.argsort(scores, kind="stable")
    low = order[: max(1, min(_EXTREMES, int((scores < -1).sum())))]
    high = order[len(order) - max(1, min(_EXTREMES, int((scores > 1).sum()))) :] if name == "brightness" else order[:0]
    return [(int(place), bool(abs(scores[place]) > 1)) for place in dict.fromkeys([*low, *high])]


def evenly_spaced_indices(count: int, most: int) -> np.ndarray:
    """(at most `most`,) indices, evenly over 0..count-1."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
