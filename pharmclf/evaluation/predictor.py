"""Saved models that predict blocks of images."""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf import storage
from pharmclf.core.errors import ConfigError, first_line
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import encode_error, load_block
from pharmclf.models.devices import configure_devices

if TYPE_CHECKING:
    import keras

BATCH = 64
"""Images of one forward pass."""

Block = dict[str, np.ndarray]
"""Columns of consecutive images."""


Features = Sequence[np.ndarray]
"""(n, channels) float16 of n images, for each tensor of `feature_outputs`."""


def all_outputs(probabilities: np.ndarray, features: Features) -> Block:
    """The columns `probabilities`, (n, models, classes) float32, and `features0`, `features1` …, as `Features`."""
    return {"probabilities": probabilities} | {f"features{place}": part for place, part in enumerate(features)}


def place_of_product(places: np.ndarray, _: Features) -> Block:
    """The column `found`: (n, 1, 3) places -> (n, 3)."""
    return {"found": places[:, 0]}


@dataclass(frozen=True, kw_only=True)
class PredictSpec:
    """The models of a prediction, and how they are used."""

    models: tuple[str, ...]
    """Locations of `.keras` files that map raw 0..255 RGB to probabilities."""
    image_size: int
    """Side of the images that they classify, pixels."""
    locator_size: int = 0
    """Side of the images in which the first one looks for the product, pixels; 0: they look at whole images."""
    locates: bool = False
    """Give the place of the product, (n, 1, 3) of `Crop`, and no probabilities."""
    with_features: bool = False
    """Give the features of the first model too, where it has `feature_outputs`."""
    read: Callable[[ImageSet, int], Block] = load_block
    """Reads images as `load_block` does: columns `image`, `bad` and `error`, and any others to pass on."""
    columns: Callable[[np.ndarray, Features], Block] = all_outputs
    """Makes the output columns from (n, models, classes) probabilities and the features. Its ConfigError ends the
    stream."""
    batch_sizes: tuple[int, ...] = (BATCH,)
    """Images of one forward pass, ascending: a batch is padded with black images to the smallest that holds it."""
    actors: int = 0
    """Ray actors that predict; 0: this process."""
    gpus: bool = True
    """Whether available GPUs may be used: one by each actor, the first by this process."""

    @property
    def finder(self) -> PredictSpec:
        """What finds the product in each image, as the column `found` (n, 3) of `ImageSet.crops`."""
        one = dataclasses.replace(self, models=self.models[:1], locates=True, columns=place_of_product)
        return dataclasses.replace(one, image_size=self.locator_size, locator_size=0, with_features=False)


class Predictor:
    """Saved models, loaded once."""

    def __init__(self, what: PredictSpec, models: Sequence[keras.Model] = ()) -> None:
        """Load the models; an error is reported with the first block, since Ray hides the cause of an actor's death.

        Args:
            what: its models, image size, columns and whether GPUs may be used.
            models: the models, where this process has them.
        """
        with suppress_native_stderr():
            import tensorflow  # noqa: F401 - its import writes to stderr

            configure_devices(deterministic=False, gpus=what.gpus, late=True)
        self._what, self._error = what, ""
        self.models: list[keras.Model] = list(models)
        self._forwards: list[Callable[[np.ndarray], Any]] = []
        try:
            self.models = self.models or [_load_model(location) for location in what.models]
            self._forwards = [
                _trace_forward(model, what, features=what.with_features and not place)
                for place, model in enumerate(self.models)
            ]
        except (ConfigError, OSError) as error:
            self._error = encode_error(error)

    @functools.cached_property
    def finder(self) -> Predictor:
        """What finds the products for the models."""
        return Predictor(self._what.finder, self.models[:1])

    def __call__(self, block: Block) -> Block:
        """Predict a block.

        Args:
            block: `image` (n, S, S, 3) uint8, and other columns.

        Returns:
            The other columns and those of the prediction; instead of these an `error` where it fails.
        """
        others = {name: column for name, column in block.items() if name != "image"}
        if not self._error:
            try:
                return others | self._what.columns(*self.predict(block["image"]))
            except ConfigError as error:
                self._error = encode_error(error)
        return others | {"error": np.full(len(block["image"]), self._error)}

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Predict images: (n, S, S, 3) uint8 -> (n, models, classes) float32, and their features."""
        count, sizes = len(images), self._what.batch_sizes
        rest = count % sizes[-1]
        padding = next(size for size in sizes if size >= rest) - rest if rest else 0
        if padding:
            images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        batches = [images[first : first + sizes[-1]] for first in range(0, len(images), sizes[-1])]
        outputs = [[forward(batch) for forward in self._forwards] for batch in batches]  # queued on a GPU
        probabilities = [np.stack([output[0].numpy() for output in row], axis=1) for row in outputs]
        # rounded, so that an image is as strange when it is predicted as when the distances were fitted
        parts = zip(*([part.numpy().astype(np.float16) for part in row[0][1:]] for row in outputs), strict=True)
        return np.concatenate(probabilities)[:count], [np.concatenate(part)[:count] for part in parts]


def _load_model(location: str) -> keras.Model:
    """Load a model; refuse a missing file, and one that Keras cannot load."""
    import keras

    try:
        with storage.local_file(location) as path:
            if not path.is_file():
                raise FileNotFoundError(location)  # Keras would raise a ValueError
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"model: {location} is not there on {socket.gethostname()}. Give one that all nodes see"
        ) from error
    except (PermissionError, storage.StorageUnavailableError):
        raise
    except Exception as error:  # Keras raises nearly anything on a file that is damaged
        raise ConfigError(
            f"model: Keras cannot load {location} ({first_line(error)}). Fetch or train it again"
        ) from error


def _trace_forward(model: keras.Model, what: PredictSpec, *, features: bool) -> Callable[[np.ndarray], list[Any]]:
    """The forward pass for a batch of uint8 images, which are cast to float on the device: output, then features."""
    import keras
    import tensorflow as tf

    from pharmclf.models.backbones import CLASSIFIER, LOCATOR, inner_model
    from pharmclf.models.head import feature_outputs

    part = inner_model(model, LOCATOR if what.locates else CLASSIFIER)
    part = keras.Model(part.inputs[0], [part.outputs[0], *(feature_outputs(part) if features else [])])

    def forward(images: Any) -> Any:
        return tf.nest.flatten(part(tf.cast(images, tf.float32), training=False))  # Keras unpacks a list of one

    length = what.batch_sizes[0] if len(what.batch_sizes) == 1 else None
    batch = tf.TensorSpec((length, what.image_size, what.image_size, 3), tf.uint8)
    # a concrete function per model: TensorFlow would warn of one function that is traced too often
    concrete = tf.function(forward, autograph=False).get_concrete_function(batch)
    return lambda images: concrete(tf.constant(images))
