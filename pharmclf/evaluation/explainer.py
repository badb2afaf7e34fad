"""Where a saved model looks: Grad-CAM in this process, or in one of Ray's that starts while others predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from pharmclf import storage
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices

_CPUS = 0.1  # it computes behind the predictions, for a second or two


class _GradCamModel:
    """A saved model, loaded once."""

    def __init__(self, location: str) -> None:
        with suppress_native_stderr():
            import keras

            configure_devices(deterministic=False, gpus=False)  # a trained model's process keeps those that it has
            with storage.local_file(location) as path:
                self._model = keras.saving.load_model(path, compile=False, safe_mode=True)

    def heatmaps(self, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
        from pharmclf.evaluation.gradcam import grad_cam

        return grad_cam(self._model, images, class_numbers)


class Explainer:
    """Gives heatmaps of what a saved model looks at."""

    def __init__(self, location: str, *, on_ray: bool) -> None:
        """Begin to load the model, on Ray in the background.

        Args:
            location: of a `.keras` file.
            on_ray: whether it is loaded in a process of Ray's, or in this one when it is first asked.
        """
        self._location = location
        self._local_model: _GradCamModel | None = None
        self._actor: Any = ray.remote(num_cpus=_CPUS, num_gpus=0)(_GradCamModel).remote(location) if on_ray else None

    def heatmaps(self, images: np.ndarray, class_numbers: np.ndarray) -> np.ndarray:
        """Grad-CAM of images for classes.

        Args:
            images: (n, S, S, 3) uint8.
            class_numbers: (n,) integers, the output whose evidence is shown.

        Returns:
            (n, S, S) float32, 0..1.
        """
        if not len(images):
            return np.zeros(images.shape[:3], np.float32)
        if self._actor is not None:
            return ray.get(self._actor.heatmaps.remote(images, class_numbers))
        self._local_model = self._local_model or _GradCamModel(self._location)
        return self._local_model.heatmaps(images, class_numbers)

    def __enter__(self) -> Explainer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
