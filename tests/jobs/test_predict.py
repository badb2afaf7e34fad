"""jobs/predict.py as a user runs it: killed, stopped, repeated, and with bad input."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.programs import call, finish, kill_tree, signal_when, start, wait_for
from support.small_model import save_small_model

from pharmclf.inference.job import predict_images
from pharmclf.inference.options import PredictOptions

PREDICT = "jobs/predict.py"
predicted = partial(call, program=PREDICT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its labels."""
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, ["one", "two", "three"], image_size=64)
    return folder


COUNT = 2000


@pytest.fixture
def images(drawn_images: str, tmp_path: Path) -> Path:
    """A folder of so many copies of drawn images that a job is seen in the middle."""
    sources, folder = sorted(Path(drawn_images).rglob("*.jpg")), tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        shutil.copyfile(sources[number % len(sources)], folder / f"{number:04d}.jpg")
    return folder


def states(parts: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in parts.glob("part-*")}


def standing(parts: Path, count: int) -> Callable[[], bool]:
    return lambda: len(states(parts)) >= count


@pytest.mark.tf
def test_a_killed_job_goes_on_without_predicting_its_parts_again(images: Path, model: Path, tmp_path: Path):
    """SIGKILL in the middle, SIGTERM further on: no finished part is touched, and the table is the unbroken one.

    Meanwhile a second job of the same output is refused.
    """
    output, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    arguments = [f"--model={model}", f"--input={images}", f"--output={output}", "--part-size=20", "--num-workers=0"]
    process = start(*arguments, program=PREDICT)
    wait_for(process, standing(parts, 9))
    process.send_signal(signal.SIGSTOP)
    second = predicted(*arguments)
    assert second.returncode == 2, second.stdout
    assert f"is being written by process {process.pid} on " in second.stderr
    kill_tree(process)
    first = states(parts)
    assert 9 <= len(first) < COUNT // 20

    with signal_when(standing(parts, len(first) + 5), signal.SIGTERM):
        ended = predicted(*arguments)
    said = ended.stdout
    assert ended.returncode == 143, said + ended.stderr
    assert f"{len(first)} of 100 parts" in said
    assert f"predicting {COUNT - 20 * len(first):,} images in this process" in said
    assert "stopping" in said
    assert "stopped on request" in said
    between = states(parts)
    assert len(first) + 5 <= len(between) < COUNT // 20
    assert first.items() <= between.items()
    assert not (parts / "lease.json").exists()

    shutil.copyfile(images / "0001.jpg", images / "0000.jpg")  # another image in a finished part: it is made again
    ended = predicted(*arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(between) - 1} of 100 parts" in ended.stdout
    assert f"predicting {COUNT - 20 * (len(between) - 1):,} images in this process" in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.parquet"]
    unbroken = PredictOptions(
        model=str(model), input=str(images), output=str(tmp_path / "unbroken.parquet"), num_workers="0"
    )
    assert predict_images(unbroken, lambda _: None) == 0
    found, expected = (pq.read_table(tmp_path / name).to_pandas() for name in ("out.parquet", "unbroken.parquet"))
    assert found["path"].tolist() == sorted(map(str, images.iterdir()))
    assert found.equals(expected)
    assert found["error"].isna().all()


@pytest.mark.tf
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_on_ray_ends_on_a_signal_and_goes_on(
    images: Path, model: Path, tmp_path: Path, number: signal.Signals, code: int
):
    """While Ray starts, and in the middle, where SIGKILL follows for driver and workers; then it ends as unbroken."""
    output, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    arguments = [f"--model={model}", f"--input={images}", f"--output={output}", "--part-size=20", "--num-workers=2"]
    process = start(*arguments, program=PREDICT)
    wait_for(process, (parts / "lease.json").exists)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert not list(tmp_path.glob("out*"))

    process = start(*arguments, program=PREDICT)
    wait_for(process, standing(parts, 9))
    kill_tree(process)
    first = states(parts)
    assert len(first) < COUNT // 20
    ended = finish(*arguments, program=PREDICT, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(first)} of 100 parts" in ended.stdout
    assert output.read_text().count("\n") == COUNT + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv", "out.csv.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=nowhere"], "--model nowhere: no model there"),
        (["--model=MODEL", "--input=empty"], "--input empty: no image"),
        (["--model=MODEL", "--threshold=2"], "--threshold: received 2"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    """The error names what was received; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = [argument.replace("MODEL", str(model)) for argument in arguments]
    done = predicted("--input=empty", "--output=out.csv", *given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
