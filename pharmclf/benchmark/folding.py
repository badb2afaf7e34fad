"""Benchmark of folded batch normalisation: the forward pass and the gradients of a network, plain and folded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from pharmclf.benchmark.measure import Report
from pharmclf.config import BackboneName, RunConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices_for, device_name

if TYPE_CHECKING:
    from keras import Model

_FORWARD: tuple[BackboneName, ...] = ("efficientnet_lite0", "mobilenet_v2", "resnet50")
_STEP: tuple[BackboneName, Sequence[int]] = ("efficientnet_lite0", (8, 11))  # blocks that are trained
_ROUNDS = 6


def benchmark_folding(config: RunConfig, say: Say) -> Report:
    """Measure images/s with and without folding, turn by turn, on noise and random weights.

    Args:
        config: batch size and image size.

    Returns:
        rows: for each network and kind ("forward", or the number of trained blocks) `plain` and `folded` images/s, and
        `ratio`, how many times as fast the folded one is.
    """
    with suppress_native_stderr():
        import tensorflow as tf

        from pharmclf.models.backbones import build_backbone

        configure_devices_for(config)
    side = config.image_size
    images = tf.random.uniform((config.batch_size, side, side, 3), maxval=255.0, seed=0)
    rows: list[Report] = []

    def add(backbone: BackboneName, kind: str, plain: Callable[[], Any], folded: Callable[[], Any]) -> None:
        before, after = (config.batch_size / seconds for seconds in _best_seconds([plain, folded]))
        ratio = after / before
        rows.append({"backbone": backbone, "kind": kind, "plain": before, "folded": after, "ratio": ratio})
        say(f"{backbone:<20} {kind:<17} plain {before:7.1f}  folded {after:7.1f} images/s  {ratio:.2f}x")

    for backbone in _FORWARD:
        add(backbone, "forward", *_forwards(build_backbone(backbone, side, "none"), images))
    backbone, depths = _STEP
    for depth in depths:
        add(backbone, f"{depth} blocks trained", *_steps(build_backbone(backbone, side, "none"), depth, images))
    return {"rows": rows, "batch_size": config.batch_size, "image_size": side, "device": device_name()}


def _forwards(model: Any, images: Any) -> list[Callable[[], Any]]:
    """The forward pass through the plain and through the folded network, in inference."""
    import tensorflow as tf

    from pharmclf.models.fold_norm import FoldedNetwork

    folded = FoldedNetwork(model, frozen=True)
    plain = tf.function(lambda: model(images, training=False), autograph=False)
    return [plain, tf.function(lambda: folded(images), autograph=False)]


def _steps(model: Any, depth: int, images: Any) -> list[Callable[[], Any]]:
    """The gradients of the upper blocks, on top of the frozen ones, plain and folded."""
    import tensorflow as tf

    from pharmclf.models.backbone_split import split_backbone
    from pharmclf.models.fold_norm import FoldedNetwork

    cut = split_backbone(model, depth)
    prefix, suffix = cast("Model", cut.prefix), cast("Model", cut.suffix)  # neither none nor all blocks are trained
    weights = [variable.value for variable in cut.trained]

    def step(frozen: Callable[[Any], Any], trained: Callable[[Any], Any]) -> Callable[[], Any]:
        def gradients() -> Any:
            features = frozen(images)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(trained(features)))
            return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, weights)])

        traced: Callable[[], Any] = tf.function(gradients, autograph=False)
        return traced

    plain = step(lambda x: prefix(x, training=False), lambda x: suffix(x, training=False))
    return [plain, step(FoldedNetwork(prefix, frozen=True), FoldedNetwork(suffix, frozen=False))]


def _best_seconds(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """The least time of each call; they take turns, so that other load of the machine does not meet one of them."""
    best = [float("inf")] * len(calls)
    for number in range(_ROUNDS + 1):
        for place, call in enumerate(calls):
            began = time.perf_counter()
            call().numpy()
            if number:  # the first one traces
                best[place] = min(best[place], time.perf_counter() - began)
    return best
