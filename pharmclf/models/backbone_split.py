"""Splits a backbone into a frozen prefix and a trained suffix.

A cut is at a tensor on which all later ones depend, so that suffix(prefix(x)) equals the model. Among these tensors
the ends of blocks are used: after a merge of branches (a residual block), or where the tensor is smaller than its
neighbours (an inverted bottleneck without a skip, a pooling). They are found from the graph, not from layers' names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharmclf.core.compat.keras import computation_order, tensor_source
from pharmclf.core.errors import ConfigError

if TYPE_CHECKING:
    import keras


_READ_WRITE_COST = 20.0  # fits measured times of folded prefixes of three backbones on a CPU to some 20 %


@dataclass(frozen=True)
class GraphNode:
    """One tensor of a graph in topological order."""

    inputs: tuple[int, ...]
    """Indexes of the nodes it is computed from; empty for the input."""
    size: int
    """Elements per image."""
    closes: bool = False
    """Computed by an addition or concatenation of branches, or by a pooling."""
    follows: bool = False
    """Computed by a layer that belongs to the one before it: normalisation, nonlinearity, pooling, padding."""
    macs: int = 0
    """Multiply-adds of its layer per image."""


def block_ends(nodes: Sequence[GraphNode]) -> list[int]:
    """Indexes of the nodes after which a block ends, in order; the last node is always the last. Pure."""
    last_use = list(range(len(nodes)))
    for place, node in enumerate(nodes):
        for source in node.inputs:
            last_use[source] = place
    # alone: everything computed later depends only on this tensor
    reach, alone = -1, []
    for place in range(len(nodes)):
        if reach <= place:  # no earlier tensor is used beyond this one
            alone.append(place)
        reach = max(reach, last_use[place])
    consumers: list[list[GraphNode]] = [[] for _ in nodes]
    closing: list[bool] = []  # of a block, directly or followed only by normalisation and nonlinearity
    for node in nodes:
        for source in node.inputs:
            consumers[source].append(node)
        closing.append(node.closes or (node.follows and len(node.inputs) == 1 and closing[node.inputs[0]]))
    # a cut never separates a layer from its normalisation or nonlinearity
    free = [p for p in alone if p > 0 and not (len(consumers[p]) == 1 and consumers[p][0].follows)]
    # the output is pooled: it counts as the smallest, so that ends are the same at every image size
    sizes = [node.size for node in nodes[:-1]] + [0]
    ends = []
    for i, place in enumerate(free):
        before = next((sizes[p] for p in reversed(free[:i]) if sizes[p] != sizes[place]), None)
        after = next((sizes[p] for p in free[i + 1 :] if sizes[p] != sizes[place]), None)
        narrow = (before is None or sizes[place] < before) and (after is None or sizes[place] < after)
        if closing[place] or (narrow and before is not None):
            ends.append(place)
    return ends if ends and ends[-1] == len(nodes) - 1 else [*ends, len(nodes) - 1]


def _graph(model: keras.Model) -> tuple[list[GraphNode], list[keras.KerasTensor]]:
    """The tensors of a functional model of one input and one output, in the order of computation."""
    from keras import layers  # slow to import, and `block_ends` does not need it

    poolings = (layers.MaxPooling2D, layers.AveragePooling2D)
    followers = (
        *poolings, layers.GlobalAveragePooling2D, layers.BatchNormalization, layers.LayerNormalization,
        layers.Normalization, layers.Rescaling, layers.Activation, layers.ReLU, layers.Dropout, layers.ZeroPadding2D,
    )  # fmt: skip
    places: dict[int, int] = {}
    nodes: list[GraphNode] = []
    tensors: list[keras.KerasTensor] = []
    for tensor, operation, sources in computation_order(model):
        places[id(tensor)] = len(nodes)
        size = math.prod(tensor.shape[1:])
        inputs = tuple(places[id(source)] for source in sources)
        # a product of branches gates one of them (squeeze-excite) and ends nothing
        merges = len(inputs) > 1 and type(operation).__name__ != "Multiply"
        follows = isinstance(operation, followers) or (len(inputs) == 1 and not getattr(operation, "weights", ()))
        positions = size // (tensor.shape[-1] or 1)
        kernels = [weight for weight in getattr(operation, "weights", ()) if len(weight.shape) > 1]
        macs = positions * sum(math.prod(kernel.shape) for kernel in kernels)
        nodes.append(GraphNode(inputs, size, merges or isinstance(operation, poolings), follows, macs))
        tensors.append(tensor)
    return nodes, tensors


@dataclass(frozen=True)
class BackboneSplit:
    """A backbone in two parts."""

    depth: int
    """Blocks in the suffix, counted from the top."""
    prefix: keras.Model | None
    """Frozen: image -> tensor at the cut. None where the full backbone is trained."""
    suffix: keras.Model | None
    """Trained: tensor at the cut -> pooled features. None where the full backbone is frozen."""

    @property
    def trained(self) -> list[keras.Variable]:
        """The trained variables of the backbone."""
        return self.suffix.trainable_variables if self.suffix else []


@dataclass(frozen=True)
class SplitCost:
    """The cost of computing and caching the tensor at a cut."""

    shape: tuple[int, ...]
    """Of the tensor for one image."""
    work: float
    """Of the prefix for one image: multiply-adds, and `_READ_WRITE_COST` of them for each computed element, since
    element-wise layers wait for memory."""


def split_costs(model: keras.Model) -> list[SplitCost]:
    """The cost of every cut of a backbone: entry d is the cut of unfreeze depth d, entry 0 the full backbone."""
    from pharmclf.models.fold_norm import find_folds  # imports TensorFlow, which `block_ends` does not need

    nodes, tensors = _graph(model)
    folded = {id(norm) for _, norm in find_folds(model).values()}
    work, total = {}, 0.0
    for node, tensor in zip(nodes, tensors, strict=True):
        if node.inputs and id(tensor_source(tensor)[0]) not in folded:
            total += node.macs + _READ_WRITE_COST * node.size
        work[id(tensor)] = total
    return [SplitCost(tuple(tensor.shape[1:]), work[id(tensor)]) for tensor in split_tensors(model)]


def split_tensors(model: keras.Model) -> list[keras.KerasTensor]:
    """The tensors at which the backbone can be cut: entry d is the cut of unfreeze depth d."""
    nodes, tensors = _graph(model)
    ends = block_ends(nodes)[:-1]
    return [tensors[-1], *(tensors[place] for place in reversed(ends)), tensors[0]]


def split_backbone(model: keras.Model, depth: int) -> BackboneSplit:
    """Cut a backbone `depth` blocks below its top.

    Raises:
        ConfigError: more blocks than the backbone has.
    """
    import keras

    tensors = split_tensors(model)
    check_depth(model.name, len(tensors) - 1, depth)
    prefix = None if depth == len(tensors) - 1 else keras.Model(model.input, tensors[depth], name="prefix")
    suffix = None if depth == 0 else keras.Model(tensors[depth], model.output, name="suffix")
    return BackboneSplit(depth, prefix, suffix)


def check_depth(name: str, blocks: int, depth: int) -> None:
    """Raise a ConfigError for a depth of more than `blocks`."""
    if depth > blocks:
        raise ConfigError(
            f"unfreeze_blocks: received {depth}, but {name} has {blocks} blocks. "
            f"Give a number from 0 (none) to {blocks} (all)"
        )
