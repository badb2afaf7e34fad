"""A run looks at the product in each image where that helps, and so does everything that uses its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.manifests import build_manifest
from support.programs import call
from support.small_products import MARKS, draw_photo, write_photos

import pharmclf
from pharmclf.config import RunConfig
from pharmclf.crop import CropGain, crop_images, cross_validate, find_comparable, sample_classes
from pharmclf.data.decoded_image import LOCATOR_SIZE
from pharmclf.data.manifest import Manifest
from pharmclf.data.splits import split_rows

pytestmark = pytest.mark.tf

SIDE = 64  # pixels of what is classified
CROPPING = RunConfig(image_size=SIDE, crop="auto", num_workers="0", accelerator="cpu")


def split(folder: Path) -> Manifest:
    manifest = build_manifest(str(folder))
    labels, groups = manifest.table["label"].to_numpy(), manifest.table["group"].to_numpy()
    return manifest.with_splits(split_rows(labels, groups, 0, 0.25, 0.25))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small tablets on tables, 24 photos of each of five products."""
    folder = tmp_path_factory.mktemp("photos") / "tablets"
    write_photos(folder, 24)
    return folder


@pytest.fixture(scope="module")
def run(shared_ray: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> pharmclf.Run:
    """A run that looks at the tablets."""
    return pharmclf.train(
        photos, name="tablets", storage=tmp_path_factory.mktemp("crop"), quiet=True, crop="auto", image_size=SIDE,
        batch_size=15, unfreeze_blocks=2, phase1={"epochs": 6, "learning_rate": 3e-3}, phase2={"epochs": 1},
        num_workers="0", skip_checks=True,
    )  # fmt: skip


@pytest.mark.ray
def test_small_products_are_looked_at_and_large_ones_are_not(shared_ray: None, photos: Path, tmp_path: Path):
    """Each usable image has a square; where the product fills the picture, its features gain nothing by one."""
    cropped = crop_images(CROPPING, split(photos))
    assert cropped.notes[-1].startswith("crop: on, the model looks at a square around the product, of ")
    assert cropped.crops is not None
    assert np.isfinite(cropped.crops).all()
    draw = np.random.default_rng(1)
    for mark in MARKS:
        (tmp_path / mark).mkdir()
        for number in range(24):
            draw_photo(mark, draw, share=0.85)[0].save(tmp_path / mark / f"{number}.png")
    whole = crop_images(CROPPING, split(tmp_path))
    assert whole.notes[-1].startswith("crop: off, since looking at a square around the product does not help")
    assert whole.crops is None


@pytest.mark.ray
def test_the_workers_of_a_cluster_find_what_this_process_finds(
    shared_ray: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of more images than one process should read; what they share is gone afterwards."""
    manifest = split(photos)
    here = crop_images(CROPPING, manifest)
    monkeypatch.setattr("pharmclf.crop._FOUND_HERE", 20)
    there = crop_images(dataclasses.replace(CROPPING, num_workers="2", storage=str(tmp_path)), manifest)
    assert here.crops is not None
    assert there.crops is not None
    np.testing.assert_allclose(there.crops, here.crops, atol=2e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"crop": "off"}, ""), ({"weights": "none"}, "crop: off, since a network with random weights finds no product")],
)
def test_nothing_is_looked_for_where_that_cannot_help(photos: Path, changed: dict[str, str], reason: str):
    manifest = split(photos)
    found = crop_images(dataclasses.replace(CROPPING, **changed), manifest)
    assert (found.crops, found.fingerprint) == (None, manifest.fingerprint)
    assert found.notes == [*manifest.notes, *filter(None, [reason])]


def test_few_images_decide_nothing(photos: Path):
    manifest = split(photos)
    keep = np.concatenate([manifest.rows("train")[:12], manifest.rows("validation"), manifest.rows("test")])
    left = {int(row): "left" for row in set(manifest.table.index) - set(keep.tolist())}
    found = crop_images(CROPPING, manifest.with_status(left))
    assert found.notes[-1] == "crop: off, since the training images are too few to decide whether it helps"


@pytest.mark.ray
def test_the_model_of_a_run_looks_at_products_by_itself(run: pharmclf.Run, photos: Path):
    """Files, pixels and its own report get the same answers."""
    model = run.model
    assert model.info.locator_size == LOCATOR_SIZE
    scores = model.evaluate("test")
    assert scores.accuracy.value == run.result["test_accuracy"]
    table = pd.read_parquet(Path(run.folder) / "evaluation" / "test" / "predictions.parquet")
    answers = model.predict(table["path"].tolist())
    assert [answer.label for answer in answers] == table["predicted"].tolist()
    np.testing.assert_allclose([answer.confidence for answer in answers], table["confidence"], atol=1e-5)
    pixels = [np.asarray(Image.open(path)) for path in table["path"]]
    np.testing.assert_allclose([answer.confidence for answer in model.predict(pixels)], table["confidence"], atol=1e-5)


@pytest.mark.ray
def test_another_run_starts_from_a_model_that_crops(run: pharmclf.Run, photos: Path, tmp_path: Path):
    """It crops too, finds products as the first one does, and without training answers alike."""
    again = pharmclf.train(
        photos, name="again", storage=tmp_path, quiet=True, crop="auto", image_size=SIDE, batch_size=15,
        init_from=run.folder, phase1={"epochs": 1, "learning_rate": 1e-12}, phase2={"epochs": 0}, num_workers="0",
        skip_checks=True,
    )  # fmt: skip
    assert again.model.info.locator_size == LOCATOR_SIZE
    drawn = [draw_photo(mark, np.random.default_rng(5))[0] for mark in MARKS]
    answers = [[(each.label, each.confidence) for each in one.model.predict(drawn)] for one in (run, again)]
    assert [label for label, _ in answers[0]] == [label for label, _ in answers[1]]


@pytest.mark.ray
def test_the_saved_file_takes_photos_of_any_size(run: pharmclf.Run):
    """Keras alone gives what this package gives, for the photos themselves and for larger copies of them."""
    import keras

    model = run.model
    keras_model = keras.saving.load_model(model.info.location, compile=False, safe_mode=True)
    draw = np.random.default_rng(2)
    drawn = [draw_photo(mark, draw)[0] for mark in MARKS for _ in range(4)]
    for scale in (1, 2):
        shown = [photo.resize((scale * photo.width, scale * photo.height)) for photo in drawn]
        found = keras_model.predict(np.stack(shown).astype(np.float32), verbose=0)
        answers = model.predict(shown)
        same = [model.labels[best] == answer.label for best, answer in zip(found.argmax(axis=1), answers, strict=True)]
        assert np.mean(same) >= 0.95


@pytest.mark.ray
def test_other_photos_are_cropped_when_the_model_is_tested_on_them(run: pharmclf.Run, tmp_path: Path):
    """Without the run's manifest the places are looked for, as `predict` does it."""
    write_photos(tmp_path / "other", 6, seed=9)
    scores = run.model.evaluate(tmp_path / "other", out=tmp_path / "tested")
    answers = run.model.predict(tmp_path / "other")
    right = np.mean([answer.label == Path(str(answer.path)).parent.name for answer in answers])
    assert scores.accuracy.value == pytest.approx(right)
    assert (tmp_path / "tested" / "report.html").is_file()


@pytest.mark.ray
def test_a_table_of_predictions_says_where_the_model_looked(run: pharmclf.Run, photos: Path, tmp_path: Path):
    """Left, top and side, as the run's own manifest has them; null for an image that cannot be read."""
    (tmp_path / "bad.png").write_bytes(b"rubbish")
    listed = [str(path) for path in sorted(photos.rglob("*.png"))[::20]] + [str(tmp_path / "bad.png")]
    pd.DataFrame({"path": listed}).to_csv(tmp_path / "list.csv", index=False)
    output = tmp_path / "answers.parquet"
    done = call(
        f"--model={run.folder}", f"--input={tmp_path}/list.csv", f"--output={output}", program="jobs/predict.py"
    )
    assert done.returncode == 0, done.stdout
    table = pd.read_parquet(output).set_index("path")[["crop_left", "crop_top", "crop_side"]]
    manifest = Manifest.read(str(Path(run.folder) / "manifest.parquet"))
    assert manifest.crops is not None
    rows = [manifest.table.index[manifest.table["path"] == path][0] for path in listed[:-1]]
    np.testing.assert_allclose(table.iloc[:-1], manifest.crops[rows], atol=2e-3)
    assert table.iloc[-1].isna().all()


def test_a_gain_must_be_more_than_chance():
    """Of 100 images, eight gained and two lost may be chance; twenty gained and two lost are not."""
    groups, whole = np.arange(100), np.zeros(100, bool)
    whole[:50] = True

    def gain(gained: int) -> CropGain:
        product = whole.copy()
        product[:2], product[50 : 50 + gained] = False, True
        return CropGain(whole, product, groups)

    assert [gain(number).helps for number in (2, 8, 20)] == [False, False, True]
    assert "right for 68.0% of 100 training images, those of the whole image for 50.0%" in str(gain(20))


def test_a_classifier_that_has_seen_no_copy_of_an_image_judges_its_features():
    """Features of noise with copies: at chance, though a copy of each is in the sample."""
    draw = np.random.default_rng(0)
    features = np.repeat(draw.normal(size=(60, 40)), 2, axis=0).astype(np.float32)
    labels, groups = np.repeat(np.array(list("abc") * 20, object), 2), np.repeat(np.arange(60), 2)
    assert cross_validate(features, labels, groups, 0).mean() < 0.6
    features[:, :3] += 10 * np.stack([labels == name for name in "abc"], axis=1)
    assert cross_validate(features, labels, groups, 0).mean() > 0.9


def test_a_class_that_cannot_be_in_every_fold_is_not_compared():
    """Of four images one cannot be read: three are left, fewer than folds."""
    labels = np.array(["a"] * 5 + ["b"] * 4, object)
    crops = np.zeros((9, 3), np.float32)
    assert find_comparable(labels, crops).all()
    crops[[0, 8]] = np.nan
    assert find_comparable(labels, crops).tolist() == [False] + [True] * 4 + [False] * 4


def test_the_sample_has_equally_many_of_each_class_and_few_of_many_classes():
    """400 images at most, of 40 classes at most, and none of a class that cannot be divided."""

    def sampled(classes: int, each: int) -> pd.Series:
        labels = np.repeat([f"c{number:04d}" for number in range(classes)], each)
        table = pd.DataFrame({"label": labels, "status": "ok", "group": np.arange(len(labels)), "split": "train"})
        manifest = Manifest(table, tuple(sorted(set(labels))))
        return table["label"].loc[sample_classes(manifest)].value_counts()

    assert sampled(5, 200).tolist() == [80] * 5
    assert sampled(1000, 12).tolist() == [10] * 40
    assert sampled(10, 3).tolist() == []
