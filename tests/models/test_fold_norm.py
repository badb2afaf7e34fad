"""Networks with folded normalisation compute what the plain ones compute, and so do their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf.config import BackboneName

pytestmark = pytest.mark.tf

SIDE = 64  # pixels of the test images
FOLDED = {  # normalisations that are folded, of all
    "efficientnet_lite0": (49, 49),
    "resnet50": (53, 53),
    "resnet50v2": (32, 49),
    "mobilenet_v2": (52, 52),
    "mobilenet_v3_large": (46, 46),
    "efficientnet_b0": (49, 49),
    "densenet121": (59, 121),
    "vgg16": (0, 0),
    "convnext_tiny": (0, 0),  # and its larger forms: they have no batch normalisation
    "mobilenet_v3_small": (34, 34),
    "efficientnet_v2_s": (110, 110),
    "efficientnet_v2_m": (157, 157),
}
LARGE = {"efficientnet_v2_s", "efficientnet_v2_m"}
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in FOLDED]
INPUTS = {"xception": 71, "inception_v3": 75}  # their smallest images


def _network(name: BackboneName) -> Any:
    """A backbone with random weights, whose normalisation shifts and scales as that of a trained one."""
    import keras

    from pharmclf.models.backbones import build_backbone

    model = build_backbone(name, INPUTS.get(name, SIDE), "none")
    draw = np.random.default_rng(0)
    # a deep network amplifies: at 0.5 an image that is brighter by 1e-7 gives other features by 70 %
    spread = 0.1 if name in LARGE else 0.5
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(draw.uniform(1 - spread, 1 + spread, variable.shape))
    return model


def _images(model: Any) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (4, *model.input.shape[1:])).astype(np.float32)


def _assert_close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """To a share of the largest number: rounding adds up over some hundred layers."""
    expected = np.asarray(expected, np.float64)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * np.abs(expected).max())


# not efficientnet_v2_m, which has the layers of efficientnet_v2_s: rounding alone changes all its random features
@pytest.mark.parametrize("name", [*NETWORKS[:-1], "inception_v3", "xception"])
def test_a_folded_network_computes_the_same(name: Any):
    """Folded at every call, folded once, and as a model of its own."""
    from pharmclf.models.fold_norm import FoldedNetwork, fold_normalization

    model = _network(name)
    images = _images(model)
    expected = model(images, training=False)
    for folded in (FoldedNetwork(model, frozen=False), FoldedNetwork(model, frozen=True), fold_normalization(model)):
        _assert_close(folded(images), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_normalisation_behind_a_linear_layer_is_folded(name: Any):
    """Those that remain stand before their convolution, or behind a sum."""
    import keras

    from pharmclf.models.fold_norm import fold_normalization

    model = _network(name)
    norms = [sum(isinstance(layer, keras.layers.BatchNormalization) for layer in some.layers)
             for some in (model, fold_normalization(model))]  # fmt: skip
    assert (norms[0] - norms[1], norms[0]) == FOLDED[name]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "densenet121", "xception"])
def test_gradients_reach_kernels_and_normalisation(name: Any):
    """Those of the plain network with respect to its own weights."""
    import tensorflow as tf

    from pharmclf.models.fold_norm import FoldedNetwork

    model = _network(name)
    images = _images(model)
    weights = [variable.value for variable in model.trainable_variables]
    gradients = []
    for network in (lambda x: model(x, training=False), FoldedNetwork(model, frozen=False)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(network(images)))
        gradients.append(tape.gradient(loss, weights))
    for plain, folded in zip(*gradients, strict=True):
        if np.abs(plain).max() > 0:  # none where nothing passes an activation
            _assert_close(folded, plain, 1e-2)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_kept(precision: str):
    """Kernels are scaled in float32; layers compute in the short type."""
    import keras

    from pharmclf.models.fold_norm import FoldedNetwork

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = _network("efficientnet_lite0")
    finally:
        keras.config.set_dtype_policy(before)
    images = _images(model)
    found, expected = FoldedNetwork(model, frozen=False)(images), model(images, training=False)
    assert found.dtype == expected.dtype == precision.removeprefix("mixed_")
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=0.1, atol=0.1)


def test_what_cannot_be_folded_stays():
    """A layer with two users, an activation between, a layer that is called twice."""
    import keras
    from keras import layers

    from pharmclf.models.fold_norm import find_folds, fold_normalization

    inputs = keras.Input((8, 8, 3))
    used_twice = layers.Conv2D(4, 1)(inputs)
    active = layers.Conv2D(4, 1, activation="relu")(inputs)
    shared = layers.Conv2D(4, 1)
    parts = [layers.BatchNormalization()(x) for x in (used_twice, active, shared(inputs), shared(used_twice[..., :3]))]
    model = keras.Model(inputs, layers.Add()([*parts, used_twice]))
    assert find_folds(model) == {}
    images = _images(model)
    np.testing.assert_array_equal(fold_normalization(model)(images), model(images))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "xception"])
def test_a_saved_folded_network_can_be_trained_further(name: Any, tmp_path: Path):
    """Its weights load into the plain network, which then computes the same."""
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.fold_norm import fold_normalization

    model = _network(name)
    fold_normalization(model).save(tmp_path / "folded.keras")
    loaded = build_backbone(name, INPUTS.get(name, SIDE), str(tmp_path / "folded.keras"))
    images = _images(model)
    _assert_close(loaded(images, training=False), model(images, training=False))
