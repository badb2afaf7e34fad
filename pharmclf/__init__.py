"""Trains and tests classifiers of pharmaceutical images."""

import os

# Keras reads its backend once, when it is first imported; the user's own choice is for other programs
os.environ["KERAS_BACKEND"] = "tensorflow"
