"""Random batches, for measurements of time and memory."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pharmclf.config import RunConfig
from pharmclf.data.augment import draw_augmentations
from pharmclf.training.train_step import Batch


def synthetic_batch(config: RunConfig, images: int) -> Batch:
    """A batch of a single worker, on the device."""
    side, rows = config.image_size, np.arange(images)
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    return Batch(
        tf.constant(pixels),
        tf.constant(draw_augmentations(config.augment, side, config.seed, 0, rows)),
        tf.zeros(images, tf.int64),
        tf.ones(images),
        tf.ones(images),
        tf.constant(float(config.batch_size)),
        tf.constant(0, tf.int64),
    )
