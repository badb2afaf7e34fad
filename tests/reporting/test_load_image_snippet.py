"""The function that loads an image without this package: the printed text, run beside the package's decoding."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.report_examples import make_facts

from pharmclf.data.image_decoding import decode
from pharmclf.reporting.load_image_snippet import IMPORTS, load_image_text
from pharmclf.reporting.model_card import model_card

README = Path(__file__).parents[2] / "jobs" / "README.md"
SIDE = 48


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def printed_block() -> str:
    """The Python block of the README that defines the function."""
    blocks = [block for block in python_blocks(README.read_text(encoding="utf-8")) if "def load_image" in block]
    assert len(blocks) == 1
    return blocks[0]


def function_of(block: str) -> Callable[..., np.ndarray]:
    """`load_image` as a reader takes it out of a page: its import line, and the lines from `def` to the next blank."""
    [needed] = re.findall(r"^from PIL import .*$", block, re.MULTILINE)
    [text] = re.findall(r"^def load_image.*?(?=\n\n|\Z)", block, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"np": np}
    exec(compile(f"{needed}\n{text}", "page", "exec"), names)
    loaded: Callable[..., np.ndarray] = names["load_image"]
    return loaded


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int, height: int) -> Image.Image:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(scene(90, 60), kind, exif=exif, **options)


def grey(top: int) -> np.ndarray:
    return np.asarray(scene(90, 60).convert("L")).astype(np.float64) * (top / 255)


def see_through() -> Image.Image:
    layer = scene(90, 60).convert("RGBA")
    layer.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))))
    return layer


FILES: dict[str, bytes] = {
    **{f"turned {kind} {n}": turned(kind, n) for kind in ("JPEG", "PNG", "TIFF") for n in range(1, 9)},
    "turned AVIF": turned("AVIF", 6),
    "grey JPEG": encode(scene(90, 60).convert("L"), "JPEG"),
    "CMYK JPEG": encode(scene(90, 60).convert("CMYK"), "JPEG"),
    "large JPEG": encode(scene(1600, 1200), "JPEG", quality=95),
    "alpha PNG": encode(see_through(), "PNG"),
    "alpha WebP": encode(see_through(), "WEBP", lossless=True),
    "grey with alpha": encode(see_through().convert("LA"), "PNG"),
    "palette": encode(scene(90, 60).convert("P"), "PNG"),
    "transparent palette": encode(scene(90, 60).convert("P"), "PNG", transparency=bytes(range(256))),
    "transparent colour": encode(scene(90, 60).convert("L"), "PNG", transparency=120),
    "GIF": encode(scene(90, 60), "GIF"),
    "one bit": encode(scene(90, 60).convert("1"), "PNG"),
    "16 bit PNG": encode(Image.fromarray(grey(65535).astype(np.uint16)), "PNG"),
    "16 bit TIFF": encode(Image.fromarray(grey(65535).astype(np.uint16)), "TIFF"),
    "32 bit integers": encode(Image.fromarray(grey(65535).astype(np.int32)), "TIFF"),
    "floats to 1": encode(Image.fromarray(grey(1).astype(np.float32)), "TIFF"),
    "floats to 255": encode(Image.fromarray(grey(255).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_printed_function_gives_the_pixels_of_training(name: str):
    """Within one level of 256: files that are turned are resized in another order of their sides."""
    load_image = function_of(printed_block())
    found = load_image(io.BytesIO(FILES[name]), SIDE)
    assert (found.shape, found.dtype) == ((SIDE, SIDE, 3), np.dtype(np.uint8))
    gap = np.abs(found.astype(int) - decode(FILES[name], SIDE))
    assert gap.max() <= 1
    if "turned" not in name:
        assert gap.max() == 0


def test_a_jpeg_that_is_scaled_by_another_step_differs_by_half_a_level_on_average():
    """Training decodes 300 pixels for 96 at 6/8 of the size, Pillow at 8/8: a few levels at edges, no more."""
    content = encode(scene(300, 300), "JPEG", quality=95)
    load_image = function_of(printed_block())
    gap = np.abs(load_image(io.BytesIO(content), 96).astype(int) - decode(content, 96))
    assert gap.mean() < 0.5
    assert gap.max() <= 10


@pytest.mark.parametrize("level", [255, 1023, 4095, 16383])
def test_the_card_of_a_model_of_fewer_bits_prints_its_white_level(level: int):
    """Of frames of 12 bits in files of 16: the card's function gives training's pixels without being asked."""
    facts = make_facts()
    assert facts.data
    card = model_card(dataclasses.replace(facts, data=dataclasses.replace(facts.data, white_level=level)))
    content = encode(Image.fromarray(grey(level).astype(np.uint16)), "PNG")
    found = function_of(python_blocks(card)[0])(io.BytesIO(content), SIDE)
    assert np.array_equal(found, decode(content, SIDE, level))
    assert found.max() > 150


def test_readme_and_card_print_the_same_text():
    for block in (printed_block(), *python_blocks(model_card(make_facts()))):
        assert load_image_text() in block
        assert IMPORTS in block
