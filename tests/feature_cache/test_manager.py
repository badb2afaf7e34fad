"""Activations computed for real: EfficientNet-Lite0 at 64 pixels on drawn images, on the shared Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.changed_files import with_copied_files

from pharmclf import storage
from pharmclf.config import AugmentConfig, ConfigError, RunConfig
from pharmclf.core.signals import StopRequested
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import cache_root
from pharmclf.feature_cache.cache_policy import PhaseDemand
from pharmclf.feature_cache.manager import FeatureRequest, get_or_compute
from pharmclf.feature_cache.reader import FeatureReader
from pharmclf.feature_cache.shards import CachedFeatures, delete_corrupted

pytestmark = [pytest.mark.ray, pytest.mark.tf]

VIEWS = 2
WORKS = (PhaseDemand("phase1", 0, 5), PhaseDemand("phase2", 2, 5))


@pytest.fixture
def wish(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path) -> Any:
    """A wish for both phases in a fresh storage; what is said is collected in `wish.said`."""
    return made(str(tmp_path), drawn_manifest)


def made(
    place: str, manifest: Manifest, stopped: Callable[[], bool] = lambda: False, **settings: Any
) -> FeatureRequest:
    config = RunConfig(
        **{
            "storage": place,
            "name": "run",
            "image_size": 64,
            "feature_cache": "always",
            "augment": AugmentConfig(rotation_deg=180, vertical_flip=True, views=VIEWS),
        }
        | settings
    )
    said: list[str] = []
    lost: dict[int, str] = {}
    wish = FeatureRequest(config, manifest, "imagenet", WORKS, said.append, stopped, lost.update)
    object.__setattr__(wish, "taken", lost)
    object.__setattr__(wish, "said", said)
    return wish


def names(found: dict[str, CachedFeatures]) -> dict[str, Any]:
    return {phase: kept.files for phase, kept in found.items()}


def test_kept_activations_are_what_the_prefix_gives(wish: Any, drawn_manifest: Manifest) -> None:
    """Both cuts from one pass, every row and view of both splits: as computed here, image by image."""
    import keras
    import tensorflow as tf

    from pharmclf.data.augment import apply_transforms, projective_transforms
    from pharmclf.data.image_set import ImageSet
    from pharmclf.data.ray_loader import load_images
    from pharmclf.models.backbone_split import split_tensors
    from pharmclf.models.backbones import build_backbone

    found = get_or_compute(wish)
    assert set(found) == {"phase1", "phase2"}
    passes = [text for text in wish.said if "views computed" in text]
    assert len(passes) == 1
    config = wish.config
    backbone = build_backbone("efficientnet_lite0", 64, "imagenet")
    tensors = split_tensors(backbone)
    both = keras.Model(backbone.input, [tensors[0], tensors[2]])
    for split, views in (("train", VIEWS), ("validation", 1)):
        rows = drawn_manifest.rows(split)
        images = tf.cast(load_images(ImageSet.of(drawn_manifest).select(rows), 64)[0], tf.float32)
        for view in range(views):
            moved = images
            if split == "train":
                transforms = projective_transforms(config.augment, 64, config.seed, view, rows)
                moved = apply_transforms(images, tf.constant(transforms), config.augment.fill)
            for phase, expected in zip(("phase1", "phase2"), both(moved, training=False), strict=True):
                got = FeatureReader(found[phase]).read(split, rows, view)
                assert np.abs(got - expected.numpy()).max() <= 2e-3 * np.abs(expected.numpy()).max()


def test_what_is_there_is_not_computed_again(wish: Any, drawn_manifest: Manifest) -> None:
    """A second run with other learning rates and another head gets the same files without a pass; so does `auto`."""
    first = get_or_compute(wish)
    for mode in ("always", "auto"):
        other = made(wish.config.storage, drawn_manifest, batch_size=7, feature_cache=mode)
        assert names(get_or_compute(other)) == names(first)
        assert other.said == ["feature cache: the features of phase1 and phase2 exist"]  # type: ignore[attr-defined]


def test_only_missing_shards_are_computed(wish: Any, drawn_manifest: Manifest) -> None:
    """One shard damaged, one gone: those two come back with the same content, and no other file is touched."""
    found = get_or_compute(wish)
    kept = found["phase2"]
    damaged = storage.join(kept.location, kept.files["train"][0])
    storage.write_bytes(damaged, storage.read_bytes(damaged)[:-1] + b"?")
    storage.delete_file(storage.join(kept.location, kept.files["validation"][0]))
    others = {
        entry.location: entry.mtime_ns
        for entry in storage.list_files(found["phase1"].location)
        if entry.location.endswith(".npy")
    }
    assert delete_corrupted(found.values()) == 1
    again = get_or_compute(wish)
    assert {phase: len(kept.files["train"]) for phase, kept in again.items()} == {
        phase: len(kept.files["train"]) for phase, kept in found.items()
    }
    assert delete_corrupted(again.values()) == 0
    rows = drawn_manifest.rows("train")
    before = storage.read_bytes(storage.join(again["phase2"].location, again["phase2"].files["train"][0]))
    assert len(before) > 0
    assert FeatureReader(again["phase2"]).read("train", rows, 1).any()
    assert others == {
        entry.location: entry.mtime_ns
        for entry in storage.list_files(found["phase1"].location)
        if entry.location.endswith(".npy")
    }


def test_a_shard_without_one_of_its_images_serves_the_run_that_computed_it_alone(
    shared_ray: None, drawn_manifest: Manifest, tmp_path: Path
) -> None:
    """A file that is gone: its row is NaN and said, the others are as ever. The next run computes that shard again,
    lacks the row again while the file is gone, and has the whole once it is back."""
    manifest = with_copied_files(drawn_manifest, tmp_path / "images")
    row = int(manifest.rows("train")[3])
    path = Path(manifest.table["path"][row])
    content = path.read_bytes()
    path.unlink()
    wishes = [made(str(tmp_path), manifest) for _ in range(2)]
    first, again = (get_or_compute(wish) for wish in wishes)
    assert names(again) == names(first)
    assert [wish.taken for wish in wishes] == [{row: "not there"}] * 2  # type: ignore[attr-defined]
    path.write_bytes(content)
    found = first["phase2"]
    assert [".incomplete" in name for name in found.files["train"]].count(True) == 1
    assert not list(Path(found.location).glob("index.json"))
    values = FeatureReader(found).read("train", manifest.rows("train"), 1)
    whole = get_or_compute(made(str(tmp_path), manifest))
    assert not list(Path(found.location).glob("*.incomplete.npy"))
    expected = FeatureReader(whole["phase2"]).read("train", manifest.rows("train"), 1)
    assert np.isfinite(expected).all()
    assert np.isnan(values[3]).all()
    np.testing.assert_array_equal(np.delete(values, 3, axis=0), np.delete(expected, 3, axis=0))


def test_a_pass_that_was_stopped_leaves_whole_shards_only(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path):
    """Asked to stop, it ends between shards; nothing counts as kept, and the same wish afterwards completes it."""
    stop = threading.Event()
    stopping = made(str(tmp_path), drawn_manifest, stop.is_set)
    stop.set()
    with pytest.raises(StopRequested):
        get_or_compute(stopping)
    assert not list(tmp_path.rglob("index.json"))
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("lease.json"))
    stop.clear()
    assert set(get_or_compute(stopping)) == {"phase1", "phase2"}


def test_two_who_want_the_same_compute_it_once(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path):
    """One computes, the other waits and gets the same files."""
    wishes = [made(str(tmp_path), drawn_manifest) for _ in range(2)]
    found: list[Any] = [None, None]

    def work(number: int) -> None:
        found[number] = names(get_or_compute(wishes[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is not None
    assert found[0] == found[1]
    said = [text for wish in wishes for text in wish.said]  # type: ignore[attr-defined]
    assert len([text for text in said if "views computed" in text]) == 1
    assert [text for text in said if "waiting" in text]


def test_a_dead_process_is_taken_over_from(wish: Any) -> None:
    """A lease whose holder was killed does not hold anybody up, and the shards that it left are not computed again."""
    found = get_or_compute(wish)
    location = found["phase2"].location
    storage.delete_file(storage.join(location, "index.json"))
    code = (
        "import sys, time; from pharmclf.storage.lease import Lease; "
        f"Lease.acquire({location!r}); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert names(get_or_compute(wish)) == names(found)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_falls_back_to_streaming(shared_ray: None, drawn_manifest: Manifest, small_disk: Path) -> None:
    """It is said, nothing is left behind, and the run can go on."""
    wish = made(str(small_disk), drawn_manifest)
    assert get_or_compute(wish) == {}
    (warning,) = [text for text in wish.said if text.startswith("warning")]  # type: ignore[attr-defined]
    assert "No space left" in warning
    assert "streamed" in warning
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_value_beyond_float16_falls_back_to_streaming(
    shared_ray: None, drawn_manifest: Manifest, tmp_path: Path
) -> None:
    """The number format that would hold it is named."""
    import keras

    from pharmclf.models.backbones import build_backbone

    backbone = build_backbone("efficientnet_lite0", 64, "none")
    for layer in backbone.layers:  # ReLU6 holds most outputs below 6, but not those of a block's projection
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(1e6 * np.ones(layer.gamma.shape))
    weights = str(tmp_path / "huge.weights.h5")
    keras.Model(backbone.input, backbone.layers[-2].output).save_weights(weights)
    wish = made(str(tmp_path), drawn_manifest, weights=weights)
    assert get_or_compute(dataclasses.replace(wish, weights="0" * 64)) == {}
    said: list[str] = wish.said  # type: ignore[attr-defined]
    assert any("--feature-cache-dtype float32" in text for text in said), said


def test_more_blocks_than_there_are_is_bad_input(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path) -> None:
    """Found before anything is computed."""
    wish = dataclasses.replace(made(str(tmp_path), drawn_manifest), phases=[PhaseDemand("phase2", 99, 5)])
    with pytest.raises(ConfigError, match="unfreeze_blocks: received 99"):
        get_or_compute(wish)
    assert not storage.exists(cache_root(str(tmp_path)))


def test_weights_that_cannot_be_had_are_bad_input(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path) -> None:
    """The actor that finds it out says so, and does not merely die."""
    with pytest.raises(ConfigError, match=r"nowhere\.h5 is no file"):
        get_or_compute(made(str(tmp_path), drawn_manifest, weights="/nowhere.h5"))
