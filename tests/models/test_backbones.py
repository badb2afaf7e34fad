"""The pretrained networks: their names, their preprocessing, and weights out of files."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from pharmclf.config import BackboneName, ConfigError
from pharmclf.models.backbone_split import split_tensors
from pharmclf.training.feasible import BLOCKS, MIN_SIDES

pytestmark = pytest.mark.tf
SIDE = 32  # pixels, the least that most networks take

MODULES = {  # module of keras.applications that holds the preprocess_input of a network
    "resnet50": "resnet", "resnet101": "resnet", "resnet50v2": "resnet_v2", "vgg16": "vgg16",
    "mobilenet_v2": "mobilenet_v2", "mobilenet_v3_small": "mobilenet_v3", "mobilenet_v3_large": "mobilenet_v3",
    "efficientnet_b0": "efficientnet", "efficientnet_v2_b0": "efficientnet_v2", "efficientnet_v2_s": "efficientnet_v2",
    "efficientnet_v2_m": "efficientnet_v2", "densenet121": "densenet", "inception_v3": "inception_v3",
    "xception": "xception", "convnext_tiny": "convnext", "convnext_small": "convnext", "convnext_base": "convnext",
}  # fmt: skip


@pytest.fixture(scope="module")
def backbones() -> Any:
    """The module, imported with TensorFlow."""
    from pharmclf.models import backbones

    return backbones


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras."""
    import keras

    return keras


@pytest.fixture(scope="module")
def mobilenet(backbones: Any) -> Any:
    """A small network with random weights, batch-norm statistics too."""
    model = backbones.build_backbone("mobilenet_v2", SIDE, "none")
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0.5, 1.0, weight.shape) for weight in model.weights])
    return model


def _assert_same(found: Any, expected: Any) -> None:
    assert len(found.weights) == len(expected.weights)
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=theirs.path)


def test_every_name_of_the_configuration_is_a_backbone_and_vice_versa(backbones: Any):
    """What --help offers can be built, and what can be built is offered."""
    from pharmclf.models.efficientnet_lite import VARIANTS

    assert set(backbones.BACKBONES) == set(typing.get_args(BackboneName)) == {*VARIANTS, *MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_preprocessing_is_that_of_keras_applications(backbones: Any, keras: Any, name: str):
    """Raw 0..255 RGB through our layers equals `preprocess_input` of the network's family."""
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    inputs = keras.Input((8, 8, 3))
    preprocessed = backbones._preprocess(inputs, backbones.BACKBONES[name].preprocessing)
    ours = keras.Model(inputs, keras.layers.Identity()(preprocessed))
    theirs = getattr(keras.applications, MODULES[name]).preprocess_input(images.copy())
    np.testing.assert_allclose(np.asarray(ours(images)), theirs, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_b0", "efficientnet_v2_s",
        "efficientnet_v2_m", "convnext_tiny", "convnext_small", "convnext_base",
    ],
)  # fmt: skip
def test_a_network_that_preprocesses_itself_does(backbones: Any, name: str):
    """Where our preprocessing is `inside`, the network rescales or normalises behind its input."""
    model = backbones.build_backbone(name, SIDE, "none")
    assert {type(layer).__name__ for layer in model.layers[1:4]} & {"Rescaling", "Normalization"}
    _assert_blocks(name, model)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "inception_v3", "xception", "efficientnet_b0"])
def test_names_do_not_depend_on_what_was_built_before(backbones: Any, name: str):
    """Checkpoints know weights by name; the second network of a process has the names of the first."""
    first, second = (backbones.build_backbone(name, 96, "none") for _ in range(2))
    assert [weight.path for weight in first.weights] == [weight.path for weight in second.weights]
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert len({weight.path for weight in first.weights}) == len(first.weights)
    _assert_blocks(name, first)


@pytest.mark.parametrize("name", ["resnet50v2", "resnet101"])
def test_the_blocks_that_are_known_ahead_are_those_of_the_network(backbones: Any, name: str):
    """A depth is refused before an image is read; other tests see to the other networks."""
    _assert_blocks(name, backbones.build_backbone(name, SIDE, "none"))


def _assert_blocks(name: str, model: Any) -> None:
    """Some networks have up to two more at odd sizes of their maps, such as 74 pixels."""
    spare = {"efficientnet_v2_b0": 2, "efficientnet_v2_s": 1, "efficientnet_v2_m": 1}.get(name, 0)
    assert len(split_tensors(model)) - 1 == BLOCKS[name] - spare


def test_an_image_becomes_one_row_of_features(mobilenet: Any):
    """(batch, S, S, 3) in, (batch, features) out."""
    assert mobilenet.input.shape == (None, SIDE, SIDE, 3)
    assert mobilenet.output.shape == (None, 1280)
    assert mobilenet.name == "mobilenet_v2"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2"])
def test_random_weights_are_the_same_at_every_build(backbones: Any, name: str):
    """A resumed run and the saved model have the frozen weights that were trained on."""
    one, other = (backbones.build_backbone(name, 64, "none").get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_kept_backbone_is_built_once_and_begins_anew(backbones: Any):
    """The second run of a process gets the same model with its first weights; other weights are built."""
    first = backbones.cached_backbone("mobilenet_v2", 64, "none", "")
    before = [variable.numpy() for variable in first.variables]
    first.trainable_variables[0].assign(first.trainable_variables[0] * 0 + 7)
    again = backbones.cached_backbone("mobilenet_v2", 64, "none", "")
    assert again is first
    assert all(np.array_equal(v.numpy(), value) for v, value in zip(again.variables, before, strict=True))
    assert backbones.cached_backbone("mobilenet_v2", 64, "none", "another file") is not first


@pytest.mark.parametrize("file", ["saved.weights.h5", "saved.keras"])
def test_saved_weights_come_back(backbones: Any, mobilenet: Any, tmp_path: Path, file: str):
    """Every weight of a backbone that Keras saved, batch-norm statistics too, loads into the same backbone."""
    path = tmp_path / file
    mobilenet.save_weights(path) if file.endswith(".h5") else mobilenet.save(path)
    _assert_same(backbones.build_backbone("mobilenet_v2", SIDE, str(path)), mobilenet)


def test_a_saved_classifier_gives_its_backbone(backbones: Any, mobilenet: Any, tmp_path: Path):
    """The model that a run of ours saved starts another, at another image size: its classifier is left out."""
    from pharmclf.config import HeadConfig
    from pharmclf.models.head import build_head, build_inference_model

    path = tmp_path / "model.keras"
    build_inference_model(mobilenet, build_head(HeadConfig(dense=(4,)), 1280, 3, 0)).save(path)
    loaded = backbones.build_backbone("mobilenet_v2", SIDE, str(path))
    images = np.random.default_rng(0).uniform(0, 255, (2, SIDE, SIDE, 3))
    np.testing.assert_allclose(loaded(images), mobilenet(images), rtol=1e-3, atol=1e-4)
    backbones.build_backbone("mobilenet_v2", 2 * SIDE, str(path))


def test_a_notop_file_of_keras_applications_loads(backbones: Any, keras: Any, mobilenet: Any, tmp_path: Path):
    """The old .h5 layout in which keras.applications publishes its weights."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    published = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    published.set_weights(mobilenet.get_weights())
    path = tmp_path / "mobilenet_v2_notop.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, published)
    _assert_same(backbones.build_backbone("mobilenet_v2", SIDE, str(path)), mobilenet)


@pytest.mark.parametrize(
    "file", ["other.weights.h5", "other.keras", "text.h5", "text.weights.h5", "text.keras", "text.txt"]
)
def test_a_file_that_does_not_fit_is_refused(backbones: Any, keras: Any, tmp_path: Path, file: str):
    """Another network's weights, or no weights at all: the file and the backbone are named."""
    path = tmp_path / file
    if file.startswith("other"):
        inputs = keras.Input((4,))
        other = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        other.save_weights(path) if file.endswith(".h5") else other.save(path)
    else:
        path.write_text("no weights")
    with pytest.raises(ConfigError, match="does not fit backbone mobilenet_v2 without its classifier") as caught:
        backbones.build_backbone("mobilenet_v2", SIDE, str(path))
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(backbones: Any, tmp_path: Path):
    """With what --weights takes."""
    with pytest.raises(ConfigError, match=r"is no file\. Expected imagenet, none, or the path"):
        backbones.build_backbone("efficientnet_lite0", SIDE, str(tmp_path / "none.h5"))


def test_an_image_too_small_is_refused(backbones: Any):
    """The message names the backbone, the setting and what to do."""
    with pytest.raises(ConfigError, match=r"backbone inception_v3 with image_size 64: .* Give a larger image_size"):
        backbones.build_backbone("inception_v3", 64, "none")
    with pytest.raises(ConfigError, match="image_size"):
        backbones.build_backbone("inception_v3", MIN_SIDES["inception_v3"] - 1, "none")
    backbones.build_backbone("inception_v3", MIN_SIDES["inception_v3"], "none")


@pytest.mark.filterwarnings("ignore:`input_shape` is undefined")  # MobileNets then take the weights of 224 px
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mobilenet_v2" else pytest.mark.slow) for name in MODULES]
)
def test_imagenet_weights_without_the_internet_are_refused_with_a_remedy(
    backbones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
):
    """Where the download fails, the message says so and names two ways on; a file of that name is known again."""
    from keras.src.utils import file_utils

    asked: list[str] = []

    def fail(url: str, *_: Any, **__: Any) -> None:
        asked.append(url.rpartition("/")[2])
        raise URLError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))  # nothing downloaded before
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    constructor = backbones.BACKBONES[name].constructor
    with pytest.raises(ConfigError, match=f"ImageNet weights of {constructor} could not be downloaded") as caught:
        backbones.build_backbone(name, 96, "imagenet")
    assert "--weights FILE, or use --backbone efficientnet_lite0" in str(caught.value)
    assert {backbones.weights_source(other) for other in MODULES} == {"downloaded at first use"}
    (tmp_path / "models").mkdir(exist_ok=True)
    (tmp_path / "models" / asked[0]).touch()
    found = {other for other in MODULES if backbones.weights_source(other) == f"present in {tmp_path / 'models'}"}
    assert found == {name}


def test_the_table_of_backbones_has_size_blocks_and_speed_of_each(backbones: Any):
    """Nothing is downloaded for it; packaged weights are known by their package."""
    from pharmclf.config import RunConfig
    from pharmclf.models.backbone_table import format_backbones

    heading, first, second, *notes = format_backbones(RunConfig(), ["efficientnet_lite0", "mobilenet_v2"])
    assert heading.split()[:6] == ["backbone", "parameters", "top-1", "at", "blocks", "images/s"]
    lite0 = re.fullmatch(r"efficientnet_lite0 +3\.4 M  75\.1 %  224 px +16 +([\d.,]+)  packaged, works offline", first)
    assert lite0
    assert float(lite0[1].replace(",", "")) > 0
    assert re.match(r"mobilenet_v2 +2\.3 M  71\.3 %  224 px +17 ", second)
    assert "keras.io/api/applications" in notes[0]
