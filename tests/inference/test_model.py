"""A saved model in this process: what it answers for files, arrays and Pillow images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_model import save_small_model

from pharmclf.config import ConfigError, HeadConfig
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.demo import MARKER
from pharmclf.data.image_decoding import decode
from pharmclf.data.image_set import ImageSet
from pharmclf.evaluation.abstention_policy import fit_policy, write_policy
from pharmclf.evaluation.predict import predict
from pharmclf.evaluation.strangeness import fit_strangeness
from pharmclf.inference.job import predict_images
from pharmclf.inference.model import Answer, Model
from pharmclf.inference.options import PredictOptions

pytestmark = [pytest.mark.tf]
SIZE = 64
LABELS = [f"product {number}" for number in range(10)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, LABELS, SIZE)
    return Model(folder)


@pytest.fixture(scope="module")
def paths(drawn_images: str) -> list[str]:
    return sorted(str(path) for path in Path(drawn_images).rglob("*.jpg"))


def close(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same but for rounding and the location."""
    return one.label == other.label and bool(np.isclose(one.confidence, other.confidence, atol=1e-5))


def test_files_are_answered_as_the_table_of_predictions_says(model: Model, paths: list[str], tmp_path: Path):
    """Label, confidence, next answers and abstention of `predict`, image by image."""
    import pandas as pd

    location = tmp_path / "table.parquet"
    options = PredictOptions(
        model=model.info.location,
        input=str(Path(paths[0]).parent),
        output=str(location),
        threshold=0.2,
        num_workers="0",
    )
    assert predict_images(options, print) == 0
    table = pd.read_parquet(location)
    answers = model.predict(list(table["path"]), threshold=0.2)
    assert [answer.label for answer in answers] == list(table["label"])
    assert [answer.abstain for answer in answers] == list(table["abstain"])
    np.testing.assert_allclose([answer.confidence for answer in answers], table["confidence"], atol=1e-6)
    assert [answer.top[2][0] for answer in answers] == list(table["label_3"])
    assert [answer.path for answer in answers] == list(table["path"])


@pytest.fixture(scope="module")
def limited(drawn_images: str, paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with a limit that was fitted on the drawn images."""
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head, build_inference_model

    folder = tmp_path_factory.mktemp("limited")
    backbone = build_backbone("mobilenet_v3_small", SIZE, "none")
    head = build_head(HeadConfig(dense=(16,)), 576, len(LABELS), seed=0)
    build_inference_model(backbone, head).save(folder / "model.keras")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    found = predict([str(folder / "model.keras")], ImageSet.of_paths(paths), SIZE, actors=0, with_features=True)
    classes = np.unique([Path(path).parent.name for path in paths], return_inverse=True)[1]
    score = fit_strangeness(found.features, classes, found.features)
    assert score is not None
    scores = score(found.features)
    decision = fit_policy(found.probabilities[:, 0], classes, np.arange(len(paths)), 0.01, scores)
    assert decision.unknown is not None
    content = score.to_bytes()
    (folder / "strangeness.npz").write_bytes(content)
    unknown = dataclasses.replace(decision.unknown, limit=float(scores.max()), sha256=sha256_bytes(content))
    write_policy(dataclasses.replace(decision, threshold=0.0, unknown=unknown), str(folder / "decision.json"))
    return Model(folder)


def test_an_image_of_no_known_product_is_unknown_and_not_answered(limited: Model, paths: list[str], tmp_path: Path):
    """By its path, by its pixels, and in the table of predictions; the drawn images are answered."""
    import pandas as pd

    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(noise).save(folder / "noise.png")
    shutil.copy(paths[0], folder / "a.jpg")
    known, strange = limited.predict(folder)
    assert (known.unknown, known.abstain, strange.unknown, strange.abstain) == (False, False, True, True)
    assert known.strangeness is not None
    assert strange.strangeness is not None
    assert strange.strangeness > known.strangeness
    assert limited.predict(noise)[0].strangeness == pytest.approx(strange.strangeness, rel=1e-6)
    assert limited.predict(folder, threshold=0.0)[1].abstain, "a threshold is for the confidence alone"
    location = tmp_path / "table.parquet"
    options = PredictOptions(
        model=limited.info.location, input=str(folder), output=str(location), num_workers="0", threshold=None
    )
    assert predict_images(options, print) == 0
    table = pd.read_parquet(location)
    assert (list(table["unknown"]), list(table["abstain"])) == ([False, True], [False, True])
    np.testing.assert_allclose(table["strangeness"], [known.strangeness, strange.strangeness], rtol=1e-6)


def test_a_path_its_pixels_and_its_pillow_image_get_one_answer(model: Model, paths: list[str], tmp_path: Path):
    """Mixed in one call, in the order given; a grey image too."""
    pixels = decode(Path(paths[0]).read_bytes(), 100)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    file, other, array, pillow, stack = model.predict([str(tmp_path / "a.png"), paths[20], pixels, image, pixels[::-1]])
    assert close(file, array)
    assert close(file, pillow)
    assert not close(file, stack)
    assert (file.path, array.path) == (str(tmp_path / "a.png"), None)
    assert close(other, model.predict(Path(paths[20]))[0])
    assert [close(answer, file) for answer in model.predict(np.stack([pixels, pixels]))] == [True, True]
    grey = np.asarray(image.convert("L"))
    assert close(model.predict(grey)[0], model.predict(np.repeat(grey[:, :, None], 3, axis=2))[0])


def test_a_folder_is_all_its_images(model: Model, drawn_images: str, paths: list[str]):
    """At any depth, sorted by path."""
    assert [answer.path for answer in model.predict(drawn_images)] == paths
    assert MARKER not in paths


def test_a_raw_photo_of_a_folder_is_not_answered_by_its_preview(model: Model, paths: list[str], tmp_path: Path):
    """As in the table of predictions; its content begins as that of a TIFF does."""
    shutil.copy(paths[0], tmp_path / "b.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.nef", "TIFF")
    raw, good = model.predict(tmp_path)
    assert (raw.path, raw.label, raw.abstain) == (str(tmp_path / "a.nef"), None, True)
    assert (raw.error, good.error) == ("format .nef is not read: convert it to .jpg or .png", None)
    assert close(good, model.predict(paths[0])[0])


def test_an_image_that_cannot_be_used_has_an_answer_that_says_why(model: Model, paths: list[str], tmp_path: Path):
    """It costs no other image its answer."""
    (tmp_path / "cut.jpg").write_bytes(Path(paths[0]).read_bytes()[:300])
    cut, whole, lost = model.predict([tmp_path / "cut.jpg", paths[0], tmp_path / "not-there.jpg"])
    assert (cut.label, cut.abstain, cut.top) == (None, True, ())
    assert cut.error
    assert lost.error
    assert whole.error is None
    assert whole.label in LABELS


def test_a_model_without_a_decision_abstains_where_it_is_asked_to(model: Model, paths: list[str]):
    """`threshold` of a call decides alone."""
    assert model.threshold is None
    assert not any(answer.abstain for answer in model.predict(paths))
    assert all(answer.abstain for answer in model.predict(paths, threshold=1.0))
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), 7]
)
def test_pixels_of_another_kind_are_bad_input(model: Model, wrong: object):
    """Floats could be 0..1 or 0..255, and nobody knows which."""
    with pytest.raises(ConfigError, match="predict: received"):
        model.predict([wrong])  # type: ignore[list-item]


def test_a_threshold_that_is_no_number_is_bad_input(model: Model, paths: list[str]):
    """Nothing is below it, so that the model would never abstain."""
    with pytest.raises(ConfigError, match="received threshold nan, expected a confidence from 0 to 1"):
        model.predict(paths, threshold=float("nan"))


def test_a_location_without_a_model_is_bad_input(tmp_path: Path):
    """At once, before TensorFlow is imported."""
    with pytest.raises(ConfigError, match="no model there"):
        Model(tmp_path)
