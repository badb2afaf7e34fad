import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from threadpoolctl import threadpool_limits

from pharmclf.data.duplicate_candidates import TurnedSearch, hash_search
from pharmclf.data.duplicates import CHECK_SIDE, equal_pairs, group_rows, near_pairs
from pharmclf.data.image_decoding import decode, perceptual_hash, read_image_info
from pharmclf.data.near_vectors import NearVectors

PILLS = Path(__file__).parents[3] / "shared" / "data" / "pills10-A"


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def crop(image, share):
    width, height = image.size
    left, top = round(width * share), round(height * share)
    return image.crop((left, top, width - left, height - top))


COPIES = {
    "quality 40": lambda image: jpeg(image, 40),
    "half size": lambda image: jpeg(image.resize((image.width // 2, image.height // 2))),
    "one and a half size": lambda image: jpeg(image.resize((image.width * 3 // 2, image.height * 3 // 2))),
    "cropped 2 %": lambda image: jpeg(crop(image, 0.02)),
    "cropped 4 %": lambda image: jpeg(crop(image, 0.04)),
}

TURNED = {
    "mirrored": lambda image: jpeg(ImageOps.mirror(image)),
    "upside down": lambda image: jpeg(ImageOps.flip(image)),
    "quarter turn": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_90)),
    "three quarters": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_270)),
    "transposed": lambda image: jpeg(image.transpose(Image.Transpose.TRANSPOSE)),
    "15 degrees, black corners": lambda image: jpeg(image.rotate(15, Image.Resampling.BICUBIC)),
    "-7 degrees, filled corners": lambda image: jpeg(image.rotate(-7, fillcolor=image.getpixel((0, 0)))),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.7)),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)),
    "paler": lambda image: jpeg(ImageEnhance.Contrast(image).enhance(0.7)),
    "mirrored, turned, darker": lambda image: jpeg(
        ImageEnhance.Brightness(ImageOps.mirror(image).rotate(10)).enhance(0.8)
    ),
}


def pairs_of(contents):
    probes = [read_image_info(content, "a.jpg") for content in contents]
    hashes = np.array([int(one.phash, 16) for one in probes], dtype=np.uint64)
    return near_pairs(
        hashes, np.stack([one.thumbnail for one in probes]), lambda row: decode(contents[row], CHECK_SIDE)
    )


def table_top(seed):
    """A background with grain and slopes, 300 x 300."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 200, (5, 5, 3), dtype=np.uint8)).resize(
        (300, 300), Image.Resampling.BICUBIC
    )
    grain = Image.fromarray(rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)).resize((300, 300))
    return Image.blend(coarse, grain, 0.15)


def lay(background, colour, angle, shape="caplet", at=(150, 150), text="A7"):
    """The background with one product on it."""
    pill = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    pen = ImageDraw.Draw(pill)
    box = (30, 50, 130, 110) if shape == "caplet" else (40, 40, 120, 120)
    pen.rounded_rectangle(box, radius=30 if shape == "caplet" else 40, fill=(*colour, 255))
    pen.text((68, 70), text, fill=(40, 40, 40, 255), font_size=22)
    pill = pill.rotate(angle, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.7))
    image = background.copy()
    image.paste(pill, (at[0] - 80, at[1] - 80), pill)
    return image


def test_groups_are_named_after_their_smallest_row():
    """Pairs join rows, also along a chain, and a row alone is its own group."""
    assert group_rows(6, [(4, 2), (5, 4), (0, 3)]).tolist() == [0, 1, 2, 0, 2, 2]
    assert equal_pairs(["a", "", "b", "a", "", "a"]) == [(0, 3), (0, 5)]


def test_copies_of_drawn_pictures_are_found():
    """Every kind of copy is paired with its original, and originals with nothing."""
    originals = [lay(table_top(seed), (230, 40 * seed, 90), 50 * seed) for seed in range(5)]
    contents = [jpeg(image) for image in originals]
    contents += [copy(image) for copy in COPIES.values() for image in originals]
    pairs = pairs_of(contents)
    groups = group_rows(len(contents), pairs)
    assert groups.tolist() == [row % 5 for row in range(len(contents))]


def test_what_augmentation_makes_of_drawn_images_is_found():
    """Ten of ten sources share a group with their mirrors, turns and other lights, and with nothing else."""
    kinds = ("mirrored", "quarter turn", "15 degrees, black corners", "brighter", "mirrored, turned, darker")
    originals = [lay(table_top(seed), (230, 25 * seed, 90), 50 * seed) for seed in range(10)]
    contents = [jpeg(image) for image in originals]
    contents += [TURNED[kind](image) for kind in kinds for image in originals]
    groups = group_rows(len(contents), pairs_of(contents))
    assert groups.tolist() == [row % 10 for row in range(len(contents))]


def test_a_product_on_plain_ground_is_no_copy_of_itself_at_another_angle():
    """One grey ground without grain: only pairs that lie the same way by chance could be copies, and here none do."""
    plain = Image.new("RGB", (300, 300), (150, 150, 150))
    scenes = [lay(plain, (235, 235, 235), angle) for angle in (0, 25, 60, 90, 150, 180, 200, 270)]
    assert pairs_of([jpeg(scene) for scene in scenes]) == []


def test_pairs_of_unequal_sides_are_looked_for_alone():
    """With sides, copies on one side are left out, also where one of them is a mirror."""
    image = lay(table_top(3), (230, 60, 90), 20)
    contents = [jpeg(image), TURNED["mirrored"](image), COPIES["half size"](image)]
    probes = [read_image_info(content, "a.jpg") for content in contents]
    hashes = np.array([int(one.phash, 16) for one in probes], dtype=np.uint64)
    thumbnails = np.stack([one.thumbnail for one in probes])
    pairs = near_pairs(
        hashes, thumbnails, lambda row: decode(contents[row], CHECK_SIDE), sides=np.array([True, True, False])
    )
    assert pairs == [(0, 2), (1, 2)]


def test_the_same_table_under_another_product_is_no_copy():
    """One background: other colour, other shape, turned, moved, other imprint; none of them is grouped."""
    for seed in range(3):
        top = table_top(seed)
        scenes = [
            lay(top, (235, 235, 235), 0),
            lay(top, (220, 60, 60), 0),
            lay(top, (235, 235, 235), 0, shape="round"),
            lay(top, (235, 235, 235), 30),
            lay(top, (235, 235, 235), 180),
            lay(top, (235, 235, 235), 0, at=(158, 150)),
            lay(top, (235, 235, 235), 0, text="K4"),
            lay(top, (235, 235, 235), 90, shape="round"),
        ]
        assert pairs_of([jpeg(scene) for scene in scenes]) == []


def test_another_light_is_no_copy():
    """The same product on backgrounds of the same pattern and another brightness or colour is not grouped."""
    top = table_top(0)
    lights = [top, top.point(lambda value: value * 0.8), Image.merge("RGB", top.split()[::-1])]
    assert pairs_of([jpeg(lay(light, (235, 235, 235), 0)) for light in lights]) == []


def test_flat_pictures_are_told_apart_by_their_level():
    """Pictures without any structure do not break the arithmetic; unequal greys are not copies."""
    contents = [jpeg(Image.new("RGB", (64, 64), (level,) * 3)) for level in (0, 60, 120, 180, 255)]
    assert pairs_of(contents) == []


def test_a_file_that_is_gone_has_no_copies():
    """What cannot be read for the last check is not joined, and does not stop the others."""
    contents = [jpeg(lay(table_top(seed), (230, 60, 90), 0)) for seed in (0, 0, 1, 1)]

    def load(row):
        if row == 0:
            raise FileNotFoundError
        return decode(contents[row], CHECK_SIDE)

    probes = [read_image_info(content, "a.jpg") for content in contents]
    hashes = np.array([int(one.phash, 16) for one in probes], dtype=np.uint64)
    assert near_pairs(hashes, np.stack([one.thumbnail for one in probes]), load) == [(2, 3)]


@pytest.mark.skipif(not PILLS.is_dir(), reason=f"needs {PILLS}")
def test_photographs_form_no_groups_and_their_copies_do():
    """2,000 different photographs: no pair. 40 copies of each kind among them: 97 % joined to their original."""
    contents = [path.read_bytes() for path in sorted(PILLS.glob("*/*.jpg"))]
    num, rng = len(contents), np.random.default_rng(0)
    kind_of, source_of = [], []
    kinds = COPIES | TURNED
    for kind, copy in kinds.items():
        for source in rng.choice(num, 40, replace=False):
            with Image.open(io.BytesIO(contents[source])) as image:
                contents.append(copy(image.convert("RGB")))
            kind_of.append(kind)
            source_of.append(int(source))
    pairs = pairs_of(contents)
    origin = [*range(num), *source_of]
    assert [(one, other) for one, other in pairs if origin[one] != origin[other]] == []
    groups = group_rows(len(contents), pairs)
    joined = groups[num:] == np.array(source_of)
    for kind in kinds:
        least = 0.85 if kind == "brighter" else 0.95  # detail that is clipped at white is lost
        assert joined[np.array(kind_of) == kind].mean() >= least, kind
    assert joined.mean() >= 0.97


def crowded_thumbnails(seed):
    """7,000 thumbnails: blends, near copies of some, mirrors, and two crowds of equal ones; in a random order."""
    rng = np.random.default_rng(seed)
    base = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        )
        for _ in range(60)
    ]
    one, two = (np.stack(base)[rng.integers(0, 60, 5500)].astype(np.float32) for _ in range(2))
    blends = np.asarray(one * 0.6 + two * 0.4, np.uint8)
    near = np.clip(blends[:600].astype(int) + rng.integers(-4, 5, (600, 32, 32)), 0, 255).astype(np.uint8)
    white, page = (np.repeat(image, 250, axis=0) for image in (np.full((1, 32, 32), 255, np.uint8), blends[:1]))
    pale = white[:50] - np.uint8(1) * (rng.random((50, 32, 32)) < 0.02)
    images = np.concatenate([blends, near, blends[600:900, :, ::-1], white, page, pale, near[:50]])
    return images[rng.permutation(len(images))]


@pytest.mark.parametrize(("seed", "share"), [(0, None), (1, 0.2)])
def test_the_index_finds_the_pairs_that_a_comparison_of_all_finds(seed, share):
    """Both searches with their thresholds, and two sides: the same pairs, though hundreds of images are equal."""
    thumbnails = crowded_thumbnails(seed)
    hashes = np.array([int(perceptual_hash(one), 16) for one in thumbnails], dtype=np.uint64)
    sides = None if share is None else np.random.default_rng(seed).random(len(thumbnails)) < share
    for search in (hash_search(hashes, thumbnails), TurnedSearch(thumbnails).search):
        of_rows = sides if sides is None else sides[: len(search.vectors)]
        found = np.concatenate(list(search.pairs(of_rows)))
        expected = np.concatenate(list(search.compare_all(of_rows)))
        assert len(expected) > 2000
        assert found[np.lexsort(found.T[::-1])].tolist() == expected[np.lexsort(expected.T[::-1])].tolist()


@pytest.mark.parametrize("num_rows", [0, 1, 2, 40])
def test_few_vectors_need_no_index(num_rows):
    """No row, one, and rows that are all equal: each is paired with the 32 that follow it."""
    same = np.zeros(num_rows, np.float32)
    search = NearVectors(
        np.ones((num_rows, 3), np.float32), 1.0, lambda _: lambda one, _: (np.arange(len(one)), same[one])
    )
    found = sorted(pair for piece in search.pairs() for pair in map(tuple, piece.tolist()))
    assert found == [(one, other) for one in range(num_rows) for other in range(one + 1, min(num_rows, one + 33))]


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_a_minute():
    """Candidates among 100,000 blended thumbnails: bounded pieces, in time."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (5000, 6, 6), dtype=np.uint8)
    base = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in base])
    thumbnails = np.empty((100_000, 32, 32), np.uint8)
    for start in range(0, len(thumbnails), 10_000):
        one, two = (base[rng.integers(0, 5000, 10_000)].astype(np.float32) for _ in range(2))
        weight = rng.uniform(0.2, 0.8, (10_000, 1, 1)).astype(np.float32)
        thumbnails[start : start + 10_000] = one * weight + two * (1 - weight)
    hashes = np.array([int(perceptual_hash(one), 16) for one in thumbnails], dtype=np.uint64)
    with threadpool_limits(1):  # threads of a matrix product that wait for a busy machine count as work
        began = time.process_time()  # of this process: the machine may be busy
        pieces = [len(piece) for piece in hash_search(hashes, thumbnails).pairs()]
        pieces += [len(piece) for piece, _ in TurnedSearch(thumbnails).pairs()]
        seconds = time.process_time() - began
    assert max(pieces) <= 512 * 32
    assert seconds < 60
