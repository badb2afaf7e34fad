"""A saved model that answers in this process: paths, arrays and Pillow images in, labels with confidences out."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from PIL import Image

from pharmclf.core.errors import ConfigError
from pharmclf.data.decoded_image import Crop, InvalidImageError
from pharmclf.data.image_decoding import decode, prepare_image
from pharmclf.data.image_set import ImageSet
from pharmclf.data.ray_loader import raise_block_error
from pharmclf.evaluation.evaluate import STRANGENESS
from pharmclf.evaluation.predict import predict_stream
from pharmclf.evaluation.predictor import BATCH, Block, Predictor, PredictSpec
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.evaluation.saved_model import SavedModel, load_model_info
from pharmclf.inference.image_listing import ImageListing, list_images
from pharmclf.inference.output_table import TopKOutput
from pharmclf.inference.tolerant_reader import read_images
from pharmclf.monitoring.cores import usable_cores
from pharmclf.runs.evaluation_options import EvaluationOptions

ImageInput: TypeAlias = str | Path | bytes | np.ndarray | Image.Image
"""A location, the content of an image file, the pixels of an image, or an image of Pillow."""
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, BATCH)  # one image must not cost as much as many


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answers for one image."""

    label: str | None
    """The most probable class, also where the model abstains; None where the image cannot be used."""
    confidence: float
    """Calibrated probability of the label, 0..1; 0 where the image cannot be used."""
    abstain: bool
    """A person must look: the confidence is below the threshold, or the image is unknown, or it cannot be used."""
    top: tuple[tuple[str, float], ...]
    """Up to three classes with their calibrated probabilities, the most probable first."""
    possible: tuple[str, ...] = ()
    """The classes that it may be, as `PredictionSets` has them; empty without sets, and for an unusable image."""
    unknown: bool = False
    """It looks like no product that the model was trained on, or as no training image shows one."""
    strangeness: float | None = None
    """How unlike the training images it is; None where the model has no limit for that, or the image cannot be used."""
    path: str | None = None
    """Location of the image; None where its pixels were given."""
    error: str | None = None
    """Why the image cannot be used; None where it can."""


class Model:
    """A saved model, verified when it is opened; TensorFlow is imported, and the weights read, at the first prediction.

    Attributes:
        info: location, labels, image size, and the decision: temperature and threshold.
    """

    info: SavedModel

    def __init__(self, location: str | Path) -> None:
        """Find and verify a model.

        Args:
            location: a run's folder, its `model` folder, a folder of `pharmclf fetch-best`, or a `.keras` file; local
                or s3://.

        Raises:
            ConfigError: no model, no labels, or another sha256 than recorded.
        """
        self.info = load_model_info(str(location))

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.info.labels

    @property
    def threshold(self) -> float | None:
        """Confidence below which the model abstains; None where it has no decision, and never does."""
        return self.info.decision.threshold if self.info.decision else None

    def __repr__(self) -> str:
        return f"Model({self.info.location!r}, {len(self.labels)} classes, {self.info.image_size} px)"

    def predict(self, images: ImageInput | Sequence[ImageInput], *, threshold: float | None = None) -> list[Answer]:
        """Answer for images, in their order.

        Args:
            images: one image or several. A location is that of a file, local or s3://; alone it may also be a folder, a
                prefix or a list with a column `path`. Bytes are the content of an image file. Pixels are uint8 from 0
                to 255: (height, width, 3), or (height, width) for grey, of any size; (n, height, width, 3) is n images.
            threshold: confidence below which the model abstains, 0..1. None: its own.

        Returns:
            One answer per image; that of an image that cannot be used says why.

        Raises:
            ConfigError: nothing at a location, pixels of another type or shape, a threshold that is no number, or a
                model that Keras cannot load.
            StorageUnavailableError: the storage does not answer.
        """
        if threshold is not None and not threshold >= 0:
            raise ConfigError(f"predict: received threshold {threshold}, expected a confidence from 0 to 1")
        if isinstance(images, str | Path):
            return self._predict_listing(list_images(str(images)), threshold)
        if isinstance(images, Image.Image | bytes) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        locations = [str(image) for image in images if isinstance(image, str | Path)]
        from_files = iter(self._predict_files(pa.array(locations, pa.string()), threshold))
        from_pixels = self._predict_pixels([image for image in images if not isinstance(image, str | Path)], threshold)
        return [next(from_files if isinstance(image, str | Path) else from_pixels) for image in images]

    def evaluate(self, data: str | Path = "test", *, name: str = "", out: str | Path = "") -> EvaluationResult:
        """Test the model on labelled images, and write metrics, plots and a report.

        Args:
            data: folder, s3:// prefix or list of labelled images; test or validation: that split of the run's own data.
            name: what the set is called. Empty: the last part of its path.
            out: folder or s3:// prefix of the result. Empty: evaluation/<name>/ in the run's folder.

        Raises:
            ConfigError: no images, no labels that the model knows, or no place for the result.
        """
        from pharmclf.runs.evaluate_model import evaluate_saved_model  # imports matplotlib

        options = EvaluationOptions(model=self.info.location, data=str(data), name=name, out=str(out))
        return evaluate_saved_model(options, lambda _: None)

    @functools.cached_property
    def _spec(self) -> PredictSpec:
        return PredictSpec(
            models=(self.info.location,),
            image_size=self.info.image_size,
            locator_size=self.info.locator_size,
            with_features=self.info.strangeness is not None,
            read=read_images,
            columns=self._output,
            batch_sizes=_BATCH_SIZES,
        )

    @functools.cached_property
    def _output(self) -> TopKOutput:
        return TopKOutput(labels=self.labels, decision=self.info.decision, strangeness=self.info.strangeness)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._spec)

    def _predict_listing(self, listing: ImageListing, threshold: float | None) -> list[Answer]:
        reasons, paths = listing.unreadable, listing.paths.to_pylist()
        readable = [path for place, path in enumerate(paths) if place not in reasons]
        answers = iter(self._predict_files(pa.array(readable, pa.string()), threshold))
        return [
            _no_answer(path, reasons[place]) if place in reasons else next(answers) for place, path in enumerate(paths)
        ]

    def _predict_files(self, paths: pa.Array, threshold: float | None) -> list[Answer]:
        files = ImageSet.of_paths(paths, self.info.white_level)
        stream = predict_stream(self._spec, files, self._predictor) if len(files) else ()
        locations = iter(paths.to_pylist())
        return [answer for block in stream for answer in self._answers(block, threshold, locations)]

    def _predict_pixels(
        self, images: Sequence[bytes | np.ndarray | Image.Image], threshold: float | None
    ) -> Iterator[Answer]:
        for first in range(0, len(images), BATCH):
            some = [image if isinstance(image, bytes) else _to_pillow(image) for image in images[first : first + BATCH]]
            crops: list[Crop | None] = [None] * len(some)
            if self._spec.locator_size:
                pixels, _ = _to_squares(some, self._spec.locator_size, self.info.white_level, crops)
                block = {"image": pixels, "error": np.full(len(some), "")}
                found = raise_block_error(self._predictor.finder(block), ConfigError)["found"]
                crops = [Crop(*place) for place in found.tolist()]
            pixels, bad = _to_squares(some, self._spec.image_size, self.info.white_level, crops)
            block = {"image": pixels, "bad": bad, "error": np.full(len(some), "")}
            yield from self._answers(raise_block_error(self._predictor(block), ConfigError), threshold, repeat(None))

    def _answers(self, block: Block, threshold: float | None, locations: Iterator[str | None]) -> Iterator[Answer]:
        least = self.threshold if threshold is None else threshold
        sets = block.get("possible", np.zeros((len(block["bad"]), 0), bool))
        strangeness = block.get(STRANGENESS, [None] * len(sets))
        columns = block["best"], block["confidence"], block["bad"], sets, self._output.is_unknown(block), strangeness
        for best, confidence, bad, members, unknown, score in zip(*columns, strict=True):
            top = tuple((self.labels[number], float(share)) for number, share in zip(best, confidence, strict=True))
            if bad:
                yield _no_answer(next(locations), str(bad))
            else:
                label, share = top[0]
                yield Answer(
                    label=label,
                    confidence=share,
                    abstain=bool(unknown) or (least is not None and share < least),
                    top=top,
                    possible=tuple(self.labels[number] for number in np.flatnonzero(members)),
                    unknown=bool(unknown),
                    strangeness=None if score is None else float(score),
                    path=next(locations),
                )


def _no_answer(path: str | None, error: str) -> Answer:
    return Answer(label=None, confidence=0.0, abstain=True, top=(), path=path, error=error)


def _to_squares(
    images: Sequence[Image.Image | bytes], size: int, white_level: int, crops: Sequence[Crop | None]
) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) uint8 of images or of parts of them; and (n,) why one cannot be used, "" where it can."""
    pixels, bad = np.zeros((len(images), size, size, 3), np.uint8), [""] * len(images)

    def prepare(place: int) -> None:
        image = images[place]
        try:
            if isinstance(image, bytes):
                pixels[place] = decode(image, size, white_level, crops[place])
            else:
                pixels[place] = prepare_image(image, size, white_level, crops[place])
        except InvalidImageError as error:
            bad[place] = str(error)

    one_by_one = any(isinstance(image, Image.Image) for image in images)  # twice in the list, one would load twice
    with ThreadPoolExecutor(1 if one_by_one else usable_cores()) as pool:
        list(pool.map(prepare, range(len(images))))
    return pixels, np.array(bad)


def _to_pillow(image: np.ndarray | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        received = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ConfigError(
            f"predict: received {received}, expected a path, a Pillow image, or pixels of uint8 (0 to 255)"
        )
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))) or 0 in image.shape:
        raise ConfigError(f"predict: received pixels of shape {image.shape}, expected (height, width, 3)")
    return Image.fromarray(image)
