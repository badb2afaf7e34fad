"""Grad-CAM: the map lies where the evidence is, and is what its definition says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pharmclf.config import BackboneName, HeadConfig

pytestmark = pytest.mark.tf
SIDE = 32


@pytest.fixture(scope="module")
def coloured() -> Any:
    """A model of three classes: red somewhere, blue somewhere, and the absence of red."""
    import keras

    from pharmclf.models.head import build_head, build_inference_model

    image = keras.Input((SIDE, SIDE, 3), name="image")
    seen = keras.layers.Conv2D(2, 4, 4, activation="relu", name="colours")(image)  # (8, 8, 2)
    backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooled")(seen))
    head = build_head(HeadConfig(dense=()), 2, 3, 0)
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[:, :, 0, 0] = kernel[:, :, 2, 1] = 1 / 16  # mean red, mean blue
    backbone.get_layer("colours").set_weights([kernel, np.zeros(2, np.float32)])
    head.get_layer("head_logits").set_weights([np.array([[1, 0, -1], [0, 1, 0]], np.float32), np.zeros(3, np.float32)])
    return build_inference_model(backbone, head)


def corners() -> np.ndarray:
    """One black image with red at the top left and blue at the bottom right."""
    image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    image[0, :8, :8, 0] = image[0, -8:, -8:, 2] = 200
    return image


def noise(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def test_the_map_lies_on_what_speaks_for_the_class(coloured: Any):
    """The same picture: red is found at the top left, blue at the bottom right, and next to nothing elsewhere."""
    from pharmclf.evaluation.gradcam import grad_cam

    red, blue = grad_cam(coloured, np.repeat(corners(), 2, axis=0), np.array([0, 1]))
    for heatmap, inside in ((red, np.s_[:10, :10]), (blue, np.s_[-10:, -10:])):
        assert heatmap[inside].max() == 1
        assert heatmap[inside].sum() > 0.99 * heatmap.sum() > 10


def test_a_class_that_nothing_speaks_for_has_an_empty_map(coloured: Any):
    """What speaks against a class is no evidence: all 0 and finite; so is the map of a black image."""
    from pharmclf.evaluation.gradcam import grad_cam

    images = np.concatenate([corners(), np.zeros((1, SIDE, SIDE, 3), np.uint8)])
    assert not grad_cam(coloured, images, np.array([2, 0])).any()


def test_under_a_linear_head_the_map_is_the_weighted_sum_of_the_channels():
    """Grad-CAM is then CAM (Zhou et al., 2016), each channel weighted by its weight in the head; at any place in a
    batch, over more images than are computed at a time."""
    import keras
    import tensorflow as tf

    from pharmclf.evaluation.gradcam import grad_cam
    from pharmclf.models.head import build_head, build_inference_model

    image = keras.Input((SIDE, SIDE, 3), name="image")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    seen = keras.layers.Conv2D(6, 5, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1))(scaled)
    backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooled")(seen))
    model = build_inference_model(backbone, build_head(HeadConfig(dense=()), 6, 4, 1))
    images, classes = noise(40), np.random.default_rng(1).integers(0, 4, 40)
    kernel = model.get_layer("head").get_layer("head_logits").get_weights()[0]  # (6, 4)
    channels = keras.Model(image, seen)(images.astype(np.float32)).numpy()  # (40, 10, 10, 6)
    evidence = np.maximum(np.einsum("nhwc,cn->nhw", channels, kernel[:, classes]), 0)
    large = tf.image.resize(evidence[..., None], (SIDE, SIDE))[..., 0].numpy()
    found = grad_cam(model, images, classes)
    assert (found.shape, found.dtype) == ((40, SIDE, SIDE), np.float32)
    assert (evidence.max(axis=(1, 2)) > 0).sum() > 5
    peaks = large.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, large / np.where(peaks > 0, peaks, 1), atol=1e-4)


def test_a_saved_model_is_explained_the_same_every_time(tmp_path: Path):
    """A head of several layers, saved and loaded: the same maps bit for bit, none below 0, and 1 where one is."""
    import keras

    from pharmclf.evaluation.gradcam import grad_cam
    from pharmclf.models.head import build_head, build_inference_model

    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    seen = keras.layers.Conv2D(16, 5, 3, name="conv")(keras.layers.Rescaling(1 / 255)(image))
    seen = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(seen))
    backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooled")(seen))
    build_inference_model(backbone, build_head(HeadConfig(dense=(32, 16)), 16, 5, 0)).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    images, classes = noise(10), np.arange(10) % 5
    first, again = (grad_cam(model, images, classes) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.min() >= 0
    peaks = first.max(axis=(1, 2))
    assert set(peaks) <= {0, 1}
    assert peaks.sum() > 3


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(get_args(BackboneName)))
def test_the_backbones_have_a_map_of_places(backbone: Any):
    """The last feature map of each is found: smaller than the image, with places even where Inception pads nothing."""
    from pharmclf.evaluation.gradcam import _split, grad_cam
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head, build_inference_model

    network = build_backbone(backbone, 128, "none")
    model = build_inference_model(network, build_head(HeadConfig(dense=()), network.output.shape[-1], 3, 0))
    below, above = _split(model)
    _, height, width, channels = below.output.shape
    assert 1 < height == width <= 6
    assert channels == network.output.shape[-1]
    images = noise(2, 128)
    expected = np.asarray(model(images.astype(np.float32), training=False))
    logits = np.asarray(above(below(images.astype(np.float32), training=False), training=False))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), expected, atol=1e-5)
    assert grad_cam(model, images, np.array([0, 1])).shape == (2, 128, 128)


def test_what_does_not_fit_is_refused(coloured: Any):
    """Images of another size, a class that is not there, a class too few; and a model without any feature map."""
    import keras

    from pharmclf.evaluation.gradcam import grad_cam

    assert grad_cam(coloured, noise(0), np.zeros(0, int)).shape == (0, SIDE, SIDE)
    for images, classes, words in (
        (noise(1, 16), [0], "images: received shape"),
        (noise(1), [3], "expected 0 to 2"),
        (noise(1), [-1], "expected 0 to 2"),
        (noise(2), [0], "class_numbers: received shape"),
    ):
        with pytest.raises(ValueError, match=words):
            grad_cam(coloured, images, np.array(classes))
    image = keras.Input((SIDE, SIDE, 3))
    flat = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
    with pytest.raises(ValueError, match="no layer of it makes a feature map"):
        grad_cam(flat, noise(1), np.array([0]))
