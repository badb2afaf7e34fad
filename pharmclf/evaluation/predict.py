"""Predictions of many images in one stream, in this process or on Ray.

On Ray the images are decoded in tasks and predicted by a pool of actors; in this process threads decode ahead while
TensorFlow predicts. Either way the models are loaded once, and every image is read once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ray
import ray.data

from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.usual_times import LOAD_MODEL_S
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import configure_dataset, raise_block_error
from pharmclf.evaluation.predictor import BATCH, Block, Predictor, PredictSpec
from pharmclf.monitoring.cores import usable_cores
from pharmclf.progress import image_progress

if TYPE_CHECKING:
    from pharmclf.evaluation.gradcam import Explainer

_BLOCK_BYTES = 32 << 20  # pixels decoded by one Ray task: 192 images of 224 px
_AHEAD_BYTES = 256 << 20  # most decoded pixels that wait in this process
_LOCATED_TOGETHER = 16 * BATCH  # images whose products are found before they are classified
_DECODE_CPUS = 0.5  # of a Ray task, so that it also fits where less than one CPU is free


class Predictions(NamedTuple):
    """What `predict` gives for n images, in their order."""

    probabilities: np.ndarray
    """(n, models, classes) float32."""
    bad: np.ndarray
    """(n,) text: why an image cannot be used, so that its probabilities mean nothing, or ""."""
    crops: np.ndarray
    """(n, 3) the part of each image that was looked at, as `ImageSet.crops`."""
    features: tuple[np.ndarray, ...]
    """(n, channels) float16 of the first model, for each of its `feature_outputs`."""


def predict(
    models: Sequence[str],
    images: ImageSet,
    image_size: int,
    locator_size: int = 0,
    *,
    actors: int,
    gpus: bool = True,
    with_features: bool = False,
    check: Callable[[], None] = lambda: None,
    explainer: Explainer | None = None,
) -> Predictions:
    """Predict images with one or more models, reading every image once; where a product is looked for, twice.

    Args:
        models: locations of saved models.
        images: n files.
        image_size: S, side of the models' input in pixels.
        locator_size: as in `PredictSpec`.
        actors: Ray actors that predict; 0: this process.
        gpus: whether available GPUs may be used.
        with_features: whether the features are given.
        check: called before each block; an exception that it raises ends the prediction.
        explainer: of the first model; takes it where this process has loaded it.

    Raises:
        ConfigError: a model cannot be loaded.
        PermissionError, StorageUnavailableError: the storage cannot be read at all.
    """
    what = PredictSpec(models=tuple(models), image_size=image_size, locator_size=locator_size, actors=actors, gpus=gpus)
    what = dataclasses.replace(what, with_features=with_features)
    parts: list[tuple[np.ndarray, ...]] = []
    done = 0
    report = image_progress("predicting")
    with show_activity("loading the model", LOAD_MODEL_S) as loading:
        predictor = None if actors else Predictor(what)
        for block in predict_stream(what, images, predictor):
            loading.begin("")
            check()
            features = sorted(name for name in block if name.startswith("features"))
            parts.append(tuple(block[name] for name in ("probabilities", "bad", "crop", *features)))
            report(done := done + len(block["bad"]), len(images))
    if explainer and predictor:
        explainer.use(predictor.models[0])
    probabilities, bad, crops, *rest = map(np.concatenate, zip(*parts, strict=True))
    return Predictions(probabilities, bad, crops, tuple(rest))


def predict_stream(
    what: PredictSpec, images: ImageSet, predictor: Predictor | None = None
) -> Generator[Block, None, None]:
    """Predict images in one stream.

    Args:
        what: the models, and how they are used.
        images: n files.
        predictor: of `what`, for a prediction in this process; None: the models are loaded.

    Yields:
        The columns of consecutive images, in the order of `images`, every image once; `crop` (n, 3) is the part of each
        that was looked at, as `ImageSet.crops`.

    Raises:
        ConfigError: a model cannot be loaded, or `what.columns` refuses its probabilities.
        ValueError, PermissionError, StorageUnavailableError: as `raise_block_error`.
    """
    if not what.locator_size:
        yield from _predict_located(what, images, predictor)
        return
    # in this process the models stay loaded, so that the first answers need not wait for the place of every product
    step = len(images) if what.actors else _LOCATED_TOGETHER
    predictor = predictor or (None if what.actors else Predictor(what))
    for first in range(0, len(images), max(1, step)):
        yield from _predict_located(what, _locate(what, images.slice(first, step), predictor), predictor)


def _predict_located(what: PredictSpec, images: ImageSet, predictor: Predictor | None) -> Generator[Block, None, None]:
    """As `predict_stream`, where the part of each image is known."""
    if not len(images):
        return
    blocks = _predict_ray(what, images) if what.actors else _predict_local(what, images, predictor)
    done = 0
    with contextlib.closing(blocks):
        for block in blocks:
            count = len(raise_block_error(block, ConfigError)["error"])
            if not np.array_equal(block.pop("place"), np.arange(done, done + count)):
                raise RuntimeError(f"images {done} to {done + count} were returned out of order")
            yield block | {"crop": images.crops_or_whole[done : done + count]}
            done += count
    if done != len(images):
        raise RuntimeError(f"{done} of {len(images)} images were returned")


def _locate(what: PredictSpec, images: ImageSet, predictor: Predictor | None) -> ImageSet:
    """The images with the part that the first model looks at, where it is not known; bad ones stay whole."""
    crops = images.crops_or_whole.copy()
    unknown = np.flatnonzero(np.isnan(crops[:, 0]))
    whole = dataclasses.replace(images, crops=None).select(unknown)
    blocks = list(_predict_located(what.finder, whole, predictor.finder if predictor else None))
    if blocks:
        found, bad = (np.concatenate([block[name] for block in blocks]) for name in ("found", "bad"))
        crops[unknown[bad == ""]] = found[bad == ""]
    return dataclasses.replace(images, crops=crops)


def _read_span(what: PredictSpec, images: ImageSet, first: int, count: int) -> Block:
    """Read images from index `first`, with their indices as the column `place`."""
    span = images.slice(first, count)
    return {"place": np.arange(first, first + len(span))} | what.read(span, what.image_size)


def _predict_local(what: PredictSpec, images: ImageSet, predictor: Predictor | None) -> Generator[Block, None, None]:
    """Predict in this process, with one decoding thread per core."""
    threads = max(1, min(usable_cores(), _AHEAD_BYTES // (BATCH * what.image_size**2 * 3)))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: deque[Future[Block]] = deque()
    firsts = iter(range(0, len(images), BATCH))

    def read_ahead() -> None:
        for first in firsts:
            ahead.append(pool.submit(_read_span, what, images, first, BATCH))
            if len(ahead) > threads:
                return

    try:
        read_ahead()  # while TensorFlow is imported
        predictor = predictor or Predictor(what)
        while ahead:
            block = ahead.popleft().result()
            read_ahead()
            yield predictor(block)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _predict_ray(what: PredictSpec, images: ImageSet) -> Generator[Block, None, None]:
    """Predict on the cluster that this process has joined."""
    batch_bytes = BATCH * what.image_size**2 * 3
    size = BATCH * max(1, min(_BLOCK_BYTES // batch_bytes, -(-len(images) // (BATCH * what.actors))))
    num_blocks = -(-len(images) // size)
    shared = ray.put(images)

    def read_block(block: Block) -> Block:
        return _read_span(what, ray.get(shared), int(block["id"][0]) * size, size)

    resources = ray.cluster_resources()
    tasks = max(1.0, resources.get("CPU", 1.0) * _DECODE_CPUS)  # one per CPU at a time
    source = configure_dataset(ray.data.range(num_blocks, override_num_blocks=num_blocks), tasks)
    predicted = source.map_batches(read_block, batch_size=None, num_cpus=_DECODE_CPUS).map_batches(
        Predictor,
        fn_constructor_args=(what,),
        batch_size=size,  # that of every block but the last: Ray requires a number with GPUs
        compute=ray.data.ActorPoolStrategy(size=min(what.actors, num_blocks)),
        num_cpus=0,  # actors that held all CPUs would wait forever for a decoding task
        num_gpus=1 if what.gpus and resources.get("GPU") else 0,
    )
    with suppress_native_stderr():
        # with prefetching each block would wait for the next, and a killed job would lose it
        yield from predicted.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
