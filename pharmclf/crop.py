"""Decides whether a run looks at the product in each image instead of at all of it, and finds the products."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.usual_times import BUILD_MODEL_S, IMPORT_TENSORFLOW_S
from pharmclf.data.decoded_image import LOCATOR_SIZE
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.distributed.controller import connect_for_training
from pharmclf.evaluation.metrics import Estimate, paired_difference
from pharmclf.evaluation.predict import predict_stream
from pharmclf.evaluation.predictor import Predictor, PredictSpec
from pharmclf.models.devices import configure_devices
from pharmclf.progress import image_progress
from pharmclf.reporting.image_sample import evenly_spaced_indices
from pharmclf.runs.record import weights_fingerprint

_SAMPLED = 400  # training images on which it is decided
_CLASSES = 40  # of them, at most
_FOLDS = 4
_LEAST_IMAGES = 40  # of fewer, chance decides
_FOUND_HERE = 5_000  # images; of more, the workers of a cluster find the products, although their start takes a while


def crop_images(config: RunConfig, manifest: Manifest) -> Manifest:
    """The manifest of a run that begins, with the place of the product in each image if looking at it alone helps.

    It helps where a linear classifier on the pretrained network's features, cross-validated on a sample of the training
    images, is right more often; the difference must be distinguishable from none. The last note of the manifest says
    which it is.

    Args:
        config: the run.
        manifest: with splits.

    Raises:
        ConfigError: the weights of the backbone cannot be loaded, or the Ray cluster cannot be joined.
        PermissionError, StorageUnavailableError: the images cannot be read.
    """
    if config.crop == "off":
        return manifest
    if config.weights == "none":
        return _with_note(manifest, "crop: off, since a network with random weights finds no product")
    too_few = _with_note(manifest, "crop: off, since the training images are too few to decide whether it helps")
    sample, files = sample_classes(manifest), ImageSet.of(manifest)
    if len(sample) < _LEAST_IMAGES:
        return too_few
    connect_for_training(config)  # Ray starts while TensorFlow is imported
    finder = _ProductFinder(config)
    crops = finder.find(files.select(sample), "looking for products")
    usable = find_comparable(manifest.table["label"].loc[sample.tolist()].to_numpy(object), crops)
    if usable.sum() < _LEAST_IMAGES:  # files that have changed since, for example
        return too_few
    gain = finder.compare(manifest, sample[usable], crops[usable])
    if not gain.helps:
        return _with_note(manifest, f"crop: off, since looking at a square around the product does not help: {gain}")
    every = np.full((len(manifest.table), 3), np.nan, np.float32)
    rows = manifest.ok.index.to_numpy(np.int64)
    others = np.setdiff1d(rows, sample)
    every[sample], every[others] = crops, finder.find(files.select(others), "finding products")
    side = np.nanmedian(every[rows, 2])
    text = f"crop: on, the model looks at a square around the product, of {side:.0%} of the side in the median image"
    return replace(_with_note(manifest, f"{text}: {gain}"), crops=every)


@dataclass(frozen=True)
class CropGain:
    """Frozen features of whole images and of products, compared on the same images."""

    whole: NDArray[np.bool_]
    """(n,) whether an image on which the classifier was not fitted is right."""
    product: NDArray[np.bool_]
    """The same by the product alone."""
    groups: NDArray[np.int64]
    """(n,) numbers; images of one group are near duplicates."""

    @property
    def difference(self) -> Estimate:
        """Accuracy by the product minus that by the whole image, with its 95 % interval."""
        return paired_difference(self.whole, self.product, self.groups)

    @property
    def helps(self) -> bool:
        """Whether the product alone is better, and not by chance."""
        return self.difference.low > 0

    def __str__(self) -> str:
        change = self.difference
        return (
            f"frozen features of it are right for {self.product.mean():.1%} of {len(self.product):,} training images, "
            f"those of the whole image for {self.whole.mean():.1%} (difference {100 * change.low:.1f} to "
            f"{100 * change.high:.1f} points)"
        )


def sample_classes(manifest: Manifest) -> NDArray[np.int64]:
    """Rows of training images, equally many of each class and of some classes only where there are many."""
    table = manifest.table.loc[manifest.rows("train")]
    rows_of = {name: table.index[table["label"] == name].to_numpy(np.int64) for name in manifest.class_names}
    large = [rows for rows in rows_of.values() if table["group"].loc[rows.tolist()].nunique() >= _FOLDS]
    if len(large) < 2:
        return np.zeros(0, np.int64)
    chosen = [large[place] for place in evenly_spaced_indices(len(large), _CLASSES)]
    each = _SAMPLED // len(chosen)
    return np.sort(np.concatenate([rows[evenly_spaced_indices(len(rows), each)] for rows in chosen]))


def find_comparable(labels: NDArray[np.object_], crops: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,) whether the product of an image is known, and its class has enough such images for every fold."""
    found = ~np.isnan(crops[:, 0])
    names, counts = np.unique(labels[found].astype(str), return_counts=True)
    return found & np.isin(labels.astype(str), names[counts >= _FOLDS])


def cross_validate(
    features: NDArray[np.float32], labels: NDArray[np.object_], groups: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """Whether a linear classifier that was fitted on other images is right for each image.

    Args:
        features: (n, channels).
        labels: (n,) classes.
        groups: (n,) numbers; images of one group are never divided.
        seed: of the folds.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # solved in one step; the penalty suits a thousand features and some hundred images, and a search gains little
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000.0))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(classifier, features, labels, groups=groups, cv=folds) == labels)


class _ProductFinder:
    """The pretrained network in this process, as locator and as feature extractor."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        gpus = config.worker_range[1] == 0 and config.accelerator != "cpu"  # else they are for the workers
        images = PredictSpec(models=(), image_size=config.image_size, locator_size=LOCATOR_SIZE, gpus=gpus)
        self._features = replace(images, locator_size=0)
        with show_activity("importing TensorFlow", IMPORT_TENSORFLOW_S) as activity, suppress_native_stderr():
            from pharmclf.models.backbones import cached_backbone
            from pharmclf.models.fold_norm import fold_normalization
            from pharmclf.models.product_locator import build_locator

            configure_devices(deterministic=False, gpus=gpus, late=True)
            activity.begin("building the model", BUILD_MODEL_S)
            source = config.backbone, config.image_size, config.weights
            backbone = cached_backbone(*source, weights_fingerprint(config))  # for a training in this process too
            self._extractor = Predictor(self._features, [fold_normalization(backbone)])
            self._finder = images.finder
            self._model = build_locator(config.backbone, config.weights)
            self._locator = Predictor(self._finder, [self._model])

    def find(self, images: ImageSet, activity: str) -> NDArray[np.float32]:
        """(n, 3) place of the product in each image; not a number where an image cannot be used."""
        found, report = [], image_progress(activity)
        with contextlib.ExitStack() as stack:
            blocks = predict_stream(self._finder, images, self._locator)
            if self._config.worker_range[1] > 1 and len(images) > _FOUND_HERE:
                blocks = predict_stream(stack.enter_context(self._on_workers()), images)
            for block in blocks:
                found.append(np.where((block["bad"] == "")[:, None], block["found"], np.nan).astype(np.float32))
                report(sum(map(len, found)), len(images))
        return np.concatenate(found)

    @contextlib.contextmanager
    def _on_workers(self) -> Iterator[PredictSpec]:
        """The same with a process for each worker, which reads the model from the storage that all share."""
        from pharmclf.training.save_model import serialize_model

        config = self._config
        location = storage.join(storage.absolute(config.storage), f"locator-{uuid.uuid4().hex}.keras")
        storage.write_bytes(location, serialize_model(self._model))
        try:
            gpus = config.accelerator != "cpu"
            yield replace(self._finder, models=(location,), actors=config.worker_range[1], gpus=gpus)
        finally:
            storage.delete_file(location)

    def compare(self, manifest: Manifest, rows: NDArray[np.int64], crops: NDArray[np.float32]) -> CropGain:
        """Frozen features of some images, whole and cropped."""
        files, table = ImageSet.of(manifest).select(rows), manifest.table.loc[rows]
        labels, groups = table["label"].to_numpy(object), table["group"].to_numpy(np.int64)

        def right(images: ImageSet) -> NDArray[np.bool_]:
            blocks = predict_stream(self._features, images, self._extractor)
            features = np.concatenate([block["probabilities"][:, 0] for block in blocks])
            return cross_validate(features, labels, groups, self._config.seed)

        with show_activity("comparing products with whole images", BUILD_MODEL_S):
            return CropGain(right(files), right(replace(files, crops=crops)), groups)


def _with_note(manifest: Manifest, text: str) -> Manifest:
    return replace(manifest, notes=[*manifest.notes, text])
