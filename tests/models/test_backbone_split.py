"""Where backbones can be cut: on graphs made by hand, and on networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pharmclf.config import ConfigError
from pharmclf.core.compat.keras import tensor_source
from pharmclf.models.backbone_split import GraphNode, block_ends, split_backbone, split_tensors
from pharmclf.training.feasible import BLOCKS

SIDE = 64  # pixels of the test images


def _graph(*lines: tuple[str, str, int, str]) -> tuple[list[GraphNode], list[str]]:
    """Nodes from (name, names of its inputs, size, kind); kinds: conv, closes, follows, pool."""
    names: list[str] = []
    nodes = []
    for name, inputs, size, kind in lines:
        places = tuple(names.index(source) for source in inputs.split())
        nodes.append(GraphNode(places, size, closes=kind in ("closes", "pool"), follows=kind in ("follows", "pool")))
        names.append(name)
    return nodes, names


def _ends(*lines: tuple[str, str, int, str]) -> list[str]:
    nodes, names = _graph(*lines)
    return [names[place] for place in block_ends(nodes)]


def test_a_chain_of_equal_layers_is_one_block():
    """Without a merge, a pooling or a narrow place nothing ends before the last layer."""
    chain = [("image", "", 3, "conv"), ("a", "image", 8, "conv"), ("b", "a", 8, "conv"), ("c", "b", 8, "conv")]
    assert _ends(*chain) == ["c"]
    assert _ends(("image", "", 3, "conv"), ("a", "image", 8, "conv")) == ["a"]


def test_a_chain_is_cut_behind_its_poolings():
    """As in VGG: convolutions up to and with their pooling are a block."""
    lines = [
        ("image", "", 12, "conv"), ("a1", "image", 64, "conv"), ("a2", "a1", 64, "conv"), ("pool_a", "a2", 16, "pool"),
        ("b1", "pool_a", 32, "conv"), ("b2", "b1", 32, "conv"), ("pool_b", "b2", 8, "pool"),
        ("c1", "pool_b", 16, "conv"),
    ]  # fmt: skip
    assert _ends(*lines) == ["pool_a", "pool_b", "c1"]


def test_a_residual_block_ends_behind_its_activation():
    """Not at the addition that the activation belongs to, and nowhere between two branches that are both alive."""
    lines = [
        ("image", "", 3, "conv"), ("stem", "image", 8, "conv"), ("pool", "stem", 8, "pool"),
        ("a1", "pool", 8, "conv"), ("a1_relu", "a1", 8, "follows"), ("a2", "a1_relu", 8, "conv"),
        ("a_add", "pool a2", 8, "closes"), ("a_relu", "a_add", 8, "follows"),
        ("b1", "a_relu", 16, "conv"), ("b_short", "a_relu", 16, "conv"), ("b_add", "b_short b1", 16, "closes"),
        ("b_relu", "b_add", 16, "follows"), ("top", "b_relu", 4, "follows"),
    ]  # fmt: skip
    assert _ends(*lines) == ["pool", "a_relu", "top"]


def test_an_inverted_bottleneck_without_a_skip_ends_where_it_is_narrow():
    """Expanded, filtered, projected, normalised: the block ends behind the normalisation, wide layers end none."""
    lines = [("image", "", 30, "conv"), ("stem", "image", 20, "conv")]
    before = "stem"
    for block, size in (("a", 4), ("b", 6), ("c", 6)):
        lines += [
            (f"{block}_expand", before, 6 * size, "conv"), (f"{block}_relu", f"{block}_expand", 6 * size, "follows"),
            (f"{block}_depth", f"{block}_relu", 6 * size, "conv"),
            (f"{block}_project", f"{block}_depth", size, "conv"),
            (f"{block}_norm", f"{block}_project", size, "follows"),
        ]  # fmt: skip
        before = f"{block}_norm"
    assert _ends(*lines) == ["a_norm", "b_norm", "c_norm"]


def test_a_gate_ends_nothing():
    """Squeeze-excite: the small tensors of the gate live beside the gated one, and their product closes no block."""
    lines = [
        ("image", "", 30, "conv"), ("wide", "image", 24, "conv"), ("squeeze", "wide", 2, "follows"),
        ("excite", "squeeze", 2, "conv"), ("gated", "wide excite", 24, "conv"), ("project", "gated", 4, "conv"),
        ("norm", "project", 4, "follows"), ("expand", "norm", 24, "conv"), ("last", "expand", 24, "conv"),
    ]  # fmt: skip
    assert _ends(*lines) == ["norm", "last"]


def test_a_dense_block_ends_at_each_concatenation_that_is_alone():
    """Where all that follows reads the concatenation; a tensor read again further up holds the block open."""
    lines = [
        ("image", "", 3, "conv"), ("stem", "image", 8, "conv"), ("a", "stem", 2, "conv"),
        ("cat_a", "stem a", 10, "closes"), ("b", "cat_a", 2, "conv"), ("cat_b", "cat_a b", 12, "closes"),
        ("c", "cat_b", 2, "conv"), ("long", "c cat_a", 12, "closes"),
    ]  # fmt: skip
    assert _ends(*lines) == ["cat_a", "long"]


@pytest.mark.parametrize("pixels", [1, 4, 49])
def test_ends_are_the_same_at_every_image_size(pixels: int):
    """The last block's projection is no end of its own, not even where its map is smaller than the pooled features."""
    lines = [
        ("image", "", 30 * pixels, "conv"), ("wide", "image", 24 * pixels, "conv"),
        ("narrow", "wide", 4 * pixels, "conv"), ("expand", "narrow", 24 * pixels, "conv"),
        ("project", "expand", 6 * pixels, "conv"), ("head", "project", 40 * pixels, "conv"),
        ("relu", "head", 40 * pixels, "follows"), ("pooled", "relu", 40, "follows"),
    ]  # fmt: skip
    assert _ends(*lines) == ["narrow", "pooled"]


@functools.cache
def _backbone(name: Any, side: int = SIDE) -> Any:
    from pharmclf.models.backbones import build_backbone

    return build_backbone(name, side, "none")


@pytest.fixture(scope="module", autouse=True)
def _forget_backbones() -> Any:
    yield
    _backbone.cache_clear()


NETWORKS = {  # blocks of each, the pieces below the first boundary counted as one
    "efficientnet_lite0": 16,
    "resnet50": 17,
    "mobilenet_v2": 17,
    "densenet121": 62,
    "vgg16": 5,
    "mobilenet_v3_small": 13,
    "efficientnet_v2_s": 39,
    "efficientnet_v2_m": 56,
    "convnext_small": 36,
    "convnext_base": 36,
}
LARGE = {"efficientnet_v2_s", "efficientnet_v2_m", "convnext_small", "convnext_base"}


@pytest.mark.tf
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]
)
def test_suffix_of_prefix_equals_the_whole_model(name: str):
    """At the top, at the bottom and between; and every weight is in exactly one of the two parts."""
    model = _backbone(name)
    tensors = split_tensors(model)
    spare = int(name.startswith("efficientnet_v2"))  # they have one more at odd sizes of their maps
    assert len(tensors) - 1 == NETWORKS[name] == BLOCKS[name] - spare
    images = np.random.default_rng(0).uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32)
    whole = np.asarray(model(images, training=False))
    for depth in {0, 1, len(tensors) // 2, len(tensors) - 2, len(tensors) - 1}:
        cut = split_backbone(model, depth)
        assert cut.depth == depth
        parts: list[Callable[..., Any]] = [part for part in (cut.prefix, cut.suffix) if part is not None]
        assert len(parts) == (1 if depth in (0, len(tensors) - 1) else 2)
        found: Any = images
        for part in parts:
            found = part(found, training=False)
        np.testing.assert_allclose(np.asarray(found), whole, rtol=1e-5, atol=1e-5)
        held = [id(weight) for part in parts for weight in part.weights]  # type: ignore[attr-defined]
        assert sorted(held) == sorted(id(weight) for weight in model.weights)


@pytest.mark.tf
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2"])
def test_a_network_has_the_same_blocks_at_every_image_size(name: str):
    """A depth measured at 224 pixels means the same layers at 32, where the last maps are a single pixel."""
    tensors = [split_tensors(_backbone(name, side)) for side in (32, SIDE, 224)]
    names = [[tensor_source(tensor)[0].name for tensor in some] for some in tensors]
    assert names[0] == names[1] == names[2]


@pytest.mark.tf
def test_deeper_cuts_train_more():
    """Each block more adds weights to the suffix; none trains nothing and all trains everything."""
    model = _backbone("efficientnet_lite0")
    counts = []
    for depth in range(len(split_tensors(model))):
        suffix = split_backbone(model, depth).suffix
        counts.append(suffix.count_params() if suffix else 0)
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (0, model.count_params())


@pytest.mark.tf
def test_more_blocks_than_there_are_is_refused():
    """The message says how many there are."""
    with pytest.raises(ConfigError) as caught:
        split_backbone(_backbone("vgg16"), 6)
    assert str(caught.value) == (
        "unfreeze_blocks: received 6, but vgg16 has 5 blocks. Give a number from 0 (none) to 5 (all)"
    )


@pytest.mark.tf
def test_ten_blocks_of_resnet50_are_the_nearest_to_the_references_100_layers():
    """As the preset resnet50 says: 94 layers in 9 blocks, 104 in 10."""
    model = _backbone("resnet50")
    counts = []
    for depth in (9, 10):
        suffix = split_backbone(model, depth).suffix
        assert suffix is not None
        counts.append(sum(type(layer).__name__ != "InputLayer" and layer.name != "pooled" for layer in suffix.layers))
    assert counts == [94, 104]
