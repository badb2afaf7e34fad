"""The code with which examples load an image without this package: one text for README, model card and exports."""

from __future__ import annotations

from pharmclf.data.pixel_depth import MAX_VALUE

IMPORTS = "from PIL import Image, ImageOps  # for HEIC: import pillow_heif; pillow_heif.register_heif_opener()"
"""Imports of the function, in addition to numpy as np."""
_LOAD_IMAGE = """\
def load_image(path, side, white={white}):  # RGB as in training: (side, side, 3) uint8
    square = isinstance(side, int)  # else the model takes any size, and crops by itself
    image = Image.open(path)
    image.draft("RGB", (2 * side, 2 * side) if square else None)  # a large JPEG is decoded at a smaller scale
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of 16 or 32 bits; white is the largest value that the camera gives
        grey = np.asarray(image, float)
        if image.mode in "IF" and grey.max() <= 255:
            white = 255 if grey.max() > 1 else 1
        image = Image.fromarray((grey * (255 / white)).round().clip(0, 255).astype("uint8"))
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR) if square else image)"""


def load_image_text(white_level: int = MAX_VALUE) -> str:
    """The function `load_image` as Python, for a model whose images of 16 bits had this white level.

    Its pixels differ from those of `image_decoding.decode` by one level of 256 where a file is turned, and where a
    JPEG is scaled while it is decoded, by half a level on average.
    """
    return _LOAD_IMAGE.format(white=white_level)
