"""jobs/train.py from S3 into S3, on a real server: killed, cut off, refused; nothing lost in between."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.manifests import build_manifest
from support.programs import SMALL, call, final, finish, in_the_middle_of, kill_tree, start, wait_for
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.storage import objects
from pharmclf.training.checkpoint import list_checkpoints

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.tf]


@pytest.fixture(scope="module")
def undisturbed(drawn_images: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The final tensors of the same run on local disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = finish(f"--data={drawn_images}", f"--storage={folder}", "--name=run", "--num-workers=0", *SMALL)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return final(folder / "run")


@pytest.fixture
def remote(drawn_images: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run from the bucket into the bucket; what waits for an upload lies in a folder of the test."""
    monkeypatch.setenv("PHARMCLF_STORAGE_SPOOL", str(tmp_path / "spool"))
    storage.upload_folder(Path(drawn_images), f"{bucket}/images")
    return [f"--data={bucket}/images", f"--storage={bucket}/runs", "--name=run", *SMALL]


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float(np.abs(one["weights"][name] - other["weights"][name]).max()) for name in other["weights"])


def test_a_run_of_two_workers_goes_from_bucket_to_bucket_and_the_best_is_fetched(
    remote: list[str],
    bucket: str,
    gateway: Gateway,
    drawn_images: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared_ray: None,
):
    """It ends as a run of one process on local disk does; features are read through the node's cache; no secret stands
    in anything that was written or printed; and the fetched model predicts what the run has reported."""
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE", str(tmp_path / "cache"))
    keep = ["--feature-cache=always", "--augment.views=2", "--phase1.epochs=2", "--phase2.epochs=2"]
    ended = finish("--num-workers=2", *remote, *keep)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    local = call(f"--data={drawn_images}", f"--storage={tmp_path}/runs", "--name=run", "--num-workers=0", *SMALL, *keep)
    assert local.returncode == 0, local.stdout + local.stderr
    assert largest_difference(final(f"{bucket}/runs/run"), final(tmp_path / "runs" / "run")) < 2e-3
    cached = {path.name for path in (tmp_path / "cache").glob("*.npy")}
    assert cached
    assert cached <= {Path(entry.location).name for entry in storage.list_files(f"{bucket}/runs/activations")}

    secret = gateway.environment()["AWS_SECRET_ACCESS_KEY"]
    written = [entry.location for entry in storage.list_files(f"{bucket}/runs")]
    assert any(name.endswith("run.json") for name in written)
    assert secret not in ended.stdout + ended.stderr
    assert not [name for name in written if secret.encode() in storage.read_bytes(name)]

    fetched = call(f"--storage={bucket}/runs", f"--out={tmp_path}/best", program="jobs/fetch_best.py")
    assert fetched.returncode == 0, fetched.stderr
    check_predictions(bucket, tmp_path / "best")


def check_predictions(bucket: str, fetched: Path) -> None:
    import pyarrow.parquet as pq

    from pharmclf.data.image_set import ImageSet
    from pharmclf.evaluation.predict import predict

    with storage.local_file(f"{bucket}/runs/run/evaluation/test/predictions.parquet") as path:
        stored = pq.read_table(path).to_pydict()
    found = predict([str(fetched / "model.keras")], ImageSet.of_paths(stored["path"]), 64, actors=0)[0][:, 0]
    np.testing.assert_allclose(found, np.array(stored["probabilities"]), atol=1e-5)


@pytest.mark.slow
def test_two_workers_killed_between_bucket_and_bucket_resume(
    remote: list[str], bucket: str, undisturbed: dict[str, Any]
):
    """SIGKILL in the middle; the same command ends as the local run does."""
    process = start("--num-workers=2", *remote)
    wait_for(process, in_the_middle_of(f"{bucket}/runs/run", 1))
    kill_tree(process)
    ended = finish("--num-workers=2", *remote)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed from phase" in ended.stdout
    assert largest_difference(final(f"{bucket}/runs/run"), undisturbed) < 2e-3


@pytest.mark.slow
def test_an_outage_of_twenty_seconds_changes_nothing(
    remote: list[str], bucket: str, gateway: Gateway, undisturbed: dict[str, Any]
):
    """The server stops in the middle of an epoch and comes back: the run ends with the very same weights.

    While it runs, a second driver of the same name is refused.
    """
    process = start("--num-workers=0", *remote)
    wait_for(process, in_the_middle_of(f"{bucket}/runs/run", 0))
    second = finish("--num-workers=0", *remote)
    assert second.returncode == 2, second.stdout
    assert f"is being written by process {process.pid} on " in second.stderr
    gateway.stop_gateway()
    try:
        time.sleep(20)
        assert process.poll() is None
    finally:
        gateway.start_gateway()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    ended = final(f"{bucket}/runs/run")
    assert all(np.array_equal(ended["weights"][name], array) for name, array in undisturbed["weights"].items())


@pytest.mark.slow
def test_a_storage_gone_for_good_ends_the_run_with_its_last_checkpoint_in_the_spool(
    remote: list[str],
    bucket: str,
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
):
    """Exit code 1, the endpoint and the spool named, no traceback; with the server back, nothing has been lost."""
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", "5")
    process = start("--num-workers=0", *remote)
    wait_for(process, in_the_middle_of(f"{bucket}/runs/run", 0))
    gateway.stop_gateway()
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        gateway.start_gateway()
    assert process.returncode == 1, output
    assert f"no answer at {gateway.url} for 5 s" in output
    assert "Traceback" not in output
    assert f"They are kept in {tmp_path}/spool" in output
    (spool,) = (tmp_path / "spool").iterdir()
    kept = list_checkpoints(str(spool))[-1]
    ended = finish("--num-workers=0", *remote)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"uploaded {kept.name} " in ended.stdout
    assert f"resumed from {kept.name}" in ended.stdout
    weights = final(f"{bucket}/runs/run")["weights"]
    assert all(np.array_equal(weights[name], array) for name, array in undisturbed["weights"].items())


@pytest.mark.parametrize("where", ["--data", "--storage"])
def test_refusals_of_the_storage_are_bad_input(
    bucket: str, drawn_images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    """A wrong secret and a missing bucket: exit code 2, at once, with what to check and without the secret."""
    flags = {"--data": drawn_images, "--storage": str(tmp_path)}

    def refused(location: str) -> str:
        objects.reset_connections()
        ended = call(*(f"{name}={value}" for name, value in (flags | {where: location}).items()), "--num-workers=0")
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr

    assert "no bucket s3://no-such-bucket" in refused("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-0123")
    message = refused(f"{bucket}/x")
    assert "access denied" in message
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "wrong-secret-0123" not in message


def test_a_truncated_object_is_quarantined_by_name(bucket: str, drawn_images: str):
    """Half an image in the bucket is one row of the manifest with its reason; the others are used."""
    storage.upload_folder(Path(drawn_images), f"{bucket}/images")
    name = next(entry.location for entry in storage.list_files(f"{bucket}/images") if entry.location.endswith(".jpg"))
    content = storage.read_bytes(name)
    storage.write_bytes(name, content[: len(content) // 2])
    manifest = build_manifest(f"{bucket}/images")
    assert manifest.quarantined[["path", "status"]].to_numpy().tolist() == [[name, "truncated"]]
    assert len(manifest.ok) == 79


def test_uris_with_credentials_are_refused(drawn_images: str):
    """They would stand in run.json and in logs."""
    ended = call(f"--data={drawn_images}", "--storage=s3://key:secret@bucket/x")
    assert ended.returncode == 2
    assert "URI with credentials" in ended.stderr
    assert "secret@" not in ended.stderr


def test_weights_are_read_from_the_bucket(bucket: str, tmp_path: Path):
    """--weights s3://…: a backbone saved there is the one that is trained."""
    from pharmclf.models.backbones import build_backbone

    trained = build_backbone("efficientnet_lite0", 64, "imagenet")
    trained.save_weights(tmp_path / "lite0.weights.h5")
    storage.copy_file(tmp_path / "lite0.weights.h5", f"{bucket}/lite0.weights.h5")
    found = build_backbone("efficientnet_lite0", 64, f"{bucket}/lite0.weights.h5").get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(found, trained.get_weights(), strict=True))


def test_a_list_in_the_bucket_names_objects_of_the_bucket(bucket: str, drawn_images: str):
    """A CSV of URIs and of paths relative to it: the same images as by class folders."""
    storage.upload_folder(Path(drawn_images), f"{bucket}/images")
    by_folder = build_manifest(f"{bucket}/images")
    paths = by_folder.table["path"].tolist()
    mixed = [path if place % 2 else path.removeprefix(f"{bucket}/") for place, path in enumerate(paths)]
    rows = [f"{path},{label}" for path, label in zip(mixed, by_folder.table["label"], strict=True)]
    storage.write_bytes(f"{bucket}/list.csv", "\n".join(["path,label", *rows]).encode())
    by_list = build_manifest(f"{bucket}/list.csv")
    columns = ["path", "label", "sha256", "status"]
    assert by_list.table[columns].equals(by_folder.table[columns])
