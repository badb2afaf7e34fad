"""A model in every format: what its own runtime makes of it, what is noted of it, and when it is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.manifests import build_manifest

from pharmclf.config import HeadConfig
from pharmclf.core.hashing import sha256_file
from pharmclf.data.image_decoding import decode
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.abstention_policy import AbstentionPolicy, fit_policy, read_policy, write_policy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.prediction_sets import PredictionSets
from pharmclf.evaluation.saved_model import load_model_info
from pharmclf.evaluation.strangeness import fit_strangeness
from pharmclf.export.compare import ExportError
from pharmclf.export.export_model import export_model
from pharmclf.export.formats import FORMATS
from pharmclf.export.options import ExportOptions

pytestmark = pytest.mark.tf
SIDE = 32
DECISION = AbstentionPolicy(
    temperature=2.0, threshold=0.5, max_error=0.01, assured=False, num_validation_images=9, num_answered=9,
    coverage=Estimate(1.0, 0.9, 1.0), error=None, upper_bound=1.0, num_needed=300,
    sets=PredictionSets(coverage=0.99, least=0.3, least_of_class={1: 0.0}, num_groups=9),
)  # fmt: skip


class Exported(NamedTuple):
    """A run with a small model, and what was exported of it."""

    run: Path
    out: Path
    said: list[str]
    images: np.ndarray
    probabilities: np.ndarray


def save(model: Any, folder: Path, labels: list[str]) -> Path:
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def export(model: Path, out: Path, *formats: Any, **settings: Any) -> list[str]:
    said: list[str] = []
    export_model(ExportOptions(model=str(model), out=str(out), format=formats, **settings), said.append)
    return said


def small_network(images: np.ndarray, num_classes: int) -> Any:
    """Layers of every kind that backbones are made of, and a head that knows one of these images for each class."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(image)
    x = layers.Normalization(mean=[0.1, 0.0, -0.1], variance=[0.9, 1.0, 1.1])(x)
    x = layers.Conv2D(16, 3, 2, "same", use_bias=False)(x)
    x = skip = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(5, 1, "same", use_bias=False)(x)
    x = layers.Add()([layers.Activation("hard_silu")(layers.BatchNormalization()(x)), skip])
    x = layers.Activation("gelu")(layers.Conv2D(16, 3, padding="same", groups=16)(x))
    gate = layers.Dense(16, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.GlobalAveragePooling2D(name="pooled")(layers.Multiply()([x, gate]))
    logits = layers.Dense(num_classes, name="logits")(layers.Dropout(0.3)(x))
    features = keras.Model(image, x)(images.astype(np.float32), training=False).numpy()
    scale = features.std()
    known = (features / scale)[:: len(images) // num_classes][:num_classes]  # (classes, features)
    model = keras.Model(image, layers.Softmax(name="probabilities")(logits))
    model.get_layer("logits").set_weights([(known / scale).T, -0.5 * (known**2).sum(axis=1)])  # the nearest of them
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run folder with a small model that tells four colours apart, exported to all formats."""
    folder = tmp_path_factory.mktemp("exported")
    colours = np.repeat([[30, 30, 30], [220, 220, 220], [210, 60, 60], [60, 60, 210]], 10, axis=0)  # (40, 3)
    noise = np.random.default_rng(0).integers(-25, 26, (40, SIDE, SIDE, 3))
    images = (colours[:, None, None] + noise).astype(np.uint8)
    names = ["black", "white", "red", "blue"]
    for number, image in enumerate(images):
        place = folder / "pictures" / names[number // 10] / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    model = small_network(images, 4)
    save(model, folder / "run" / "model", names)
    manifest = build_manifest(f"{folder}/pictures")
    manifest.with_splits(["validation"] * 40).write(f"{folder}/run/manifest.parquet")
    write_policy(DECISION, str(folder / "run" / "model" / "decision.json"))
    pictures = {"images": f"{folder}/pictures", "calibration": f"{folder}/pictures"}
    said = export(folder / "run", folder / "out", "savedmodel", "onnx", "tflite", "openvino", tflite="int8", **pictures)
    return Exported(folder / "run", folder / "out", said, images, np.asarray(model(images.astype(np.float32))))


def test_every_format_gives_the_answers_of_the_keras_model(exported: Exported):
    """Of a model that tells the images apart: the numbers said and noted are those of each runtime, found here anew."""
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    assert set(exported.probabilities.argmax(axis=1)) == {0, 1, 2, 3}
    session = onnxruntime.InferenceSession(exported.out / "model.onnx")
    onnx = session.run(["probabilities"], {"image": exported.images})[0]
    runner = Interpreter(str(exported.out / "model.tflite")).get_signature_runner("serving_default")
    tflite = np.concatenate([runner(image=image[None])["probabilities"] for image in exported.images])
    formats = json.loads((exported.out / "export.json").read_text())["formats"]
    assert list(formats) == ["savedmodel", "onnx", "tflite", "openvino"]
    for name, found in (("onnx", onnx), ("tflite", tflite)):
        noted = formats[name]["comparison"]
        assert noted["num_images"] == len(exported.images)
        assert noted["largest_difference"] == pytest.approx(np.abs(found - exported.probabilities).max(), abs=1e-6)
        assert noted["num_equal"] == (found.argmax(axis=1) == exported.probabilities.argmax(axis=1)).sum()
    assert max(formats[name]["comparison"]["largest_difference"] for name in ("savedmodel", "onnx", "openvino")) < 1e-5
    assert formats["tflite"]["comparison"]["largest_difference"] > 1e-4
    assert [line.split()[0] for line in exported.said] == [
        "int8",
        "savedmodel",
        "onnx",
        "threshold",
        "tflite",
        "openvino",
    ]
    assert all("largest difference" in line for line in exported.said[1:3] + exported.said[4:])


def test_label_and_confidence_are_those_of_the_keras_model(exported: Exported, tmp_path: Path):
    """Of one image, with the decision that lies beside each float format, and with its prediction set."""
    from pharmclf.export.runtime_check import predict_in_runtime
    from pharmclf.inference.model import Model

    pictures = exported.run.with_name("pictures")
    picture = str(pictures / "blue" / "33.png")
    export(exported.run, tmp_path / "out", "tflite", images=str(pictures))
    model = Model(exported.run)
    answer = model.predict(picture)[0]
    assert len(answer.possible) > 1
    files = {"savedmodel": exported.out, "onnx": exported.out, "openvino": exported.out, "tflite": tmp_path / "out"}
    for name, folder in files.items():
        decision = read_policy(str(folder / "decision.json"))
        path = folder / json.loads((folder / "export.json").read_text())["formats"][name]["file"]
        outputs, _, _ = predict_in_runtime(name, path, exported.images[33:34])
        probabilities = outputs.probabilities
        [calibrated] = decision.calibrated(probabilities)
        labels = json.loads((folder / "labels.json").read_text())
        assert labels[calibrated.argmax()] == answer.label
        assert calibrated.max() == pytest.approx(answer.confidence, abs=1e-5)
        assert decision.sets
        [members] = decision.sets.members(calibrated[None])
        assert {labels[number] for number in np.flatnonzero(members)} == set(answer.possible)


def test_every_float_format_says_what_is_unknown_as_predict_does(exported: Exported, tmp_path: Path):
    """Its second output is the strangeness of an image; int8, which is too coarse for distances, has none."""
    from pharmclf.evaluation.predict import predict
    from pharmclf.export.runtime_check import predict_in_runtime
    from pharmclf.inference.model import Model
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head, build_inference_model

    backbone = build_backbone("efficientnet_lite0", SIDE, "imagenet")
    head = build_head(HeadConfig(dense=()), 1280, 4, seed=0)
    model = build_inference_model(backbone, head)
    run, pictures = tmp_path / "run", exported.run.with_name("pictures")
    save(model, run / "model", ["black", "blue", "red", "white"])
    paths = sorted(str(path) for path in pictures.rglob("*.png"))
    info = load_model_info(str(run))
    found = predict([info.location], ImageSet.of_paths(paths), SIDE, actors=0, with_features=True)
    classes = np.unique([Path(path).parent.name for path in paths], return_inverse=True)[1]
    score = fit_strangeness(found.features, classes, found.features)
    assert score is not None
    scores = score(found.features)
    decision = fit_policy(found.probabilities[:, 0], classes, np.arange(len(paths)), 0.01, scores)
    write_policy(decision, str(run / "model" / "decision.json"), score)
    export(run, tmp_path / "out", *FORMATS, images=str(pictures))
    loose = {"images": str(pictures), "calibration": str(pictures), "accept_loss": True}
    said = export(run, tmp_path / "int8", "tflite", tflite="int8", **loose)
    assert any(line.startswith("int8 does not say which images are unknown") for line in said)
    answers = Model(run).predict(paths)
    assert [answer.strangeness for answer in answers] == pytest.approx(scores.tolist(), abs=1e-3)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    about = json.loads((tmp_path / "out" / "export.json").read_text())["formats"]
    for name in FORMATS:
        outputs, seen, _ = predict_in_runtime(name, tmp_path / "out" / about[name]["file"], pixels)
        assert outputs.strangeness is not None
        assert seen["strangeness"]["name"] == "strangeness"
        np.testing.assert_allclose(outputs.strangeness, scores, atol=0.02)
        assert about[name]["comparison"]["strangeness_difference"] < 0.02
    assert predict_in_runtime("tflite", tmp_path / "int8" / "model.tflite", pixels[:2])[0].strangeness is None
    assert read_policy(str(tmp_path / "int8" / "decision.json")).unknown is None


def test_int8_has_a_float_softmax_and_a_threshold_of_its_own(exported: Exported):
    """Chosen with its own probabilities on the validation images; what the other formats have is the run's."""
    from ai_edge_litert.interpreter import Interpreter

    manifest = Manifest.read(f"{exported.run}/manifest.parquet")
    runner = Interpreter(str(exported.out / "model.tflite")).get_signature_runner("serving_default")
    images = [decode(Path(path).read_bytes(), SIDE) for path in manifest.table["path"]]
    probabilities = np.concatenate([runner(image=image[None])["probabilities"] for image in images])
    assert np.abs(probabilities * 256 - np.rint(probabilities * 256)).max() > 0.1  # no steps of 1/256
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5
    labels = json.loads((exported.run / "model" / "labels.json").read_text())
    truth = np.array([labels.index(label) for label in manifest.table["label"]])
    expected = fit_policy(probabilities, truth, manifest.table["group"].to_numpy(), 0.01)
    chosen = read_policy(str(exported.out / "decision-tflite.json"))
    assert chosen.num_validation_images == 40
    assert chosen.threshold == pytest.approx(expected.threshold, abs=1e-6)
    assert chosen.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert json.loads((exported.out / "export.json").read_text())["formats"]["tflite"]["decision"] == (
        "decision-tflite.json"
    )
    assert f"threshold of tflite int8 {chosen.threshold:.4f}" in exported.said[3]
    assert "chosen with it on 40 validation images" in exported.said[3]
    assert "(Keras model: 0.5000 at 2.0000, 100.0%)" in exported.said[3]


def test_the_function_that_loads_an_image_lies_beside_the_models(exported: Exported):
    """Imported from the export, it gives the pixels that the models were tried on."""
    names: dict[str, Any] = {}
    exec(compile((exported.out / "load_image.py").read_text(), "load_image.py", "exec"), names)
    path = exported.run.with_name("pictures") / "red" / "20.png"
    assert np.array_equal(names["load_image"](path, SIDE), exported.images[20])


def test_raw_pixels_go_in_and_scaled_ones_are_refused(exported: Exported):
    """Each runtime sees (batch, S, S, 3) uint8 and float32 probabilities; only TFLite takes one image at a time."""
    import onnxruntime

    formats = json.loads((exported.out / "export.json").read_text())["formats"]
    for name, about in formats.items():
        batch = 1 if name == "tflite" else None
        assert about["input"] == {"name": "image", "shape": [batch, SIDE, SIDE, 3], "dtype": "uint8"}
        assert about["output"] == {"name": "probabilities", "shape": [batch, 4], "dtype": "float32"}
    session = onnxruntime.InferenceSession(exported.out / "model.onnx")
    assert session.get_inputs()[0].shape[0] == "batch"
    with pytest.raises(Exception, match="Unexpected input data type"):
        session.run(None, {"image": exported.images.astype(np.float32) / 255})


def test_every_file_is_noted_with_its_sha256(exported: Exported):
    """And labels and decision are those of the model."""
    record = json.loads((exported.out / "export.json").read_text())
    files = {str(path.relative_to(exported.out)) for path in exported.out.rglob("*") if path.is_file()}
    assert files - {"export.json"} == set(record["files"])
    assert {"savedmodel/saved_model.pb", "model.onnx", "model.tflite", "openvino/model.xml"} <= files
    assert {"labels.json", "decision.json", "openvino/model.bin"} <= files
    assert {name: sha256_file(exported.out / name) for name in record["files"]} == {
        name: about["sha256"] for name, about in record["files"].items()
    }
    assert record["model"]["sha256"] == sha256_file(exported.run / "model" / "model.keras")
    for name in ("labels.json", "decision.json"):
        assert json.loads((exported.out / name).read_text()) == json.loads((exported.run / "model" / name).read_text())


def test_the_precision_is_that_of_the_weights(exported: Exported, tmp_path: Path):
    """int8 holds integers and computes with them; float16 holds halves, and comes near the Keras model."""
    from ai_edge_litert.interpreter import Interpreter

    pictures = str(exported.run.with_name("pictures"))
    export(exported.run / "model", tmp_path / "out", "tflite", tflite="float16", images=pictures)
    held = {}
    for name, path in (("int8", exported.out), ("float16", tmp_path / "out")):
        interpreter = Interpreter(str(path / "model.tflite"))
        held[name] = [tensor["dtype"] for tensor in interpreter.get_tensor_details() if len(tensor["shape"]) == 4]
    assert np.float16 in held["float16"]
    assert held["int8"].count(np.int8) > len(held["int8"]) / 2
    about = json.loads((tmp_path / "out" / "export.json").read_text())["formats"]["tflite"]
    assert about["precision"] == "float16"
    assert 0 < about["comparison"]["largest_difference"] < 0.05


def test_a_format_that_changes_answers_is_refused_and_the_good_ones_are_written(tmp_path: Path):
    """A model that tells greys apart by less than a step of int8: float32 is good and kept, int8 only on request.

    And it has a threshold, which nothing can be checked with.
    """
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="image")
    mean = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(4)(image))
    logits = layers.Dense(2, name="logits")(mean)
    model = keras.Model(image, layers.Softmax()(logits))
    kernel = np.array([[50, 0], [-50, 0], [0, 0]], np.float32)  # red against green
    model.get_layer("logits").set_weights([kernel, np.zeros(2, np.float32)])
    folder = save(model, tmp_path / "model", ["green", "red"])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 1)) + np.zeros((40, 16, 16, 3), np.int64)
    pixels[::2, :, :8, 0] ^= 1  # half a step between red and green, now this way and now that
    pixels[1::2, :, :8, 1] ^= 1
    for number, picture in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    settings = {"images": str(pictures), "calibration": str(pictures)}
    write_policy(DECISION, str(folder / "decision.json"))
    reasons = r"tflite int8 in ai-edge-litert .*expected equal answers for at least 98%; the threshold 0.5000 .*cannot"
    with pytest.raises(ExportError, match=f"^onnx written into {tmp_path}/out, but not {reasons}"):
        export(folder, tmp_path / "out", "tflite", "onnx", tflite="int8", **settings)
    written = ["decision.json", "export.json", "labels.json", "load_image.py", "model.onnx"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert list(json.loads((tmp_path / "out" / "export.json").read_text())["formats"]) == ["onnx"]
    said = export(folder, tmp_path / "kept", "tflite", tflite="int8", accept_loss=True, **settings)
    assert re.match(f"warning: {reasons} .*; kept by --accept-loss", said[1])
    [noted] = json.loads((tmp_path / "kept" / "export.json").read_text())["formats"].values()
    assert len(noted["accepted_loss"]) == 2
    (folder / "decision.json").unlink()
    with pytest.raises(ExportError, match=r"98%. Try --tflite float16, or keep it with --accept-loss. Nothing is wr"):
        export(folder, tmp_path / "none", "tflite", tflite="int8", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "model", "out", "pictures"]
    said = export(folder, tmp_path / "float", "tflite", images=str(pictures))
    assert "equal answers 40 of 40" in said[0]


def test_what_a_converter_or_a_runtime_cannot_take_is_refused_by_name(exported: Exported, tmp_path: Path):
    """An operation that neither TFLite nor ONNX has, and a file that is no model; nothing is left behind."""
    import keras

    from pharmclf.export.runtime_check import predict_in_runtime

    image = keras.Input((16, 16, 3), name="image")
    strange = keras.ops.erfinv(keras.layers.Rescaling(1 / 256)(image))
    features = keras.layers.GlobalAveragePooling2D()(strange)
    folder = save(keras.Model(image, keras.layers.Softmax()(features)), tmp_path / "model", ["a", "b", "c"])
    Image.new("RGB", (16, 16)).save(tmp_path / "grey.png")
    for name in ("tflite", "onnx"):
        with pytest.raises(ExportError, match=f"{name}: it cannot be written: .*Erfinv"):
            export(folder, tmp_path / "out", name, images=str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"onnx: it cannot be run in onnxruntime .*INVALID_PROTOBUF"):
        predict_in_runtime("onnx", tmp_path / "model.onnx", exported.images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grey.png", "model", "model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        "resnet50", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "densenet121",
        "convnext_tiny",
    ],
)  # fmt: skip
def test_the_backbones_can_be_exported(backbone: Any, drawn_images: str, tmp_path: Path):
    """Each to all formats, with random weights at a small size; larger forms have the layers of these."""
    from pharmclf.config import HeadConfig
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head, build_inference_model

    network = build_backbone(backbone, 64, "none")
    model = build_inference_model(network, build_head(HeadConfig(dense=()), network.output.shape[-1], 10, 0))
    folder = save(model, tmp_path / "model", [str(number) for number in range(10)])
    said = export(folder, tmp_path / "out", "savedmodel", "onnx", "tflite", "openvino", images=drawn_images)
    assert len(said) == 4
