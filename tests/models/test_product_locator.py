"""The product in a photo is found by a pretrained network, and a model that crops does so by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.small_products import SIDE, draw_photo

from pharmclf.data.decoded_image import LOCATOR_SIZE, Crop
from pharmclf.data.image_decoding import resize

pytestmark = pytest.mark.tf

CLASSIFIED = 48  # pixels, side of what the classifier sees


@pytest.fixture(scope="module")
def locator() -> Any:
    from pharmclf.models.product_locator import build_locator

    return build_locator("efficientnet_lite0", "imagenet")


@pytest.fixture(scope="module")
def model(locator: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A saved model that crops, as Keras loads it without this package."""
    import keras

    from pharmclf.models.backbones import CLASSIFIER
    from pharmclf.models.product_locator import build_cropping_model

    keras.utils.set_random_seed(0)
    image = keras.Input((CLASSIFIED, CLASSIFIED, 3))
    features = keras.layers.Conv2D(8, 5)(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("gelu")(features))
    classifier = keras.Model(image, keras.layers.Dense(4, activation="softmax")(pooled), name=CLASSIFIER)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build_cropping_model(locator, classifier).save(path)
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def find(locator: Any, photos: list[Image.Image]) -> np.ndarray:
    images = np.stack([resize(np.asarray(photo), LOCATOR_SIZE) for photo in photos])
    return np.asarray(locator(images.astype(np.float32), training=False))


def test_a_small_product_is_found_wherever_it_lies(locator: Any):
    """Its centre lies in the square of every photo, and nearly all of it; the square is a small part of the photo."""
    draw = np.random.default_rng(3)
    drawn = [draw_photo("A", draw) for _ in range(24)]
    squares = find(locator, [photo for photo, _ in drawn])
    covered = []
    for (left, top, side), (_, [box]) in zip(squares, drawn, strict=True):
        start, end = np.array([left, top]) * SIDE, np.array([left + side, top + side]) * SIDE
        low, high = np.array(box[:2]), np.array(box[2:])
        inside = np.maximum(0, np.minimum(end, high) - np.maximum(start, low)).prod()
        covered.append(inside / (high - low).prod())
    assert np.mean(covered) > 0.95
    assert min(covered) > 0.6
    assert np.median(squares[:, 2]) < 0.5


def test_several_products_get_one_square_around_all(locator: Any):
    """Most of their centres lie in it."""
    draw = np.random.default_rng(4)
    drawn = [draw_photo("A", draw, count=3) for _ in range(12)]
    squares = find(locator, [photo for photo, _ in drawn])
    inside = []
    for (left, top, side), (_, boxes) in zip(squares, drawn, strict=True):
        centres = (np.array(boxes)[:, :2] + np.array(boxes)[:, 2:]) / (2 * SIDE)
        offsets = centres - [left, top]
        inside += ((offsets >= 0) & (offsets <= side)).all(axis=1).tolist()
    assert np.mean(inside) > 0.8


def test_an_image_on_which_nothing_lies_is_seen_whole(locator: Any):
    """Empty tables with a grain, black and white: neither grain nor the padding of the network passes for a product."""
    draw = np.random.default_rng(9)
    photos = [draw_photo("", draw, count=0)[0] for _ in range(12)]
    photos += [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("black", "white")]
    assert (find(locator, photos) == [0, 0, 1]).all()


def test_squares_lie_in_the_image(locator: Any):
    """Noise, stripes and photos: 0 <= left, top and left + side, top + side <= 1."""
    draw = np.random.default_rng(5)
    photos = [Image.fromarray(draw.integers(0, 256, (40, 70, 3), np.uint8)) for _ in range(8)]
    photos += [draw_photo("B", draw, share=share)[0] for share in (0.05, 0.3, 0.8)]
    squares = find(locator, photos)
    assert np.isfinite(squares).all()
    assert (squares[:, :2] >= 0).all()
    assert (squares[:, 2] > 0).all()
    assert (squares[:, :2] + squares[:, 2:] <= 1 + 1e-6).all()


@pytest.mark.parametrize("size", [(320, 320), (517, 333), (90, 120)])
def test_a_model_that_crops_answers_as_its_classifier_on_the_cropped_image(model: Any, size: tuple[int, int]):
    """Of any size and aspect ratio: the pixels that it crops are those of decoding, to a level of 256."""
    from pharmclf.models.backbones import CLASSIFIER, LOCATOR, inner_model

    draw = np.random.default_rng(6)
    photos = [draw_photo("X", draw)[0].resize(size) for _ in range(4)]
    found = np.asarray(model(np.stack(photos).astype(np.float32), training=False))
    squares = find(inner_model(model, LOCATOR), photos)
    assert squares[:, 2].max() < 0.9
    pairs = zip(photos, squares.tolist(), strict=True)
    cropped = np.stack([resize(np.asarray(photo), CLASSIFIED, Crop(*square)) for photo, square in pairs])
    expected = np.asarray(inner_model(model, CLASSIFIER)(cropped.astype(np.float32), training=False))
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["savedmodel", "onnx", "tflite", "openvino"])
def test_an_exported_model_crops_images_of_any_size(model: Any, name: Any, tmp_path: Path):
    """The layers inside the classifier are converted too, of which ONNX lacks one."""
    from pharmclf.export.convert import write_model
    from pharmclf.export.convertible_model import make_convertible
    from pharmclf.export.runtime_check import predict_in_runtime

    write_model(make_convertible(model), name, tmp_path / "exported")
    pixels = np.stack([np.asarray(draw_photo("A", np.random.default_rng(seed))[0]) for seed in range(3)])[:, :, 20:]
    found, seen, _ = predict_in_runtime(name, tmp_path / "exported", pixels)
    assert np.abs(found.probabilities - np.asarray(model(pixels.astype(np.float32), training=False))).max() < 1e-4
    assert seen["input"]["shape"] == ([1, 1, 1, 3] if name == "tflite" else [None, None, None, 3])


def test_the_crop_in_the_model_has_the_pixels_of_decoding():
    """For given squares: at most a level of 256, in few pixels, where an image is reduced and where it is enlarged."""
    import keras

    from pharmclf.models.product_locator import _resize

    image, square = keras.Input((None, None, 3)), keras.Input((3,))
    cropping = keras.Model([image, square], _resize(image, CLASSIFIED, square))
    draw = np.random.default_rng(7)
    pixels = draw.integers(0, 256, (3, 211, 307, 3), np.uint8)
    squares = np.array([[0.1, 0.2, 0.3], [0.5, 0.05, 0.5], [0.7, 0.75, 0.15]], np.float32)
    found = np.asarray(cropping([pixels.astype(np.float32), squares]))
    for one, place, crop in zip(found, pixels, squares.tolist(), strict=True):
        difference = np.abs(one - resize(place, CLASSIFIED, Crop(*crop)))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "vgg16", "inception_v3"])
def test_every_backbone_can_look_for_products(name: Any):
    """With random weights: a square for each image, by cells of some 16 pixels."""
    from pharmclf.models.product_locator import build_locator

    squares = find(build_locator(name, "none"), [draw_photo("A", np.random.default_rng(8))[0]])
    assert squares.shape == (1, 3)
    assert 0 < squares[0, 2] <= 1


def test_models_without_a_crop_are_their_own_classifier(tmp_path: Path):
    import keras

    from pharmclf.models.backbones import CLASSIFIER, LOCATOR, inner_model

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    assert inner_model(model, CLASSIFIER) is inner_model(model, LOCATOR) is model
