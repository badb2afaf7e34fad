"""Saved models that predict blocks of images."""

from __future__ import annotations

import socket
from collections.abc import Callable
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
"""Images of one forward pass. One shape needs one graph."""

Block = dict[str, np.ndarray]
"""Columns of consecutive images."""


def all_probabilities(probabilities: np.ndarray) -> Block:
    """The column `probabilities`: (n, models, classes) float32."""
    return {"probabilities": probabilities}


@dataclass(frozen=True, kw_only=True)
class PredictSpec:
    """The models of a prediction, and how they are used."""

    models: tuple[str, ...]
    """Locations of `.keras` files that map raw 0..255 RGB to probabilities."""
    image_size: int
    """Side of their input, pixels."""
    read: Callable[[ImageSet, int], Block] = load_block
    """Reads images as `load_block` does: columns `image`, `bad` and `error`, and any others to pass on."""
    columns: Callable[[np.ndarray], Block] = all_probabilities
    """Makes the output columns from (n, models, classes) probabilities. Its ConfigError ends the stream."""
    actors: int = 0
    """Ray actors that predict; 0: this process."""
    gpus: bool = True
    """Whether available GPUs may be used: one by each actor, the first by this process."""


class Predictor:
    """Saved models, loaded once."""

    def __init__(self, what: PredictSpec) -> None:
        """Load the models; an error is reported with the first block, since Ray hides the cause of an actor's death.

        Args:
            what: its models, image size, columns and whether GPUs may be used.
        """
        with suppress_native_stderr():
            import tensorflow  # noqa: F401 - its import writes to stderr

            configure_devices(deterministic=False, gpus=what.gpus, late=True)
        self._columns, self._error = what.columns, ""
        self._models: list[tuple[keras.Model, Callable[[np.ndarray], Any]]] = []
        try:
            self._models = [_load_model(location, what.image_size) for location in what.models]
        except (ConfigError, OSError) as error:
            self._error = encode_error(error)

    @property
    def first_model(self) -> keras.Model:
        """The first of the models, loaded."""
        return self._models[0][0]

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
                return others | self._columns(self.probabilities(block["image"]))
            except ConfigError as error:
                self._error = encode_error(error)
        return others | {"error": np.full(len(block["image"]), self._error)}

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Predict images: (n, S, S, 3) uint8 -> (n, models, classes) float32."""
        count = len(images)
        padding = -count % BATCH
        if padding:
            images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
        outputs = [[forward(batch) for _, forward in self._models] for batch in batches]  # queued on a GPU
        return np.concatenate([np.stack([output.numpy() for output in row], axis=1) for row in outputs])[:count]


def _load_model(location: str, image_size: int) -> tuple[keras.Model, Callable[[np.ndarray], Any]]:
    """A model, and its forward pass for a batch of uint8 images, which are cast to float on the device.

    Raises:
        ConfigError: a missing file, or one that Keras cannot load.
        OSError: the storage cannot be read.
    """
    import keras
    import tensorflow as tf

    try:
        with storage.local_file(location) as path:
            if not path.is_file():
                raise FileNotFoundError(location)  # Keras would raise a ValueError
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
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

    def forward(images: Any) -> Any:
        return model(tf.cast(images, tf.float32), training=False)

    batch = tf.TensorSpec((BATCH, image_size, image_size, 3), tf.uint8)
    # a concrete function per model: TensorFlow would warn of one function that is traced too often
    concrete = tf.function(forward, autograph=False).get_concrete_function(batch)
    return model, lambda images: concrete(tf.constant(images))
