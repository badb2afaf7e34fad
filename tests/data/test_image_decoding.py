import io
import struct
import threading
import warnings
import zlib
from contextlib import suppress

import imagehash
import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from pharmclf.config import ConfigError
from pharmclf.data.decoded_image import Crop
from pharmclf.data.image_decoding import InvalidImageError, decode, decode_upright, prepare_image, read_image_info
from pharmclf.data.pillow_decoder import PillowWarningFilter

RNG = np.random.default_rng(0)


def smooth(width, height, seed=0):
    """A picture with slopes and edges, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow_rule(content, size):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_every_format_gives_what_pillow_gives(kind):
    """Formats other than JPEG are Pillow's pixels under the resize rule, to the last bit."""
    content = encode(smooth(90, 60), kind)
    decoded = decode(content, 48)
    assert decoded.shape == (48, 48, 3)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pillow_rule(content, 48))
    described = read_image_info(content, f"a.{kind.lower()}")
    assert (described.width, described.height, described.format, described.wrong_extension) == (90, 60, kind, False)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_by_turbo_is_pillows_within_a_few_levels(subsampling):
    """A JPEG that is not scaled down differs from Pillow's pixels by rounding only."""
    content = encode(smooth(200, 150), "JPEG", quality=90, subsampling=subsampling)
    gap = np.abs(decode(content, 112).astype(int) - pillow_rule(content, 112))
    assert gap.max() <= 4


def test_the_scaled_decode_leaves_the_decision_to_the_resize_rule():
    """Decoding 1600 pixels at a smaller DCT scale moves the result by less than a level on average."""
    content = encode(smooth(1600, 1200), "JPEG", quality=95)
    gap = np.abs(decode(content, 224).astype(int) - pillow_rule(content, 224))
    assert gap.mean() < 0.6
    assert gap.max() <= 8


def test_a_part_of_a_large_photo_keeps_the_pixels_of_the_file():
    """A scaled decode would blur a product of an eighth of the side: it is decoded large enough for the part."""
    photo = smooth(1600, 1200).copy()
    photo[600:750, 800:1000] = np.random.default_rng(0).integers(0, 2, (150, 200, 1), np.uint8) * 255
    content = encode(photo, "JPEG", quality=95, subsampling=0)
    found = decode(content, 100, crop=Crop(0.5, 0.5, 0.125))
    expected = Image.fromarray(photo).resize((100, 100), Image.Resampling.BILINEAR, (800, 600, 1000, 750))
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 6
    whole = Image.fromarray(decode(content, 400)).resize((100, 100), Image.Resampling.BILINEAR, (200, 200, 250, 250))
    assert np.abs(found.astype(int) - np.asarray(whole)).mean() > 20


def test_grey_and_progressive_jpegs_are_rgb():
    """Grey JPEGs come as three equal channels, progressive ones as any other."""
    grey = decode(encode(smooth(64, 64)[:, :, 0], "JPEG"), 32)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    content = encode(smooth(64, 64), "JPEG", progressive=True)
    assert np.abs(decode(content, 32).astype(int) - pillow_rule(content, 32)).max() <= 4


def test_cmyk_jpegs_keep_their_colours():
    """CMYK falls back to Pillow, which knows the inverted inks of Adobe."""
    red = Image.new("RGB", (40, 40), (220, 30, 30)).convert("CMYK")
    assert np.abs(decode(encode(red, "JPEG", quality=95), 32).astype(int) - [220, 30, 30]).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind, orientation):
    """The picture stands upright whatever the tag says, and width and height are those of the upright picture."""
    upright = smooth(96, 64)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores the picture in that orientation
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encode(stored, kind, exif=exif, **options)
    gap = np.abs(decode(content, 32).astype(int) - decode(encode(upright, "PNG"), 32))
    assert gap.max() <= (12 if kind == "JPEG" else 1)
    crop = Crop(0.5, 0.25, 0.25)
    part = decode(encode(upright[16:32, 48:72], "PNG"), 32)
    gap = np.abs(decode(content, 32, crop=crop).astype(int) - part)[2:-2, 2:-2]  # the rim sees its neighbours
    assert gap.max() <= (12 if kind == "JPEG" else 1)
    described = read_image_info(content, f"a.{kind.lower()}")
    assert (described.width, described.height) == (96, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_for_people_keeps_its_aspect_and_is_upright_and_never_enlarged(kind):
    pixels = smooth(600, 300)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    shown = decode_upright(encode(pixels, kind, exif=exif), 100)
    assert shown.shape == (100, 50, 3)
    expected = np.asarray(Image.fromarray(np.rot90(pixels, -1)).resize((50, 100), Image.Resampling.LANCZOS))
    assert np.abs(shown.astype(int) - expected).mean() < 4
    assert decode_upright(encode(pixels, kind), 1000).shape == (300, 600, 3)


def test_a_damaged_exif_block_does_not_cost_the_image():
    """Rubbish behind the Exif mark is ignored, without a warning."""
    content = encode(smooth(64, 48), "JPEG")
    rubbish = b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(range(256))
    broken = content[:2] + b"\xff\xe1" + struct.pack(">H", len(rubbish) + 2) + rubbish + content[2:]
    assert np.array_equal(decode(broken, 32), decode(content, 32))


def test_transparency_is_laid_on_white():
    """Transparent pixels become white: with an alpha channel, in a palette, and as one transparent colour."""
    layer = np.zeros((32, 32, 4), np.uint8)
    layer[:16] = (200, 0, 0, 255)
    half = encode(layer, "PNG")
    for content in (half, encode(Image.fromarray(layer).convert("LA"), "PNG"), encode(layer, "WEBP", lossless=True)):
        pixels = decode(content, 32)
        assert (pixels[20:] == 255).all()
        assert (pixels[:12] != 255).any()
    palette = Image.fromarray(layer[..., :3]).convert("P")
    assert (decode(encode(palette, "PNG", transparency=palette.getpixel((0, 20))), 32)[20:] == 255).all()
    assert (decode(encode(palette, "PNG", transparency=bytes([0] * 256)), 32) == 255).all()


def test_32_bit_pixels_are_scaled_by_their_range():
    """Floats 0..1 and integers up to 65535 fill 0..255; what has no known range is refused."""
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    for wide in (ramp, (ramp * 65535).astype(np.int32)):
        assert np.abs(decode(encode(Image.fromarray(wide), "TIFF"), 64)[0, :, 1] - np.linspace(0, 255, 64)).max() <= 1
    with pytest.raises(InvalidImageError, match="pixel values"):
        decode(encode(Image.fromarray(ramp - 5), "TIFF"), 64)


def test_of_a_gif_the_first_frame_counts():
    """An animation is its first frame."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content, 32) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_truncated_file_is_found(kind, share):
    """A file cut off anywhere in its pixels is refused by probe and by decode."""
    pixels = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    content = encode(pixels, kind)
    cut = content[: int(len(content) * share)]
    for read in (lambda: read_image_info(cut, "a.jpg"), lambda: decode(cut, 32)):
        with pytest.raises(InvalidImageError, match=r"truncated|unreadable"):
            read()


def test_reasons_name_what_is_wrong():
    """Empty, foreign and damaged files are told apart."""
    jpeg = encode(smooth(64, 64), "JPEG")
    for content, reason in [
        (b"", "^empty$"),
        (b"<html>not found</html>", "^no image$"),
        (b"BM is how this text begins", "no image|unreadable|truncated"),
        (jpeg[:300], "^truncated$"),
        (b"GIF89a" + bytes(30), "unreadable|truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "unreadable|truncated"),
    ]:
        with pytest.raises(InvalidImageError, match=reason):
            read_image_info(content, "a.jpg")


def png_header(width, height):
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99)))
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_side(jpeg, side, frame=b"\xff\xc0"):
    """A JPEG whose header claims another size."""
    changed, place = bytearray(jpeg), jpeg.index(frame)
    changed[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(changed)


def test_too_many_pixels_are_refused_by_the_header_with_the_bound_of_this_tool(monkeypatch):
    """A PNG by its full size, a progressive JPEG by its coefficients; the variable in the message raises the bound."""
    progressive = with_side(encode(smooth(16, 16), "JPEG", progressive=True), 15_000, b"\xff\xc2")
    for content in (png_header(12_000, 12_000), progressive):
        with pytest.raises(
            InvalidImageError, match="megapixels to decode; the bound of this tool is 100, PHARMCLF_MAX_MEGAP"
        ):
            read_image_info(content, "a.png")
    monkeypatch.setenv("PHARMCLF_MAX_MEGAPIXELS", "150")
    with pytest.raises(InvalidImageError, match=r"^truncated$|unreadable: broken"):
        read_image_info(png_header(12_000, 12_000), "a.png")
    monkeypatch.setenv("PHARMCLF_MAX_MEGAPIXELS", "many")
    with pytest.raises(ConfigError, match="PHARMCLF_MAX_MEGAPIXELS: received 'many', expected a number of megapixels"):
        read_image_info(encode(smooth(16, 16), "JPEG"), "a.jpg")


def test_a_jpeg_is_judged_by_the_size_that_is_decoded(monkeypatch):
    """Twelve megapixels under a bound of one: read, and upright, at the scale that the target wants."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = smooth(3000, 4000)
    content = encode(Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)
    whole = decode(content, 224)
    monkeypatch.setenv("PHARMCLF_MAX_MEGAPIXELS", "1")
    assert np.array_equal(decode(content, 224), whole)
    small = Image.fromarray(upright).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.abs(whole.astype(int) - np.asarray(small)).mean() < 1
    assert (read_image_info(content, "a.jpg").width, read_image_info(content, "a.jpg").height) == (3000, 4000)
    with pytest.raises(
        InvalidImageError, match="4000x3000 pixels, 7 megapixels to decode; the bound of this tool is 1"
    ):
        decode(content, 1000)


def test_pillow_scales_the_jpegs_that_it_decodes_and_that_are_too_large(monkeypatch):
    """CMYK of twelve megapixels under a bound of one: red all over, and not a bomb for Pillow's own bound either."""
    content = encode(Image.new("RGB", (4000, 3000), (220, 30, 30)).convert("CMYK"), "JPEG", quality=95)
    monkeypatch.setenv("PHARMCLF_MAX_MEGAPIXELS", "1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert np.abs(decode(content, 32).astype(int) - [220, 30, 30]).max() <= 6
    assert Image.MAX_IMAGE_PIXELS == 1_000_000


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_mark_is_read_and_one_cut_in_its_pixels_is_not(mode, options):
    """One or both of the last two bytes: the same pixels, and the probe says so. One more: truncated."""
    content = encode(Image.fromarray(smooth(96, 64)).convert(mode), "JPEG", **options)
    assert not read_image_info(content, "a.jpg").without_end
    for count in (1, 2):
        assert np.array_equal(decode(content[:-count], 32), decode(content, 32))
        assert read_image_info(content[:-count], "a.jpg").without_end
    for count in (3, 10, 100):
        for cut in (content[:-count], content[:-count] + b"\xff"):
            with pytest.raises(InvalidImageError, match=r"^truncated$"):
                decode(cut, 32)


def test_a_progressive_jpeg_that_is_cut_between_two_scans_is_truncated():
    """It would decode without a complaint, but coarse: every scan but the last is whole."""
    content = encode(smooth(96, 64), "JPEG", progressive=True)
    ends = [place for place in range(len(content)) if content.startswith(b"\xff\xda", place)]
    assert len(ends) > 5
    tables = [content.rindex(b"\xff\xc4", 0, place) for place in ends[1:]]  # each scan has a table of its own
    for cut in tables:
        with pytest.raises(InvalidImageError, match=r"^truncated$"):
            decode(content[:cut], 32)


def test_a_png_with_megabytes_of_text_is_read():
    """Twenty, compressed, as editors keep their history; Pillow's own bound is as before afterwards."""
    history = PngImagePlugin.PngInfo()
    history.add_text("XML:com.adobe.xmp", "x" * (20 << 20), zip=True)
    plain = Image.fromarray(smooth(64, 48))
    bounds = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    assert np.array_equal(decode(encode(plain, "PNG", pnginfo=history), 32), decode(encode(plain, "PNG"), 32))
    assert bounds == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_photos_of_phones_are_read(kind):
    """Upright whatever their EXIF says, transparency on white, whatever the name; cut, they are truncated."""
    pillow_heif.register_heif_opener()
    upright = smooth(96, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(
        Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), kind, quality=95, exif=exif.tobytes()
    )
    described = read_image_info(content, "IMG_0001.jpg")
    assert (described.width, described.height, described.format, described.wrong_extension) == (96, 64, kind, True)
    assert not read_image_info(content, {"HEIF": "a.HEIC", "AVIF": "a.avif"}[kind]).wrong_extension
    assert np.abs(decode(content, 32).astype(int) - decode(encode(upright, "PNG"), 32)).mean() < 4
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:32] = (200, 0, 0, 255)
    assert decode(encode(layer, kind, quality=95), 32)[20:].min() > 250
    for share in (0.4, 0.7, 0.9):
        with pytest.raises(InvalidImageError, match=r"^truncated$"):
            decode(content[: int(len(content) * share)], 32)


def test_a_video_named_like_an_image_is_none():
    """MP4 begins as HEIC does, with another brand."""
    with pytest.raises(InvalidImageError, match=r"^no image$"):
        read_image_info(b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(100), "a.heic")


def test_a_wrong_extension_is_noted_and_read():
    """A PNG called .jpg decodes, and the probe says so; a name without extension claims nothing."""
    content = encode(smooth(40, 40), "PNG")
    assert read_image_info(content, "a.jpg").wrong_extension
    assert not read_image_info(content, "a.PNG").wrong_extension
    assert not read_image_info(content, "a").wrong_extension


def test_the_hash_is_that_of_imagehash():
    """Of an image that is not scaled down, the hash equals imagehash.phash."""
    for seed in range(5):
        content = encode(smooth(120, 100, seed), "PNG")
        with Image.open(io.BytesIO(content)) as image:
            assert read_image_info(content, "a.png").phash == str(imagehash.phash(image))


def test_pillows_warnings_are_silenced_and_others_are_not():
    """Inside, warnings of Pillow vanish, in several threads at once; afterwards the filters are as before."""
    before = list(warnings.filters)
    palette = encode(Image.new("P", (32, 32)), "PNG", transparency=bytes(256))
    threads = [threading.Thread(target=lambda: [decode(palette, 32) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    with PillowWarningFilter(), pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_rubbish_behind_any_header_never_raises_anything_else():
    """Fuzz: bytes flipped in good files either decode or raise InvalidImageError."""
    pillow_heif.register_heif_opener()
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "HEIF", "AVIF"):
        content = encode(smooth(48, 40), kind)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            broken = np.frombuffer(content, np.uint8).copy()
            broken[rng.integers(4, len(broken), 6)] = rng.integers(0, 256, 6)
            with suppress(InvalidImageError):
                assert decode(broken.tobytes(), 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("RGB", "TIFF")]
)
def test_an_image_that_pillow_has_opened_has_the_pixels_of_its_file(mode, kind):
    """Of every mode and orientation, for formats that Pillow decodes."""
    image = Image.fromarray(smooth(90, 60))
    if mode == "I;16":
        image = Image.fromarray(smooth(90, 60)[:, :, 0].astype(np.uint16) * 200)
    elif mode != "RGB":
        image = image.convert(mode)
    if mode == "RGBA":
        image.putalpha(120)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(image, kind, exif=exif)
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(prepare_image(opened, 48), decode(content, 48))


def test_an_opened_image_that_is_cut_is_invalid():
    """Pillow reads pixels late; what it then finds is the reason."""
    content = encode(smooth(200, 200), "PNG")
    with Image.open(io.BytesIO(content[:-2000])) as opened, pytest.raises(InvalidImageError, match="unreadable"):
        prepare_image(opened, 48)
