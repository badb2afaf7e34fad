"""Measures of an image that a person can check by looking: brightness and sharpness; and the outliers among values."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pharmclf.data.decoded_image import Pixels

MEASURED_SIDE = 128
"""Longer side at which sharpness is measured, pixels: little of a camera's noise is left there, and blur that is
invisible there hardly matters to a model."""
_OUTLIER = 3.5  # robust standard deviations from the median (Iglewicz and Hoaglin)
_MAD_TO_SIGMA = 1.4826  # of normally distributed values


def measure_brightness(pixels: Pixels) -> float:
    """Mean luma, 0 (black) to 1 (white).

    Args:
        pixels: (height, width, 3) uint8 RGB.
    """
    return float(np.asarray(Image.fromarray(pixels).convert("L")).mean()) / 255


def measure_sharpness(pixels: Pixels) -> float:
    """Standard deviation of the Laplacian divided by that of the luma; 0: no edge at all.

    It falls with blur and does not depend on brightness or contrast. Photographs have about 0.1 (blurred) to 0.9.

    Args:
        pixels: (height, width, 3) uint8 RGB; scaled to a longer side of `MEASURED_SIDE`, so that images of different
            sizes compare.
    """
    height, width = pixels.shape[:2]
    scale = MEASURED_SIDE / max(height, width)
    size = (max(3, round(width * scale)), max(3, round(height * scale)))
    luma = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BILINEAR), np.float32)
    contrast = float(luma.std())
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).std()) / contrast if contrast else 0.0


def outlier_scores(values: ArrayLike, least_spread: float) -> NDArray[np.float64]:
    """Distance of each value from the median in units of the outlier limit: below -1 and above 1 it is an outlier.

    Args:
        values: (n,) numbers.
        least_spread: standard deviation that is assumed at least, so that of nearly equal values none is an outlier.

    Returns:
        (n,) numbers.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return numbers
    distance = numbers - np.median(numbers)
    spread = max(least_spread, _MAD_TO_SIGMA * float(np.median(np.abs(distance))))
    return distance / (_OUTLIER * spread)
