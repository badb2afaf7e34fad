"""The table of predictions: the images it is of, its rows, its parts, and the file they become."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.report_examples import make_decision

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.distributed.scaling_policy import ClusterNode
from pharmclf.evaluation.metrics import REJECT_ALL, wilson_interval
from pharmclf.evaluation.saved_model import SavedModel
from pharmclf.inference.batch_predict import PredictionSummary
from pharmclf.inference.image_listing import ImageListing, list_images
from pharmclf.inference.interruptible import interruptible
from pharmclf.inference.job import _build_output
from pharmclf.inference.options import PredictOptions
from pharmclf.inference.output_shards import CorruptedShardError, OutputShards
from pharmclf.inference.output_table import SCHEMA, TopKOutput
from pharmclf.inference.placement import plan_actors, should_use_ray

ABOUT = {"model": "sha", "labels": ["a", "b", "c", "d"], "image_size": 64, "temperature": 1.5, "threshold": 0.5}


def images(count: int, **changes: object) -> ImageListing:
    paths = [f"/images/{number:04d}.jpg" for number in range(count)]
    plain = ImageListing(pa.array(paths), np.arange(count) + 7, np.arange(count) + 10**18)
    return dataclasses.replace(plain, **changes)


def parts(count: int, size: int, output: str = "/nowhere/out.parquet", **about: object) -> OutputShards:
    return OutputShards(output=output, images=images(count), size=size, about=ABOUT | about)


def rows(paths: pa.Array, seed: int = 0) -> pa.Table:
    """Answers as a model could give them; the third image is bad."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(4), size=len(paths))[:, None].astype(np.float32)
    answers = TopKOutput(labels=tuple("abcd"), threshold=0.5)
    bad = np.array(['truncated, "quoted"' if place == 2 else "" for place in range(len(paths))])
    return answers.table(paths, answers(probabilities) | {"crop": np.full((len(bad), 3), np.nan)}, bad)


def write_all(whole: OutputShards) -> None:
    for number in range(len(whole)):
        whole.write(number, rows(whole.images.paths[slice(*whole.span(number))]))


# ---- the images


def test_a_folder_is_listed_at_any_depth_and_by_path(root: str):
    """Images of every depth in the order of their paths; what is hidden or no image is left out, and noted."""
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "b/c/d/3.tif", ".hidden/4.jpg", "b/notes.txt", "__MACOSX/5.jpg"):
        storage.write_bytes(storage.join(root, name), name.encode())
    listed = list_images(root)
    names = ["a.jpeg", "b/1.png", "b/2.JPG", "b/c/d/3.tif"]
    assert listed.paths.to_pylist() == [storage.join(root, name) for name in names]
    assert listed.sizes_bytes.tolist() == [len(name) for name in names]
    assert (listed.mtimes_ns > 10**18).all()
    assert listed.notes == ("files not read, hidden: 2", "files not read, of other types (1 .txt): 1")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_keeps_its_order_its_duplicates_and_its_other_columns(root: str, kind: str):
    """Paths are relative to the list or absolute; a column whose name the table has gets another name, and a note."""
    storage.write_bytes(storage.join(root, "images/b.jpg"), b"four")
    whole = storage.join(root, "images/b.jpg")
    names = ["images/b.jpg", "images/a, c.jpg", whole]
    frame = pd.DataFrame({"ward": [3, 1, 2], "label": ["x", "y", ""], "path": names})
    content = frame.to_csv(index=False).encode() if kind == "csv" else frame.to_parquet()
    storage.write_bytes(storage.join(root, f"list.{kind}"), content)
    listed = list_images(storage.join(root, f"list.{kind}"))
    assert listed.paths.to_pylist() == [whole, storage.join(root, "images/a, c.jpg"), whole]
    assert listed.sizes_bytes.tolist() == [4, 0, 4]
    wards = ["3", "1", "2"] if kind == "csv" else [3, 1, 2]
    assert listed.columns is not None
    assert listed.columns.to_pydict() == {"ward": wards, "list_label": ["x", "y", ""]}
    assert listed.notes == ("columns of the list whose names the table has already: label as list_label",)


def test_a_list_of_files_that_are_not_there_says_where_they_were_looked_for(tmp_path: Path):
    """The rows stay, since each answer says that its image is not there."""
    (tmp_path / "list.csv").write_text("Filename;ward\nC:\\a.jpg;3\n")
    listed = list_images(str(tmp_path / "list.csv"))
    assert listed.paths.to_pylist() == [f"{tmp_path}/C:\\a.jpg"]
    assert listed.columns is not None
    assert listed.columns.column_names == ["Filename", "ward"]
    assert any(
        f"The first is 'C:\\\\a.jpg', looked for as {tmp_path}/C:\\a.jpg and {tmp_path}/C:/a.jpg" in note
        for note in listed.notes
    )


def test_one_image_is_an_input(tmp_path: Path):
    """A file that is an image."""
    (tmp_path / "a.png").write_bytes(b"12345")
    listed = list_images(str(tmp_path / "a.png"))
    assert (listed.paths.to_pylist(), listed.sizes_bytes.tolist()) == ([str(tmp_path / "a.png")], [5])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nothing there"),
        ("empty", "no image .it is empty"),
        ("texts", "no image .found: files not read, of other types .1 .txt.: 1"),
        ("texts/a.txt", "received a file, expected a folder, an image, or a .csv or .parquet list"),
        ("file.csv", "no column path; found: name, label"),
        ("file.parquet", "not a list"),
    ],
)
def test_an_input_that_is_none_is_named(tmp_path: Path, name: str, words: str):
    """The message says what was received, and what is wrong with it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    (tmp_path / "file.csv").write_text("name,label\na,b\n")
    (tmp_path / "file.parquet").write_text("no Parquet")
    with pytest.raises(ConfigError, match=f"--input .*{name}: {words}"):
        list_images(str(tmp_path / name))


# ---- the rows


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_row_holds_the_best_classes_in_order(num_classes: int, count: int, seed: int):
    """Labels and confidences are the largest probabilities; where classes or pixels are lacking, they are null."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(num_classes), size=count)
    labels = tuple(f"class {number}" for number in range(num_classes))
    bad = np.where(generator.random(count) < 0.3, "empty", "")
    answers = TopKOutput(labels=labels, threshold=0.6)
    whole = np.full((count, 3), np.nan)
    table = answers.table(pa.array(["p"] * count), answers(probabilities[:, None]) | {"crop": whole}, bad)
    assert table.schema == SCHEMA
    for row, given_row, reason in zip(table.to_pylist(), probabilities, bad, strict=True):
        assert row["error"] == (reason or None)
        assert row["abstain"] == (bool(reason) or given_row.max() < 0.6)
        best = sorted(given_row, reverse=True)
        for place, suffix in enumerate(("", "_2", "_3")):
            if reason or place >= num_classes:
                assert row[f"label{suffix}"] is row[f"confidence{suffix}"] is None
            else:
                assert row[f"confidence{suffix}"] == best[place]
                assert given_row[labels.index(row[f"label{suffix}"])] == best[place]


def test_equal_classes_keep_the_order_of_the_model():
    """Nothing but the labels' order decides between equal probabilities."""
    answers = TopKOutput(labels=tuple("dcba"))
    found = answers(np.full((1, 1, 4), 0.25, np.float32))
    assert found["best"].tolist() == [[0, 1, 2]]


def test_without_a_threshold_nothing_is_said_of_abstaining():
    """The column is null, also for a bad image."""
    answers = TopKOutput(labels=("a", "b"))
    bad, whole = np.array(["", "empty"]), np.full((2, 3), np.nan)
    table = answers.table(pa.array(["p", "q"]), answers(np.full((2, 1, 2), 0.5)) | {"crop": whole}, bad)
    assert table["abstain"].to_pylist() == [None, None]
    assert table["unknown"].to_pylist() == table["strangeness"].to_pylist() == [None, None]


def test_a_row_says_where_the_model_looked():
    """Null where it looked at all of an image."""
    crops = np.array([[0.25, 0.5, 0.375], [np.nan] * 3])
    answers = TopKOutput(labels=("a", "b"))
    found = answers(np.full((2, 1, 2), 0.5)) | {"crop": crops}
    table = answers.table(pa.array(["p", "q"]), found, np.array(["", ""]))
    columns = [table[f"crop_{name}"].to_pylist() for name in ("left", "top", "side")]
    assert columns == [[0.25, None], [0.5, None], [0.375, None]]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([0.5, 0.25, 0.25], "received 3 outputs and 2 labels"),
        ([1.7, -0.7], "no probabilities"),
        ([0.4, 0.4], "no probabilities"),
        ([np.nan, 0.5], "no probabilities"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(outputs: list[float], words: str):
    """As many labels as outputs, and outputs that are probabilities."""
    with pytest.raises(ConfigError, match=words):
        TopKOutput(labels=("a", "b"))(np.array([[outputs]], np.float32))


# ---- the parts


@given(st.integers(1, 300), st.integers(1, 70))
def test_every_image_is_of_one_part(count: int, size: int):
    """The spans join without gap or overlap, and none is empty."""
    divided = parts(count, size)
    places = [place for number in range(len(divided)) for place in range(*divided.span(number))]
    assert places == list(range(count))
    assert len(set(divided.names)) == len(divided) == len([name for name in divided.names if name])


def test_a_change_renames_the_parts_that_it_concerns():
    """Another size, time or path of an image: its part; another model or threshold: all."""
    plain = parts(20, 8)
    other_sizes, other_times = plain.images.sizes_bytes.copy(), plain.images.mtimes_ns.copy()
    other_sizes[9] += 1
    other_times[19] += 1
    other_paths = plain.images.paths.to_pylist()
    other_paths[0] += "x"

    def changed(other: OutputShards) -> list[int]:
        return [number for number, name in enumerate(plain.names) if other.names[number] != name]

    assert changed(parts(20, 8)) == []
    assert changed(dataclasses.replace(plain, images=images(20, sizes_bytes=other_sizes))) == [1]
    assert changed(dataclasses.replace(plain, images=images(20, mtimes_ns=other_times))) == [2]
    assert changed(dataclasses.replace(plain, images=images(20, paths=pa.array(other_paths)))) == [0]
    for name in ABOUT:
        assert changed(parts(20, 8, **{name: "another"})) == [0, 1, 2]


def test_csv_and_parquet_say_the_same(root: str):
    """Both hold every part in order, to the last digit; nulls, quotes and commas come back."""
    tables = [rows(images(10).paths[first : first + 4], first) for first in (0, 4, 8)]
    for kind in ("parquet", "csv"):
        whole = parts(10, 4, storage.join(root, f"out.{kind}"))
        for number in (2, 0, 1):
            whole.write(number, tables[number])
        assert whole.existing() == (set(whole.names), set())
        seen: list[pa.Table] = []
        whole.join(seen.append)
        assert seen == tables
    expected = pa.concat_tables(tables)
    parquet = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, "out.parquet"))))
    assert parquet == expected
    options = pyarrow.csv.ConvertOptions(
        column_types=SCHEMA, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
    )
    content = io.BytesIO(storage.read_bytes(storage.join(root, "out.csv")))
    assert pyarrow.csv.read_csv(content, convert_options=options) == expected
    assert expected["error"].drop_null().to_pylist() == ['truncated, "quoted"'] * 2


def test_a_damaged_part_is_deleted_and_named(tmp_path: Path):
    """Cut off, or of other images: the join leaves nothing, and the part is missing from then on."""
    whole = parts(6, 3, str(tmp_path / "out.parquet"))
    write_all(whole)
    good = (Path(whole.folder) / whole.names[0]).read_bytes()
    for content in (good[:-20], good):
        (Path(whole.folder) / whole.names[1]).write_bytes(content)
        with pytest.raises(CorruptedShardError, match=rf"{whole.names[1]}: .*It has been deleted"):
            whole.join(lambda _: None)
        assert whole.existing() == ({whole.names[0]}, set())
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet.parts"]


def test_a_table_is_known_again(root: str):
    """A complete one says so, whatever the size of its parts; another is refused with the field that differs."""
    output = storage.join(root, "out.parquet")
    whole = parts(6, 3, output)
    assert not whole.is_complete()
    write_all(whole)
    whole.join(lambda _: None)
    assert whole.is_complete()
    assert parts(6, 4, output).is_complete()
    for other, words in (
        (parts(6, 3, output, model="new"), "model"),
        (parts(6, 3, output, model="new", threshold=0.9), "model and threshold"),
        (parts(7, 3, output), "images"),
    ):
        with pytest.raises(ConfigError, match=f"is there already, and differs in its {words}. Give --overwrite"):
            other.is_complete()


def test_a_csv_table_is_known_again_until_its_text_changes(root: str):
    """What Parquet holds in its footer is in a file beside it, and only for the text that was written."""
    output = storage.join(root, "out.csv")
    storage.write_bytes(output, b"path\n")
    with pytest.raises(ConfigError, match="of which model and images it is"):
        parts(6, 3, output).is_complete()
    whole = parts(6, 3, output)
    write_all(whole)
    whole.join(lambda _: None)
    assert whole.is_complete()
    with pytest.raises(ConfigError, match="and differs in its threshold"):
        parts(6, 3, output, threshold=0.9).is_complete()
    storage.write_bytes(output, storage.read_bytes(output) + b"a row of the user\n")
    with pytest.raises(ConfigError, match="of which model and images it is"):
        whole.is_complete()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_columns_of_a_list_follow_the_answers_row_by_row(tmp_path: Path, kind: str):
    """Across parts; other values in them are another table, with the same parts."""
    columns = pa.table({"ward": [f"ward {9 - number}" for number in range(6)], "room": range(6)})
    whole = parts(6, 4, str(tmp_path / f"out.{kind}"))
    listed = dataclasses.replace(whole, images=dataclasses.replace(whole.images, columns=columns, columns_key="sha"))
    assert listed.names == whole.names
    assert listed.key != whole.key
    write_all(listed)
    listed.join(lambda _: None)
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    found = read(tmp_path / f"out.{kind}")
    assert found.columns.tolist() == [*SCHEMA.names, "ward", "room"]
    assert found["path"].tolist() == whole.images.paths.to_pylist()
    assert found["ward"].tolist() == [f"ward {9 - number}" for number in range(6)]
    assert found["room"].tolist() == list(range(6))
    assert listed.is_complete()


def test_a_column_that_csv_cannot_hold_is_refused_before_anything_is_predicted(tmp_path: Path):
    """The message names the column and the way out."""
    columns = pa.table({"boxes": [[1, 2]] * 3})
    listed = dataclasses.replace(
        parts(3, 2, str(tmp_path / "out.csv")), images=images(3, columns=columns, columns_key="sha")
    )
    with pytest.raises(ConfigError, match=r"the column boxes of the list holds list<.*Give --output FILE\.parquet"):
        listed.is_complete()


# ---- who predicts, and how it is waited for


def test_ray_is_started_where_it_pays():
    """Few images, or one machine with one GPU or none: this process. A cluster or several GPUs: Ray."""

    def chosen(workers: str = "auto", count: int = 5000, cluster: bool = False, gpus: int = 0, **what: str) -> bool:
        accelerator = what.get("accelerator", "auto")
        return should_use_ray(workers, accelerator, count, on_cluster=cluster, gpus_here=gpus)  # type: ignore[arg-type]

    assert not chosen()
    assert not chosen(gpus=1)
    assert chosen(gpus=2)
    assert chosen(cluster=True)
    assert not chosen(cluster=True, count=50)
    assert chosen(cluster=True, count=50, accelerator="gpu")
    assert chosen("2", count=1)
    assert not chosen("0", cluster=True)
    with pytest.raises(ConfigError, match="--accelerator gpu: this machine has none"):
        chosen(accelerator="gpu")


def test_a_process_predicts_on_every_gpu_or_node():
    """One for each GPU; without GPUs, or where they are left to others, one for each node that can decode."""

    def node(cpus: float, gpus: float) -> ClusterNode:
        return ClusterNode("id", "10.0.0.1", 1, cpus, gpus)

    mixed, plain = [node(8, 4), node(8, 2), node(4, 0)], [node(8, 0), node(2, 0), node(0, 0)]
    assert plan_actors(mixed, "auto", "auto") == plan_actors(mixed, "auto", "gpu") == 6
    assert plan_actors(mixed, "auto", "cpu") == 3
    assert plan_actors(plain, "auto", "auto") == 2
    assert plan_actors(plain, "5", "auto") == 5
    assert plan_actors(mixed, "4", "auto") == 4
    with pytest.raises(ConfigError, match="received 7, but there are 6 GPUs"):
        plan_actors(mixed, "7", "auto")
    with pytest.raises(ConfigError, match="--accelerator gpu: there are 10 CPUs and 0 GPUs"):
        plan_actors(plain, "auto", "gpu")


def test_a_stop_ends_a_stream_that_gives_nothing():
    """The stream is left while it is waited for, and closed when it gives its next item."""
    closed, go_on, stop = threading.Event(), threading.Event(), threading.Event()

    def stream() -> Iterator[int]:
        try:
            yield 1
            stop.set()
            go_on.wait(5)
            yield 2
        finally:
            closed.set()

    found = []
    threading.Thread(target=lambda: (stop.wait(), time.sleep(0.3), go_on.set())).start()
    for item in interruptible(lambda: stop.is_set(), stream()):  # type: ignore[arg-type]
        found.append(item)
    assert found in ([], [1])
    assert closed.wait(5)


def test_an_error_of_a_stream_comes_at_its_place():
    """Items before it come out first."""

    def stream() -> Iterator[int]:
        yield 1
        yield 2
        raise ConfigError("third")

    items = interruptible(lambda: False, stream())  # type: ignore[arg-type]
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ConfigError, match="third"):
        next(items)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": ""}, "--model: received nothing"),
        ({"input": ""}, "--input: received nothing"),
        ({"output": "out.txt"}, "--output: received 'out.txt', expected FILE.parquet or FILE.csv"),
        ({"output": "images.csv", "input": "./images.csv"}, "--output: received the list of --input"),
        ({"threshold": 1.5}, "--threshold: received 1.5"),
        ({"num_workers": "all"}, "--num-workers: received 'all'"),
        ({"part_size": 0}, "--part-size: received 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], words: str):
    """Before anything is looked for."""
    with pytest.raises(ConfigError, match=words):
        PredictOptions(**{"model": "m", "input": "i", "output": "o.csv"} | wrong)  # type: ignore[arg-type]


def test_a_model_that_may_not_answer_is_described_in_words(tmp_path: Path):
    """Its threshold is above every confidence, and no number that a reader could make anything of."""
    model = SavedModel(
        location=str(tmp_path / "model.keras"), sha256="", labels=("a", "b"), image_size=8,
        decision=make_decision(REJECT_ALL, max_error=0.01), run_folder=None,
    )  # fmt: skip
    said: list[str] = []
    assert _build_output(model, None, said.append).threshold == REJECT_ALL
    assert said == [
        "note: the model answers nothing by itself: on its validation images no confidence gave at most 1.00% wrong "
        "answers; --threshold gives it one"
    ]
    said.clear()
    PredictionSummary(num_images=1234, num_abstained=1234, num_bad=4).summary_line(
        "out.csv", REJECT_ALL, None, None, said.append
    )
    PredictionSummary(num_images=10, num_abstained=4, num_bad=1).summary_line("out.csv", 0.75, None, None, said.append)
    assert said[1] == "all 1,230 images are for a person: the model answers nothing by itself"
    assert said[4] == "3 of 9 images (33.3%) are for a person: 3 below the confidence 0.7500"


@pytest.mark.parametrize(("abstained", "warned"), [(500, True), (150, True), (115, False), (0, False)])
def test_images_that_are_answered_less_often_than_the_validation_images_are_doubted(abstained: int, warned: bool):
    """Of 320 validation images it answers nine in ten."""
    said: list[str] = []
    summary = PredictionSummary(num_images=1010, num_abstained=abstained + 10, num_bad=10)
    summary.summary_line("out.csv", 0.75, wilson_interval(288, 320), None, said.append)
    assert any(line.startswith("warning: the model answers") for line in said) == warned


@pytest.mark.parametrize(("unknown", "warned"), [(200, True), (60, False)])
def test_images_that_are_unknown_more_often_than_the_validation_images_are_doubted(unknown: int, warned: bool):
    """Of 320 validation images it calls 16 unknown; both numbers are said."""
    said: list[str] = []
    summary = PredictionSummary(num_images=1010, num_abstained=310, num_bad=10, num_unknown=unknown)
    summary.summary_line("out.csv", 0.75, None, wilson_interval(16, 320), said.append)
    reasons = f"{unknown} unlike the training images, {300 - unknown} below the confidence 0.7500"
    assert f"300 of 1,000 images (30.0%) are for a person: {reasons}" in said
    warning = "warning: the model calls 20.0% of these images unknown, and 5.0% of those: they look unlike those"
    assert any(line.startswith(warning.replace("those:", "its validation images:")) for line in said) == warned
