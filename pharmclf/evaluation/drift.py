"""How images of another source look, compared with those of the training: their brightness and sharpness. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pharmclf.data.decoded_image import Pixels
from pharmclf.data.image_quality import measure_brightness, measure_sharpness

_PERCENTILES = (5, 50, 95)
_LEAST_IMAGES = 20  # with fewer, the middle of them is chance


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The range of two measures in some images: 5th, 50th and 95th percentile."""

    brightness: tuple[float, float, float]
    """Mean luma, 0 (black) to 1 (white)."""
    sharpness: tuple[float, float, float]
    """As `measure_sharpness`."""

    @classmethod
    def of_values(cls, brightness: Sequence[float], sharpness: Sequence[float]) -> Appearance | None:
        """From the measures of n images; None where they are too few."""
        if len(brightness) < _LEAST_IMAGES:
            return None
        return cls(brightness=_spread(brightness), sharpness=_spread(sharpness))

    @classmethod
    def of_images(cls, images: Iterable[Pixels | None]) -> Appearance | None:
        """From images, (height, width, 3) uint8 each, or None."""
        usable = [image for image in images if image is not None]
        return cls.of_values(list(map(measure_brightness, usable)), list(map(measure_sharpness, usable)))


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, _PERCENTILES).tolist()
    return low, middle, high


def describe_drift(usual: Appearance, here: Appearance) -> list[str]:
    """In what images differ from those of the training: where their middle is outside of the range of 90 % of those."""
    words = {"brightness": ("darker", "brighter"), "sharpness": ("less sharp", "sharper")}
    found = []
    for name, (less, more) in words.items():
        low, middle, high = getattr(usual, name)
        value = getattr(here, name)[1]
        if not low <= value <= high:
            word = less if value < low else more
            of_training = f"of training images {middle:.2f}, 90 % of them {low:.2f} to {high:.2f}"
            found.append(f"{word}: median {name} {value:.2f}, {of_training}")
    return found
