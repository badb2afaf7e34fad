"""Every private part of Keras that the project uses does with the installed version what its function promises."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pharmclf.core.compat import IncompatibleVersionError
from pharmclf.core.compat.keras import (
    PreReducedGradients,
    TensorRates,
    flatten_layers,
    fresh_layer_names,
    run_graph,
    tensor_source,
)

pytestmark = pytest.mark.tf


def test_a_tensor_is_followed_to_the_layers_that_make_it():
    first = keras.Input((3,))
    second = keras.Input((3,))
    total = keras.layers.Add(name="total")([first, second])
    scaled = keras.layers.Rescaling(2.0, name="scaled")(total)
    operation, sources = tensor_source(scaled)
    assert operation.name == "scaled"
    assert sources[0] is total
    operation, sources = tensor_source(total)
    assert operation.name == "total"
    assert sources[0] is first
    assert sources[1] is second
    assert not tensor_source(first)[1]


def test_the_layers_of_nested_models_and_layers_are_found():
    inner = keras.Sequential([keras.layers.Dense(2, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.TimeDistributed(inner, name="outer")], name="model")
    assert {layer.name for layer in flatten_layers(model)} >= {"model", "outer", "inner", "deep"}


def test_a_graph_runs_with_another_call_in_place_of_each_layer():
    inputs = keras.Input((3,))
    doubled = keras.layers.Rescaling(2.0, name="doubled")(inputs)
    model = keras.Model(inputs, [keras.layers.Add(name="total")([doubled, inputs]), doubled])
    called = []

    def call(layer: Any, *arguments: Any) -> Any:
        called.append(layer.name)
        return arguments[0] if layer.name == "doubled" else layer(*arguments)

    total, same = run_graph(model, np.ones((1, 3), np.float32), call)
    assert called == ["doubled", "total"]
    assert np.asarray(total).tolist() == [[2, 2, 2]]
    assert same.tolist() == [[1, 1, 1]]


def test_names_begin_as_in_a_new_process_and_continue_afterwards():
    before = keras.layers.ReLU().name
    with fresh_layer_names():
        assert [keras.layers.ReLU().name for _ in range(2)] == ["re_lu", "re_lu_1"]
        assert keras.layers.Identity().name == "identity"
    after = keras.layers.ReLU().name
    number = int(before.removeprefix("re_lu").removeprefix("_") or 0)
    assert after == f"re_lu_{number + 1}"


class _Adam(PreReducedGradients, keras.optimizers.Adam):
    pass


class _SeveralRates(TensorRates, PreReducedGradients, keras.optimizers.Adam):
    def __init__(self, rates: Any, decays: Any) -> None:
        super().__init__(0.0)
        self.rates, self.decays = rates, decays


def test_keras_sums_gradients_over_the_workers_and_the_mixin_prevents_it(monkeypatch: pytest.MonkeyPatch):
    """`all_reduce` is the only way for a gradient to another worker."""
    summed = []

    def all_reduce(_: Any, operation: Any, value: Any, **__: Any) -> Any:
        summed.append(operation)
        return value

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)
    moved = []
    for kind in (keras.optimizers.Adam, _Adam):
        variable = keras.Variable([1.0])
        kind(0.5).apply([tf.constant([2.0])], [variable])
        moved.append(float(variable.numpy()[0]))
        assert len(summed) == 1
    assert moved[0] == moved[1] < 1.0


def test_rates_and_decays_count_for_each_part_of_a_variable():
    """Two rows of one variable move as two variables of two optimizers do, to the last bit."""
    rates, decays = np.array([[0.1], [0.01]], np.float32), np.array([[0.0], [0.3]], np.float32)
    start, gradients = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), [[[0.5, 1.0], [-1.0, 2.0]], [[1.0, 0], [0, 1]]]
    together = keras.Variable(start)
    optimizer = _SeveralRates(tf.Variable(rates), decays)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [together])
    for row in range(2):
        alone = keras.Variable(start[row])
        plain = _Adam(float(rates[row, 0]), weight_decay=float(decays[row, 0]))
        for gradient in gradients:
            plain.apply([tf.constant(gradient[row])], [alone])
        assert np.array_equal(together.numpy()[row], alone.numpy())


def test_an_excluded_variable_does_not_decay():
    variable = keras.Variable(np.ones((1, 1), np.float32))
    optimizer = _SeveralRates(tf.constant([[0.1]]), np.ones((1, 1), np.float32))
    optimizer.exclude_from_weight_decay([variable])
    optimizer.apply([tf.constant([[0.0]])], [variable])
    assert variable.numpy() == 1.0


def test_a_keras_without_the_private_part_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Each as soon as it is used, not by a wrong result."""

    class Optimizer:
        """As of a Keras that has renamed its hooks."""

    with pytest.raises(IncompatibleVersionError, match="Optimizer has no method _all_reduce_sum_gradients"):
        type("Adam", (PreReducedGradients, Optimizer), {})
    with pytest.raises(IncompatibleVersionError, match="_get_current_learning_rate"):
        type("Adam", (TensorRates, Optimizer), {})
    with pytest.raises(IncompatibleVersionError, match="_keras_history"):
        tensor_source(object())
    with pytest.raises(IncompatibleVersionError, match="_flatten_layers"):
        flatten_layers(object())
    monkeypatch.setattr(keras.layers, "Identity", lambda: None)  # one whose name is counted elsewhere
    with pytest.raises(IncompatibleVersionError, match="object_name_uids"), fresh_layer_names():
        pass
