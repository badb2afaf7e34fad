"""Class probabilities of many images: decoded in Ray tasks, predicted by a pool of actors that load the models once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from pharmclf import storage
from pharmclf.data.stream import checked, in_order, load_block, load_images
from pharmclf.model.device import prepare_device
from pharmclf.quiet import native_chatter_muted

_BATCH = 64


class Predictor:
    """Saved models, loaded once; they share the decoding of every image."""

    def __init__(self, models: Sequence[str]) -> None:
        """Load the models.

        Args:
            models: locations of `.keras` files that map raw 0..255 RGB to probabilities.
        """
        with native_chatter_muted():
            import keras
            import tensorflow as tf

            prepare_device(deterministic=False)
        self._run = []
        for location in models:
            with storage.local_file(location) as path:
                model = keras.saving.load_model(path, compile=False, safe_mode=True)
            self._run.append(tf.function(lambda images, model=model: model(images, training=False)))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict a batch: `image` (n, S, S, 3) uint8 -> `probabilities` (n, models, classes); other columns stay."""
        images = batch["image"].astype(np.float32)
        count = len(images)
        if count < _BATCH:  # one shape, one graph
            images = np.concatenate([images, np.zeros((_BATCH - count, *images.shape[1:]), np.float32)])
        probabilities = np.stack([run(images).numpy()[:count] for run in self._run], axis=1)
        return {name: column for name, column in batch.items() if name != "image"} | {"probabilities": probabilities}


def predict(
    models: Sequence[str], paths: Sequence[str], rows: np.ndarray, image_size: int, *, actors: int, gpus: bool = False
) -> np.ndarray:
    """Predict rows of a manifest with one or more models, reading every image once.

    Args:
        models: locations of saved models.
        paths: location of every row of the manifest.
        rows: (n,) the rows to predict.
        image_size: S, side of the models' input in pixels.
        actors: processes that predict; 0: this one.
        gpus: whether each of them takes a GPU.

    Returns:
        (n, models, classes) float32 probabilities, in the order of `rows`.

    Raises:
        ValueError: an image cannot be read any more.
        PermissionError, StorageUnavailable: the storage gives nothing at all.
    """
    if actors == 0:
        predictor = Predictor(models)
        parts = []
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            images = load_images([paths[row] for row in part], image_size)
            parts.append(predictor({"row": part, "image": images})["probabilities"])
        return np.concatenate(parts)
    return _predict_on_ray(models, paths, rows, image_size, actors, gpus)


def _predict_on_ray(
    models: Sequence[str], paths: Sequence[str], rows: np.ndarray, image_size: int, actors: int, gpus: bool
) -> np.ndarray:
    def decode_rows(block: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"row": block["row"]} | load_block([str(path) for path in block["path"]], image_size)

    items = [{"row": int(row), "path": paths[row]} for row in rows]
    pool = min(actors, max(1, len(rows) // _BATCH))
    with native_chatter_muted():
        decoded = in_order(ray.data.from_items(items, override_num_blocks=-(-len(items) // _BATCH)), None).map_batches(
            decode_rows, batch_size=None, num_cpus=0.5
        )
        predicted = decoded.map_batches(
            Predictor,
            fn_constructor_args=(list(models),),
            batch_size=_BATCH,
            compute=ray.data.ActorPoolStrategy(size=pool),
            num_cpus=0.5,
            num_gpus=1 if gpus else 0,
        )
        found = [checked(part) for part in predicted.iter_batches(batch_size=None, batch_format="numpy")]
    order = {int(row): place for place, row in enumerate(np.concatenate([part["row"] for part in found]))}
    probabilities = np.concatenate([part["probabilities"] for part in found])
    return probabilities[[order[int(row)] for row in rows]]
