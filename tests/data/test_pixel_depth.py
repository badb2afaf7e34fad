"""Images of 16 bits per channel, of which cameras use 8, 10, 12 or 14: what is white, and what is black."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.manifests import build_manifest

from pharmclf.config import RunConfig
from pharmclf.data.batch_sampler import PADDING
from pharmclf.data.image_decoding import InvalidImageError, decode, read_image_info
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.pixel_depth import find_white_level
from pharmclf.evaluation.datasets import external_dataset
from pharmclf.feature_cache.cache_key import key_parts

SCENE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow does not write: (h, w, 2 to 4) values."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(lines), b"IEND")
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def colour_tiff(values: np.ndarray, order: str, compressed: bool) -> bytes:
    """A TIFF of 16 bits per channel: (h, w, 3) values, `order` < or >."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    end = 8 + 2 + 12 * 9 + 4
    tags = [(256, width), (257, height), (258, end), (259, 8 if compressed else 1), (262, 2), (273, end + 2 * channels),
            (277, channels), (278, height), (279, len(data))]  # fmt: skip
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in tags:
        out += struct.pack(f"{order}HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
    return out + struct.pack(f"{order}I{channels}H", 0, *[16] * channels) + data


@pytest.mark.parametrize(
    ("largest", "level"),
    [
        (0, 65535), (1, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383),
        (16383, 16383), (16384, 65535), (65535, 65535),
    ],
)  # fmt: skip
def test_the_white_level_is_that_of_the_fewest_bits_that_hold_the_largest_value(largest: int, level: int):
    assert find_white_level(largest) == level


@pytest.mark.parametrize("level", [255, 1023, 4095, 16383])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_fewer_bits_fills_0_to_255(kind: str, level: int):
    """A ramp up to the level is a ramp up to white; without the level it was nearly black."""
    ramp = np.tile(np.linspace(0, level, 64).round().astype(np.uint16), (64, 1))
    content = encode(ramp, kind)
    assert read_image_info(content, "a.png").largest == level
    assert np.array_equal(decode(content, 64, level)[0, :, 1], np.rint(ramp[0] * (255 / level)))
    assert decode(content, 64).max() <= 64
    with pytest.raises(
        InvalidImageError, match=f"values up to {level} in a file of 16 bits, expected 0 to {level // 2}"
    ):
        decode(content, 64, level // 2)


def test_colour_of_12_bits_keeps_its_lower_bytes():
    """Pillow keeps the upper byte of each value, 0 to 15; with the level all twelve bits count, in every layout."""
    values = SCENE.astype(np.uint16) * 16 + 15
    opaque = np.full((*values.shape[:2], 1), 65535, np.uint16)
    files = [colour_png(values), colour_png(np.concatenate([values, opaque], axis=2))]
    files += [colour_tiff(values, order, compressed) for order in "<>" for compressed in (False, True)]
    scaled = encode(np.rint(values * (255 / 4095)).astype(np.uint8))
    for content in files:
        assert np.array_equal(decode(content, 32, 4095), decode(scaled, 32))
        assert read_image_info(content, "a.png").largest == values.max()
        assert decode(content, 32).max() <= 15
    assert read_image_info(colour_png(SCENE.astype(np.uint16) * 257), "a.png").largest > 16383
    grey = colour_png(np.concatenate([values[..., :1], opaque], axis=2))  # with alpha: Pillow gives the upper byte only
    gap = np.abs(decode(grey, 32, 4095).astype(int) - decode(encode(SCENE[..., 0]), 32))
    assert gap.max() <= 17


def test_full_16_bits_are_what_they_were():
    """At the common level the pixels are Pillow's upper bytes of colours, and 1/257 of greys, to the last bit."""
    values = np.random.default_rng(1).integers(0, 65536, (40, 40, 3)).astype(np.uint16)
    assert np.array_equal(decode(colour_png(values), 40), values >> 8)
    for kind in ("PNG", "TIFF"):
        grey = decode(encode(values[..., 0], kind), 40)
        assert np.array_equal(grey[..., 2], np.rint(values[..., 0] / 257.0))


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four frames of 12 bits in files of 16; one of them dark, and one a near copy of another."""
    root = tmp_path_factory.mktemp("camera")
    for number in range(8):
        rng = np.random.default_rng(number)
        scene = Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
        place = root / "data" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        frame = np.asarray(scene).astype(np.uint16) * (16 if number else 3) + (15 if number else 0)
        place.write_bytes(encode(frame))
        if number == 3:
            place.with_name("copy.png").write_bytes(encode(frame - 15))
    return root


@pytest.fixture(scope="module")
def made(camera: Path) -> Manifest:
    return build_manifest(str(camera / "data"))


def test_the_depth_is_that_of_the_largest_value_of_the_whole_set(made: Manifest, camera: Path):
    """Nine frames of 12 bits are read as such, the dark one too, in a line; near copies are found in those pixels."""
    assert made.white_level == 4095
    assert "9 images of 16 bit use only 0..4095: read as 12 bit" in made.notes
    dark = decode((camera / "data/a/0.png").read_bytes(), 32, made.white_level)
    assert 20 < dark.mean() < 40  # 3/16 of what the others have
    groups = dict(zip((Path(path).name for path in made.table["path"]), made.table["group"], strict=True))
    assert groups["copy.png"] == groups["3.png"]
    assert len(set(groups.values())) == 8
    scaled = read_image_info((camera / "data/b/3.png").read_bytes(), "3.png", 4095).phash
    assert made.table["phash"][made.table["path"].str.endswith("3.png")].tolist() == [scaled]


def test_the_level_stays_with_the_manifest_and_its_images(made: Manifest, tmp_path: Path):
    """In the file, in the fingerprint, in what is decoded, in the key of kept activations; the common one in none."""
    made.write(str(tmp_path / "manifest.parquet"))
    read = Manifest.read(str(tmp_path / "manifest.parquet"))
    assert read.white_level == 4095
    assert read.with_splits(["train"] * len(read.ok)).white_level == 4095
    assert read.fingerprint == made.fingerprint
    common = Manifest(made.table, made.class_names, made.root)
    assert common.white_level == 65535
    assert common.fingerprint != made.fingerprint
    images = ImageSet.of(made)
    for part in (images, images.select([1, 0]), images.slice(0, 2)):
        assert set(part.white_level.to_pylist()) == {4095}
    joined = ImageSet.join([images.select([0, PADDING]), ImageSet.of(common).select([0])])
    assert joined.white_level.to_pylist() == [4095, 65535, 65535]
    assert joined.decode(0, 32).mean() > 5 * joined.decode(2, 32).mean()
    keys: list[dict[str, Any]] = [key_parts(RunConfig(), each, 1, "none", "float32") for each in (made, common)]
    assert keys[0] == keys[1] | {"white_level": 4095}


def test_a_set_that_uses_all_bits_names_its_dark_images(camera: Path, tmp_path: Path):
    """One frame of full 16 bits among those of 12: nothing is scaled, and the line says what is read as dark."""
    for name in "ab":
        (tmp_path / name).symlink_to(camera / "data" / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "bright.png").write_bytes(encode(SCENE[..., 0].astype(np.uint16) * 257))
    found = build_manifest(str(tmp_path))
    assert found.white_level == 65535
    [note] = [note for note in found.notes if "16 bit" in note]
    assert note.startswith("9 images of 16 bit use only 0..4095 and are read as dark, since others use up to ")


def test_whoever_reads_a_set_reads_it_at_its_level(made: Manifest, camera: Path):
    """The stream, and predictions of new files at the model's level; a file with larger values is bad by name."""
    from pharmclf.data.ray_loader import load_images
    from pharmclf.inference.tolerant_reader import read_images

    paths = made.table["path"].tolist()
    expected = np.stack([decode(Path(path).read_bytes(), 32, 4095) for path in paths])
    assert expected.mean() > 80
    assert np.array_equal(load_images(ImageSet.of(made), 32)[0], expected)
    found = read_images(ImageSet.of_paths(paths, 1023), 32)
    assert "values up to" in found["bad"][-1]
    assert "in a file of 16 bits, expected 0 to 1023" in found["bad"][-1]
    assert np.array_equal(read_images(ImageSet.of_paths(paths, 4095), 32)["image"], expected)


@pytest.mark.parametrize(("model", "level"), [(65535, 4095), (4095, 4095), (16383, 16383), (1023, 4095)])
def test_a_set_from_outside_is_read_as_the_model_was_trained(made: Manifest, tmp_path: Path, model: int, level: int):
    """At the model's level where its values keep to that; at its own where they do not, or the model has none."""
    found = external_dataset("x", made.root, ("a", "b"), cache=str(tmp_path), white_level=model)
    assert set(found.files.white_level.to_pylist()) == {level}
