"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
from support.s3proxy import Fault, Proxy, Request, Through
from support.s3server import Gateway, missing_programs
from support.sharing import make_once
from support.trained_runs import TrainedRuns, trained_runs

from pharmclf.config import AugmentConfig, HeadConfig, PhaseConfig, RunConfig
from pharmclf.models import devices
from pharmclf.storage import objects

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
hypothesis.settings.register_profile("any machine", deadline=None)  # a slow machine is no fault
hypothesis.settings.load_profile("any machine")
devices.keep_devices()  # tests share this process, in which TensorFlow may be at work before a run starts


# measured; a file that is not here takes less, or is new
_LONGEST = (
    "jobs/test_train.py",
    "jobs/test_submission.py",
    "training/test_gradient_accumulation.py",
    "training/test_trainer.py",
    "contracts/test_frozen_files.py",
    "jobs/test_s3.py",
    "jobs/test_gpu.py",
    "test_api.py",
    "jobs/test_sweep.py",
    "jobs/test_feature_cache_job.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--renew-goldens writes tests/goldens/ anew; read the difference before it is committed."""
    parser.addoption("--renew-goldens", action="store_true", help="write the golden texts of the named configs anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that use Ray or TensorFlow come first, those that take longest before all others.

    Three processes take file after file (`--dist loadfile`), and the short ones level out when the long ones end.
    """

    def rank(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[0].removeprefix("tests/")
        if name in _LONGEST:
            return _LONGEST.index(name)
        return len(_LONGEST) + (name not in heavy)

    marked = [item for item in items if item.get_closest_marker("ray") or item.get_closest_marker("tf")]
    heavy = {item.nodeid.partition("::")[0].removeprefix("tests/") for item in marked}
    items.sort(key=rank)


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """One S3 server for all tests."""
    if reason := missing_programs():
        pytest.skip(reason)
    server = Gateway().start()
    yield server
    server.stop()


@pytest.fixture
def bucket(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket, which this process can reach."""
    gateway.use(monkeypatch)
    return f"s3://{gateway.new_bucket()}"


@pytest.fixture
def through(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Starts a proxy between this process and the server."""
    with contextlib.ExitStack() as stack:

        def start(choose: Callable[[Request], Fault | None]) -> Proxy:
            proxy = stack.enter_context(Proxy(gateway.bind, gateway.port, choose))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            objects.reset_connections()
            return proxy

        yield start
    objects.reset_connections()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest) -> str:
    """An empty place in each kind of storage, one after the other."""
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    return str(folder)


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for all tests, with the settings that a run has."""
    import ray

    from pharmclf.distributed.cluster import connect

    # a proxy where nobody listens, which gRPC alone would ask: workers must reach each other without it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("grpc_proxy", "http://127.0.0.1:9")
        connect()  # its processes keep the variable; tests that start programs do without
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of drawn images, ten classes of eight."""
    from pharmclf.data.demo import write_demo

    home = make_once(tmp_path_factory, "demo", lambda home: write_demo(home / "images", seed=0, images_per_class=8))
    return str(home / "images")


@pytest.fixture(scope="session")
def trained(shared_ray: None, drawn_images: str, tmp_path_factory: pytest.TempPathFactory) -> TrainedRuns:
    """A run that was killed, interrupted and completed, and the same run unbroken; no test may change them."""
    return trained_runs(tmp_path_factory, drawn_images)


@pytest.fixture(scope="session")
def drawn_manifest(drawn_images: str) -> Any:
    """The manifest of the drawn images, with splits."""
    from support.manifests import build_manifest

    from pharmclf.data.splits import split_rows

    manifest = build_manifest(drawn_images)
    labels, groups = manifest.table["label"].to_numpy(), manifest.table["group"].to_numpy()
    return manifest.with_splits(split_rows(labels, groups, 0, 0.25, 0.25))


@pytest.fixture(scope="session")
def make_job(shared_ray: None, drawn_images: str, drawn_manifest: Any) -> Callable[..., Any]:
    """Makes a small job: EfficientNet-Lite0 at 64 pixels, four or five steps an epoch, two epochs a phase."""
    from pharmclf.data.image_set import ImageSet
    from pharmclf.training.context import TrainingContext

    table = drawn_manifest.table
    names = {name: number for number, name in enumerate(drawn_manifest.class_names)}

    def make(folder: str, **settings: Any) -> TrainingContext:
        config = RunConfig(
            **{
                "data": drawn_images,
                "num_workers": "0",
                "image_size": 64,
                "batch_size": 10,
                "head": HeadConfig(dense=(), dropout=0.2),
                "augment": AugmentConfig(
                    rotation_deg=180,
                    vertical_flip=True,
                    brightness=0.3,
                    contrast=0.2,
                    color=0.2,
                    blur=0.02,
                    noise=10,
                    erase=0.2,
                ),
                "phase1": PhaseConfig(epochs=2, learning_rate=1e-3),
                "phase2": PhaseConfig(epochs=2, learning_rate=1e-4),
                "checkpoint_interval_s": 0,
            }
            | settings
        )
        return TrainingContext(
            config=config,
            folder=folder,
            class_names=drawn_manifest.class_names,
            images=ImageSet.of(drawn_manifest),
            labels=table["label"].map(names).to_numpy(np.int64),
            train_rows=drawn_manifest.rows("train"),
            validation_rows=drawn_manifest.rows("validation"),
            fingerprints={"data": drawn_manifest.fingerprint},
        )

    return make
