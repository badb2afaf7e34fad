"""Prediction of real files by a real model: in this process, on Ray, from and into S3."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_model import save_small_model

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.demo import MARKER
from pharmclf.data.image_decoding import decode
from pharmclf.data.image_set import ImageSet
from pharmclf.evaluation.predict import predict, predict_stream
from pharmclf.evaluation.predictor import Predictor, PredictSpec
from pharmclf.inference.job import predict_images
from pharmclf.inference.options import PredictOptions
from pharmclf.inference.tolerant_reader import read_images

pytestmark = [pytest.mark.tf]
SIZE = 64
LABELS = [f"product {number}" for number in range(10)]
THRESHOLD = 0.2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its labels."""
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, LABELS, SIZE)
    return folder


@pytest.fixture(scope="module")
def images(drawn_images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty whole images, three that are none, and one of a format that is not read."""
    folder = tmp_path_factory.mktemp("images") / "all"
    shutil.copytree(drawn_images, folder)
    (folder / MARKER).unlink()
    first = min(folder.rglob("*.jpg"))
    first.with_name("00-cut.jpg").write_bytes(first.read_bytes()[:-400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "zz").mkdir()
    (folder / "zz" / "text.jpg").write_text("no image")
    (folder / "zz" / "raw.nef").write_bytes(first.read_bytes())
    return folder


BAD = {
    "00-cut.jpg": "truncated", "empty.png": "empty", "text.jpg": "no image",
    "raw.nef": "format .nef is not read: convert it to .jpg or .png",
}  # fmt: skip


@pytest.fixture(scope="module")
def directly(model: Path) -> Callable[[list[str]], np.ndarray]:
    """The probabilities of some files by the Keras model itself."""
    import keras

    keras_model = keras.saving.load_model(model / "model.keras", compile=False)

    def call(paths: list[str]) -> np.ndarray:
        pixels = np.stack([decode(storage.read_bytes(path), SIZE) for path in paths])
        return np.asarray(keras_model(pixels.astype(np.float32), training=False))

    return call


def run(model: object, images: object, output: object, **settings: Any) -> list[str]:
    said: list[str] = []
    options = {"num_workers": "0", "part_size": 30, "threshold": THRESHOLD} | settings
    assert (
        predict_images(PredictOptions(model=str(model), input=str(images), output=str(output), **options), said.append)
        == 0
    )
    return said


def table(location: object) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(str(location))))


def check(found: pa.Table, paths: list[str], directly: Callable[[list[str]], np.ndarray]) -> None:
    """Every path once and in order; bad images with their reasons; the answers of the Keras model for the others."""
    assert found["path"].to_pylist() == sorted(paths)
    rows = found.to_pylist()
    bad = {row["path"].rpartition("/")[2]: row["error"] for row in rows if row["error"]}
    assert bad == BAD
    good = [row for row in rows if not row["error"]]
    expected = directly([row["path"] for row in good])
    order = np.argsort(-expected, axis=1, kind="stable")
    for place, suffix in enumerate(("", "_2", "_3")):
        best = expected[np.arange(len(good)), order[:, place]]
        np.testing.assert_allclose([row[f"confidence{suffix}"] for row in good], best, atol=1e-5)
        named = [LABELS.index(row[f"label{suffix}"]) for row in good]
        np.testing.assert_allclose(expected[np.arange(len(good)), named], best, atol=1e-5)
    assert [row["abstain"] for row in rows] == [bool(row["error"]) or row["confidence"] < THRESHOLD for row in rows]
    assert len({row["abstain"] for row in good}) == 2


@pytest.mark.ray
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_image_has_one_row_in_order_with_the_answer_of_the_model(
    shared_ray: None, model: Path, images: Path, directly: Any, tmp_path: Path, workers: str
):
    """In this process and by two of Ray's; parts and batches of other sizes than the whole; bad images listed."""
    paths = [str(path) for path in images.rglob("*") if path.is_file()]
    said = run(model, images, tmp_path / "out.parquet", num_workers=workers)
    found = table(tmp_path / "out.parquet")
    check(found, paths, directly)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert f"84 images, 4 of them bad; written to {tmp_path}/out.parquet" in said
    assert f"bad image: {images}/empty.png: empty" in said
    unsure = sum(found["abstain"].to_pylist()) - 4
    assert any(line.startswith(f"{unsure} of 80 images") for line in said)


def test_a_complete_table_is_not_made_again(model: Path, images: Path, tmp_path: Path):
    """The same command says so and changes nothing; what a kill has left of parts goes; --overwrite makes it anew."""
    output = tmp_path / "out.parquet"
    run(model, images, output)
    before = output.stat()
    (tmp_path / "out.parquet.parts").mkdir()
    said = run(model, images, output, part_size=50)
    assert said[-1].startswith(f"{output} is complete already, 84 images")
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    with pytest.raises(ConfigError, match="and differs in its threshold"):
        run(model, images, output, threshold=0.5)
    run(model, images, output, threshold=0.5, overwrite=True)
    assert all(table(output)["abstain"].to_pylist())


def test_a_list_is_predicted_row_by_row_and_its_csv_table_is_complete(
    model: Path, images: Path, directly: Any, tmp_path: Path
):
    """In the list's order, duplicates and other columns with it; the same command then changes nothing."""
    paths = sorted((str(path) for path in images.rglob("*.jpg") if path.name not in BAD), reverse=True)[:40]
    order = [*paths, paths[7], str(images / "empty.png"), paths[0]]
    frame = pd.DataFrame({"File Name": order, "label": [f"given {place}" for place in range(43)]})
    frame.to_csv(tmp_path / "list.csv", index=False, sep=";")
    output = tmp_path / "out.csv"
    run(model, tmp_path / "list.csv", output)
    found = pd.read_csv(output)
    assert found["path"].tolist() == found["File Name"].tolist() == order
    assert found["list_label"].tolist() == frame["label"].tolist()
    assert found["error"].dropna().to_dict() == {41: "empty"}
    good = found.drop(41)
    expected = directly(good["path"].tolist())
    np.testing.assert_allclose(good["confidence"], expected.max(axis=1), atol=1e-5)
    before = output.stat()
    said = run(model, tmp_path / "list.csv", output, part_size=50)
    assert said[-1].startswith(f"{output} is complete already, 43 images")
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    frame.assign(label="other").to_csv(tmp_path / "list.csv", index=False, sep=";")
    with pytest.raises(ConfigError, match="and differs in its images"):
        run(model, tmp_path / "list.csv", output)


def test_parts_of_another_model_or_state_are_never_taken(model: Path, images: Path, tmp_path: Path):
    """A part of other settings is deleted, one of the same is kept, and the table is that of an unbroken job."""
    run(model, images, tmp_path / "whole.parquet")
    output = tmp_path / "out.parquet"
    kept: dict[str, int] = {}

    def keep(line: str) -> None:
        kept.update({path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out.parquet.parts/part-*")})
        if line.startswith("84 images"):
            raise RuntimeError("stopped before the parts are deleted")

    for threshold in (0.5, THRESHOLD):
        options = PredictOptions(
            model=str(model), input=str(images), output=str(output), num_workers="0", part_size=30, threshold=threshold
        )
        kept.clear()
        with pytest.raises(RuntimeError, match="stopped before"):
            predict_images(options, keep)
        output.unlink()
    assert len(kept) == 3
    (tmp_path / "out.parquet.parts" / sorted(kept)[1]).unlink()
    said = run(model, images, output)
    assert any(line.startswith("2 of 3 parts") for line in said)
    assert "predicting 30 images in this process" in said
    assert table(output) == table(tmp_path / "whole.parquet")


@pytest.mark.s3
def test_images_of_a_bucket_are_predicted_into_a_bucket(model: Path, images: Path, directly: Any, bucket: str):
    """Model, images, parts and table in S3; of a list, also an image that is not there."""
    storage.upload_folder(images, f"{bucket}/images")
    storage.upload_folder(model, f"{bucket}/model")
    run(f"{bucket}/model", f"{bucket}/images", f"{bucket}/tables/out.parquet")
    paths = [entry.location for entry in storage.list_files(f"{bucket}/images")]
    check(table(f"{bucket}/tables/out.parquet"), paths, directly)
    names = [*paths[:3], f"{bucket}/images/gone.jpg"]
    storage.write_bytes(f"{bucket}/list.csv", "\n".join(["path", *names]).encode())
    said = run(f"{bucket}/model", f"{bucket}/list.csv", f"{bucket}/tables/few.parquet")
    assert f"bad image: {bucket}/images/gone.jpg: not there" in said
    assert [entry.location for entry in storage.list_files(f"{bucket}/tables")] == [
        f"{bucket}/tables/{name}.parquet" for name in ("few", "out")
    ]


@pytest.mark.ray
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_model_that_does_not_fit_its_labels_is_bad_input(
    shared_ray: None, model: Path, images: Path, tmp_path: Path, workers: str
):
    """Told before anything is written, also by a process of Ray's."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "labels.json").write_text(json.dumps(LABELS[:9]))
    with pytest.raises(ConfigError, match="received 10 outputs and 9 labels"):
        run(folder, images, tmp_path / "out.parquet", num_workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_cannot_be_loaded_is_bad_input(images: Path):
    """One that is damaged, and one that is not there."""
    for name, words in (("empty.png", "Keras cannot load"), ("gone.keras", "gone.keras is not there on")):
        what = PredictSpec(models=(str(images / name),), image_size=SIZE)
        with pytest.raises(ConfigError, match=words):
            list(predict_stream(what, ImageSet.of_paths([str(images / "empty.png")])))


def test_a_storage_that_refuses_ends_the_job(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A bucket that cannot be reached is no bad image: the job ends, and keeps what it has."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", "0.5")
    good = str(min(images.rglob("*.jpg")))
    found = read_images(ImageSet.of_paths([good, "s3://bucket/image.jpg"]), SIZE)
    assert found["error"][0].startswith("StorageUnavailableError: s3://bucket/image.jpg: no connection")


def test_several_models_in_a_process_are_no_retracing(model: Path, caplog: pytest.LogCaptureFixture):
    """TensorFlow takes every graph for one of its own, and does not warn."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), np.uint8)
    with caplog.at_level(logging.WARNING, logger="tensorflow"):
        for _ in range(7):
            predictor = Predictor(PredictSpec(models=(str(model / "model.keras"),) * 2, image_size=SIZE))
            found = predictor({"image": pixels, "place": np.arange(70)})["probabilities"]
    assert not caplog.records
    assert found.shape == (70, 2, 10)
    assert np.array_equal(found[:, 0], found[:, 1])


def test_an_image_that_a_run_has_lost_takes_no_other_with_it(
    model: Path, images: Path, directly: Callable[[list[str]], np.ndarray]
):
    """Cut short, of another content than its sha256, gone: `predict` gives the reason of each, and scores the rest."""
    paths = sorted(str(path) for path in images.rglob("*.jpg") if path.parent.name != "zz")
    sums = [sha256_bytes(Path(path).read_bytes()) for path in paths]
    paths, sums = [*paths, str(images / "gone.jpg")], [*sums[:-1], "0" * 64, "0" * 64]
    files = ImageSet(pa.array(paths), pa.array(sums), pa.repeat(65535, len(paths)))
    found, bad, *_ = predict([str(model / "model.keras")], files, SIZE, actors=0)
    reasons = {Path(path).name: str(reason) for path, reason in zip(paths, bad, strict=True) if reason}
    changed = Path(paths[-2]).name
    assert reasons == {
        "00-cut.jpg": "truncated",
        changed: "changed since the data set was listed",
        "gone.jpg": "not there",
    }
    whole = [path for path, reason in zip(paths, bad, strict=True) if not reason]
    np.testing.assert_allclose(found[bad == "", 0], directly(whole), atol=1e-5)
