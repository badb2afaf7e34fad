"""A saved model that is made and loaded in a moment, for tests of what is done with models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def save_small_model(folder: Path, labels: Sequence[str], image_size: int) -> None:
    """Write model.keras, with fixed weights whose answers differ from image to image, and labels.json."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((image_size, image_size, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu", kernel_initializer=_initial(0)),
            keras.layers.MaxPooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(len(labels), activation="softmax", kernel_initializer=_initial(1)),
        ]
    )
    model.save(folder / "model.keras")
    (folder / "labels.json").write_text(json.dumps(list(labels)))


def _initial(seed: int):
    import keras

    return keras.initializers.GlorotNormal(seed)
