"""Private parts of Keras. Nothing here imports Keras before it is called."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pharmclf.core.compat import IncompatibleVersionError, private_parts

# ----------------------------------------------------------------------- models


def tensor_source(tensor: Any) -> tuple[Any, Sequence[Any]]:
    """The operation that makes a tensor of a functional model, and its input tensors; none for an input of the model.

    `keras.Model` walks its graph by the same attributes, and offers no public way to do so.
    """
    with private_parts("keras"):
        operation, node, _ = tensor._keras_history
        return operation, operation._inbound_nodes[node].input_tensors


def computation_order(model: Any) -> Iterator[tuple[Any, Any, Sequence[Any]]]:
    """The tensors of a functional model, sources first: (tensor, its operation, the tensors it uses)."""
    done: set[int] = set()
    pending = [(output, False) for output in reversed(model.outputs)]
    while pending:
        tensor, expanded = pending.pop()
        if id(tensor) in done:
            continue
        operation, sources = tensor_source(tensor)
        if not expanded:
            pending.append((tensor, True))
            pending.extend((source, False) for source in reversed(sources))
            continue
        done.add(id(tensor))
        yield tensor, operation, sources


def flatten_layers(model: Any) -> Iterator[Any]:
    """A model and all layers in it, those of nested models and layers too.

    The public `layers` of a model is one level deep, and a layer that holds others has no such attribute.
    """
    with private_parts("keras"):
        flatten: Callable[[], Iterator[Any]] = model._flatten_layers
    return flatten()


def run_graph(model: Any, inputs: Any, call: Callable[..., Any]) -> Any:
    """Compute a functional model with `call(layer, *arguments)` in place of each call of a layer.

    The public `keras.models.clone_model` does so with symbolic tensors, and makes a new model.
    """
    with private_parts("keras"):
        run: Callable[..., Any] = model._run_through_graph
    return run(inputs, call_fn=call)


@contextlib.contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Number the names of unnamed layers from the beginning, as in a new process; continue as before after the block.

    The public `keras.utils.clear_session` resets more than names, and cannot be undone.
    """
    import keras

    with private_parts("keras"):
        from keras.src.backend.common import global_state

        before = global_state.get_global_attribute("object_name_uids")
        used: collections.defaultdict[str, int] = collections.defaultdict(int)
        global_state.set_global_attribute("object_name_uids", used)
    try:
        keras.layers.Identity()
        if not used:
            raise IncompatibleVersionError("keras", "the names of layers are no longer counted in object_name_uids")
        used.clear()
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


# ------------------------------------------------------------------- optimizers


class PreReducedGradients:
    """Mixin for a Keras optimizer whose gradients are already summed over the workers.

    Keras sums them once more in `apply`, under any strategy of TensorFlow, and no argument turns that off.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_inherited(cls, PreReducedGradients, "_all_reduce_sum_gradients")

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class TensorRates:
    """Mixin for a Keras optimizer whose learning rate and weight decay are tensors that broadcast over each variable.

    The public `learning_rate` and `weight_decay` are one number for all elements of a variable.
    """

    rates: Any
    """Learning rates, float32."""
    decays: Any
    """Weight decays, float32; None: no decay."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_inherited(cls, TensorRates, "_get_current_learning_rate", "_apply_weight_decay", "_use_weight_decay")

    def _get_current_learning_rate(self) -> Any:
        return self.rates

    def _apply_weight_decay(self, variables: Any) -> None:
        if self.decays is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):  # type: ignore[attr-defined]
                variable.value.assign_sub(variable.value * self.decays * self.rates)


def _check_inherited(cls: type, mixin: type, *names: str) -> None:
    """Check that the methods which a mixin overrides or calls exist.

    Raises:
        IncompatibleVersionError: no base class after the mixin has a method of that name.
    """
    bases = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    for name in names:
        if not any(name in vars(base) for base in bases):
            raise IncompatibleVersionError("keras", f"{bases[0].__name__} has no method {name}")
