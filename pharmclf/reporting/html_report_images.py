"""Pictures of the page as `data:` URIs, small enough that the page stays one file of a few megabytes."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image

from pharmclf.reporting.report_data import PredictedThumbnail, ReportData

BUDGET_BYTES = 2_000_000
"""What all pictures of a page may take as text, about."""
_SIDES = (256, 208, 160, 128, 96)  # pixels, the largest that fits
_QUALITY = 80
_MAX_SAMPLES = 12  # pictures that are encoded to see how large they get
_HEAT = "inferno"
_DIMMED = 0.45  # of the brightness, where the model did not look
_AS_TEXT = 4 / 3  # base64


def image_uri(image: np.ndarray, side: int) -> str:
    """An (S, S, 3) uint8 picture as WebP of at most `side` pixels."""
    return _uri("webp", _webp(image, side))


def png_uri(png: bytes) -> str:
    """A PNG as it is."""
    return _uri("png", png)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _webp(image: np.ndarray, side: int) -> bytes:
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()


def heat_overlay(picture: PredictedThumbnail) -> np.ndarray:
    """The picture in grey and dimmed, lit up where the heatmap is high: (S, S, 3) uint8.

    Raises:
        ValueError: no heatmap, or one of another size than the picture.
    """
    heat, image = picture.heatmap, picture.image
    if heat is None or heat.shape != image.shape[:2]:
        received = "none" if heat is None else str(heat.shape)
        raise ValueError(f"heatmap of {picture.path}: received {received}, expected the shape {image.shape[:2]}")
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None] / 255
    heat = np.clip(np.nan_to_num(heat), 0, 1).astype(np.float32)
    colour = colormaps[_HEAT](heat)[..., :3].astype(np.float32)
    strength = 0.75 * heat[..., None]
    mixed = (1 - strength) * grey * (_DIMMED + (1 - _DIMMED) * heat[..., None]) + strength * colour
    return (255 * mixed).round().astype(np.uint8)


@functools.cache
def heat_scale() -> tuple[str, ...]:
    """Colours of the heat from low to high, `#rrggbb`."""
    colours = colormaps[_HEAT](np.linspace(0.1, 1, 8))[:, :3]
    return tuple("#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in colours)


def fit_side(facts: ReportData, budget_bytes: int = BUDGET_BYTES) -> int:
    """The side in pixels at which all pictures of a page stay within a budget, or the smallest that is any use."""
    images = list(_images(facts))
    tried = [images[index] for index in np.linspace(0, len(images) - 1, min(len(images), _MAX_SAMPLES)).astype(int)]
    for side in _SIDES:
        each = sum(len(_webp(image, side)) for image in tried) / max(1, len(tried))
        if each * len(images) * _AS_TEXT <= budget_bytes:
            break
    return side


def _images(facts: ReportData) -> Iterator[np.ndarray]:
    """All that are encoded, heat overlays too."""
    for group in facts.data.duplicate_groups if facts.data else ():
        yield from (item.image for item in group)
    for item in facts.sets:
        confused: Sequence[PredictedThumbnail] = [picture for _, pictures in item.confused for picture in pictures]
        for picture in (*item.samples, *item.worst, *confused):
            yield picture.image
            if picture.heatmap is not None:
                yield heat_overlay(picture)
