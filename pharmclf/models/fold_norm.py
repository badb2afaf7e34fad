"""Computes a network with its batch normalisation folded into the layers before it.

In inference mode a normalisation multiplies each channel by gamma / sqrt(variance + epsilon) and adds a bias. A layer
that is linear in its kernel does the same with a scaled kernel, and saves reading and writing its output twice. Pairs
are found from the graph, so any backbone is folded where it can be; what cannot be folded is computed as before. The
weights stay those of the plain network: gradients reach kernel, gamma and beta through the scaled kernel.
"""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pharmclf.core.compat.keras import computation_order, run_graph

_KERNELS: dict[type[layers.Layer], str] = {
    layers.Conv2D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv2D: "pointwise_kernel",
    layers.Dense: "kernel",
}
"""Layers that can take up a normalisation, and the kernel that is scaled."""


class FoldedNetwork:
    """Calls a functional model in inference mode, with its normalisation folded; the model itself is not changed."""

    def __init__(self, model: keras.Model, *, frozen: bool) -> None:
        """Find what can be folded.

        Args:
            model: of one input and one output.
            frozen: the weights do not change any more, so that they are folded once; else at every call.
        """
        self._model = model
        self._folds = find_folds(model)
        self._norms = {id(norm) for _, norm in self._folds.values()}
        self._frozen = {key: _folded_weights(*pair) for key, pair in self._folds.items()} if frozen else {}

    def __call__(self, inputs: Any) -> Any:
        """As the model with `training=False`, to rounding."""
        return run_graph(self._model, inputs, self._call_layer)

    def _call_layer(self, layer: Any, *inputs: Any, **options: Any) -> Any:
        if id(layer) in self._norms:
            return inputs[0]
        if id(layer) not in self._folds:
            return layer(*inputs, **options)
        kernel, bias = self._frozen.get(id(layer)) or _folded_weights(*self._folds[id(layer)])
        values = [(_kernel(layer), kernel)]
        if layer.use_bias:
            values.append((layer.bias, bias))
        with keras.StatelessScope(state_mapping=values):
            outputs = layer(*inputs, **options)
        return outputs if layer.use_bias else tf.nn.bias_add(outputs, tf.cast(bias, outputs.dtype))


def fold_normalization(model: keras.Model) -> keras.Model:
    """A model of Keras layers that computes the same without the normalisation that can be folded.

    It shares the layers that stay as they are; the folded ones are new.
    """
    folds = find_folds(model)
    norms = {id(norm) for _, norm in folds.values()}
    new: dict[int, layers.Layer] = {}

    def clone(layer: Any) -> Any:
        if id(layer) not in folds:
            return layer
        return new.setdefault(id(layer), type(layer).from_config({**layer.get_config(), "use_bias": True}))

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        return inputs[0] if id(layer) in norms else layer(*inputs, **options)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer, norm in folds.values():
        kernel, bias = _folded_weights(layer, norm)
        _kernel(new[id(layer)]).assign(kernel)
        new[id(layer)].bias.assign(bias)
        if isinstance(layer, layers.SeparableConv2D):
            new[id(layer)].depthwise_kernel.assign(layer.depthwise_kernel)
    return folded


def load_folded(layer: layers.Layer, norm: layers.BatchNormalization, source: layers.Layer) -> None:
    """Give a layer and its normalisation the function of a layer of `fold_normalization`.

    Raises:
        ValueError: the shapes differ.
    """
    *kernels, bias = source.get_weights()
    layer.set_weights([*kernels, np.zeros_like(bias)] if layer.use_bias else kernels)
    norm.moving_mean.assign(-bias)
    norm.moving_variance.assign(np.full_like(bias, 1.0 - norm.epsilon))
    if norm.scale:
        norm.gamma.assign(np.ones_like(bias))
    if norm.center:
        norm.beta.assign(np.zeros_like(bias))


def find_folds(model: keras.Model) -> dict[int, tuple[layers.Layer, layers.BatchNormalization]]:
    """Layers that can take up the normalisation behind them -> (layer, normalisation), by id of the layer."""
    steps = list(computation_order(model))
    users: dict[int, list[Any]] = {id(output): [None] for output in model.outputs}
    calls = collections.Counter(id(operation) for _, operation, _ in steps)
    for _, operation, sources in steps:
        for source in sources:
            users.setdefault(id(source), []).append(operation)
    folds = {}
    for tensor, operation, _ in steps:
        user = users[id(tensor)][0]
        alone = len(users[id(tensor)]) == 1 and calls[id(operation)] == calls[id(user)] == 1
        if alone and type(operation) in _KERNELS and _is_linear(operation) and _is_on_channels(user, tensor):
            folds[id(operation)] = (operation, user)
    return folds


def _is_linear(layer: Any) -> bool:
    return layer.activation is keras.activations.linear and getattr(layer, "data_format", "") != "channels_first"


def _is_on_channels(layer: Any, inputs: keras.KerasTensor) -> bool:
    return isinstance(layer, layers.BatchNormalization) and layer.axis in (-1, len(inputs.shape) - 1)


def _kernel(layer: Any) -> keras.Variable:
    kernel: keras.Variable = getattr(layer, _KERNELS[type(layer)])
    return kernel


def _folded_weights(layer: Any, norm: layers.BatchNormalization) -> tuple[Any, Any]:
    """Kernel and bias (channels,) with which the layer computes what both compute, float32."""
    scale = tf.math.rsqrt(tf.convert_to_tensor(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale *= norm.gamma
    bias = -norm.moving_mean * scale
    if layer.use_bias:
        bias += layer.bias * scale
    if norm.center:
        bias += norm.beta
    kernel = _kernel(layer)
    # a depthwise kernel is (height, width, channels, multiplier); all others end with their output channels
    per_channel = tf.reshape(scale, kernel.shape[2:]) if isinstance(layer, layers.DepthwiseConv2D) else scale
    return kernel * per_channel, bias
