"""The classifier on the features, and the model that is saved."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pharmclf.config import ConfigError, HeadConfig

pytestmark = pytest.mark.tf
HEADS = [HeadConfig(dense=(16, 8), dropout=0.3), HeadConfig(dense=(), dropout=0.5), HeadConfig(dense=(5,), dropout=0)]
FEATURES = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def heads() -> Any:
    """The module, imported with TensorFlow."""
    from pharmclf.models import head

    return head


@pytest.mark.parametrize("config", HEADS)
def test_initial_weights_are_a_function_of_the_seed(heads: Any, config: HeadConfig):
    """One seed gives the same weights whatever was built before, another seed others; no two layers share theirs."""
    first = heads.build_head(config, 12, 4, 3).get_weights()
    heads.build_head(config, 12, 4, 99)
    again = heads.build_head(config, 12, 4, 3).get_weights()
    other = heads.build_head(config, 12, 4, 4).get_weights()
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.ndim == 1 or not np.array_equal(one, three)  # biases begin at 0
    paths = [weight.path for weight in heads.build_head(config, 12, 4, 3).weights]
    assert paths == [weight.path for weight in heads.build_head(config, 12, 4, 3).weights]


@pytest.mark.parametrize("config", HEADS)
def test_without_dropped_units_training_equals_inference(heads: Any, config: HeadConfig):
    """Masks of ones give the head's own logits; its dropout layers are found with their widths and rates."""
    head = heads.build_head(config, 12, 4, 0)
    shapes = heads.dropout_shapes(head)
    assert shapes == [(units, config.dropout) for units in config.dense or (12,)]
    keep = [np.ones((len(FEATURES), units), np.float32) for units, _ in shapes]
    expected = np.asarray(head(FEATURES, training=False))
    assert expected.shape == (6, 4)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.asarray(heads.apply_head(head, FEATURES, keep)), expected, atol=1e-6)


def test_a_dropped_unit_has_no_effect(heads: Any):
    """With a unit's mask at 0 its outgoing weights do not matter; with masks of 2 a linear head doubles."""
    head = heads.build_head(HEADS[0], 12, 4, 0)
    keep = [np.ones((6, 16), np.float32), np.ones((6, 8), np.float32)]
    keep[0][:, 5] = 0
    before = np.asarray(heads.apply_head(head, FEATURES, keep))
    kernel = head.get_layer("head_dense1").kernel
    changed = np.asarray(kernel).copy()
    changed[5] = 100.0
    kernel.assign(changed)
    np.testing.assert_allclose(np.asarray(heads.apply_head(head, FEATURES, keep)), before, atol=1e-5)
    linear = heads.build_head(HEADS[1], 12, 4, 0)
    twice = np.asarray(heads.apply_head(linear, FEATURES, [np.full((6, 12), 2, np.float32)]))
    np.testing.assert_allclose(twice, 2 * np.asarray(linear(FEATURES)), atol=1e-5)


def test_logits_are_float32_in_mixed_precision(heads: Any):
    """The softmax of the reference is in float32, whatever the layers before compute in."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = heads.build_head(HEADS[0], 12, 4, 0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert head.get_layer("head_dense0").compute_dtype == "float16"
    keep = [np.ones((6, 16), np.float32), np.ones((6, 8), np.float32)]
    assert str(np.asarray(heads.apply_head(head, FEATURES, keep)).dtype) == "float32"
    assert head.get_layer("head_logits").compute_dtype == "float32"


@pytest.mark.parametrize("preprocessing", ["lite0", "caffe", "torch", "tf"])
def test_the_saved_model_loads_without_this_package(heads: Any, tmp_path: Path, preprocessing: str):
    """Raw 0..255 images in, the same probabilities out, summing to 1; the file names nothing but Keras's own."""
    import keras

    from pharmclf.models import backbones

    if preprocessing == "lite0":
        backbone = backbones.build_backbone("efficientnet_lite0", 32, "imagenet")
    else:
        image = keras.Input((32, 32, 3), name="image")
        small = keras.layers.Conv2D(8, 5, 4)(backbones._preprocess(image, preprocessing))
        backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooled")(small))
    head = heads.build_head(HEADS[0], backbone.output.shape[-1], 4, 0)
    model = heads.build_inference_model(backbone, head)
    path = tmp_path / "model.keras"
    model.save(path)
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    found = np.asarray(keras.saving.load_model(path, compile=False, safe_mode=True)(images, training=False))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found.shape, found.dtype) == ((3, 4), np.float32)
    logits = np.asarray(head(backbone(images, training=False), training=False))
    np.testing.assert_allclose(np.log(found) - np.log(found[:, :1]), logits - logits[:, :1], atol=1e-4)
    with zipfile.ZipFile(path) as file:
        modules = set(_modules(json.loads(file.read("config.json"))))
    assert {str(module).split(".")[0] for module in modules} <= {"keras", "builtins"}


def _modules(value: Any) -> list[str]:
    """Every module that a saved configuration names."""
    if isinstance(value, list):
        return [module for item in value for module in _modules(item)]
    if not isinstance(value, dict):
        return []
    own = [value["module"]] if value.get("module") else []
    return own + [module for item in value.values() for module in _modules(item)]


@pytest.mark.parametrize("config", HEADS)
def test_a_head_goes_on_from_that_of_a_saved_model(heads: Any, config: HeadConfig):
    """Labels that both know keep their logits, in any order; a new label keeps its initial weights."""
    import keras

    source = heads.build_head(config, 12, 4, 1)
    image = keras.Input((12,))
    saved = heads.build_inference_model(keras.Model(image, keras.layers.Activation("linear")(image)), source)
    head = heads.build_head(config, 12, 3, 2)
    fresh = head.layers[-1].get_weights()[0][:, 1]
    heads.load_head(head, saved, ["a", "b", "c", "d"], ["d", "new", "b"])
    expected, found = (np.asarray(each(FEATURES, training=False)) for each in (source, head))
    np.testing.assert_array_equal(found[:, [0, 2]], expected[:, [3, 1]])
    np.testing.assert_array_equal(head.layers[-1].get_weights()[0][:, 1], fresh)


def test_a_head_with_other_layers_is_refused_and_left_as_it_was(heads: Any):
    import keras

    source = heads.build_head(HEADS[0], 12, 4, 1)
    image = keras.Input((12,))
    saved = heads.build_inference_model(keras.Model(image, keras.layers.Activation("linear")(image)), source)
    head = heads.build_head(HEADS[2], 12, 4, 2)
    before = head.get_weights()
    with pytest.raises(ConfigError, match=r"hidden layers \[16, 8\] behind its backbone, expected \[5\]"):
        heads.load_head(head, saved, list("abcd"), list("abcd"))
    for one, two in zip(before, head.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "resnet50", "convnext_tiny", "vgg16"])
def test_the_features_of_a_saved_model_are_those_of_its_last_block_and_its_pooling(heads: Any, name: str):
    """In front of the last block and behind it, of length 1; the folded model gives those of the backbone."""
    import keras

    from pharmclf.models.backbone_split import split_tensors
    from pharmclf.models.backbones import build_backbone

    backbone = build_backbone(name, 64, "none")
    head = heads.build_head(HeadConfig(dense=()), backbone.output.shape[-1], 3, seed=0)
    model = heads.build_inference_model(backbone, head)
    outputs = heads.feature_outputs(model)
    before = split_tensors(backbone)[1]
    assert [output.shape[-1] for output in outputs] == [before.shape[-1], backbone.output.shape[-1]]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    found = [np.asarray(part) for part in keras.Model(model.inputs[0], outputs)(images)]
    block, pooled = (np.asarray(part) for part in keras.Model(backbone.inputs[0], [before, backbone.output])(images))
    for part, expected in zip(found, (block.mean(axis=(1, 2)), pooled), strict=True):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(part, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-5)


def test_a_model_of_another_origin_has_no_features(heads: Any):
    import keras

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    assert heads.feature_outputs(keras.Sequential(layers)) == []
