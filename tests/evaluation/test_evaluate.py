"""The evaluation: numbers with intervals, text and files."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score

from pharmclf import storage
from pharmclf.evaluation import evaluate as ev

NAMES = ["ibuprofen", "amoxil", "zocor", "never seen", "aspirin"]


def make_predictions(count=120, seed=0):
    """Predictions of a model that is right in 85 of 100 cases, and their probabilities; class 3 occurs nowhere."""
    generator = np.random.default_rng(seed)
    used = np.array([0, 1, 2, 4])
    truth = used[generator.integers(0, 4, count)]
    predicted = np.where(generator.random(count) < 0.85, truth, used[generator.integers(0, 4, count)])
    probabilities = generator.random((count, len(NAMES)))
    probabilities[np.arange(count), predicted] += 1
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    names = np.array(NAMES, object)
    table = pd.DataFrame(
        {
            "row": np.arange(count, dtype=np.int64),
            "path": [f"images/{index}.jpg" for index in range(count)],
            "label": names[truth],
            "predicted": names[predicted],
            "confidence": probabilities.max(axis=1).astype(np.float64),
        }
    )
    return table, probabilities


@pytest.fixture(scope="module")
def scored():
    table, probabilities = make_predictions()
    evaluation = ev.evaluate(table, NAMES, groups=table["row"], probabilities=probabilities, resamples=100)
    return table, probabilities, evaluation


def test_evaluation_equals_scikit_learn(scored):
    """Accuracy and macro F1 over names are those of scikit-learn, inside their intervals."""
    table, _, evaluation = scored
    assert evaluation.accuracy.value == pytest.approx(accuracy_score(table["label"], table["predicted"]))
    assert evaluation.macro_f1.value == pytest.approx(f1_score(table["label"], table["predicted"], average="macro"))
    for estimate in (evaluation.accuracy, evaluation.macro_f1, evaluation.calibration_error):
        assert estimate.low < estimate.value < estimate.high
    assert list(evaluation.top_k_accuracy) == [3]
    assert evaluation.top_k_accuracy[3].value >= evaluation.accuracy.value


def test_classes_keep_the_order_of_the_model(scored):
    """Neither the alphabet nor the order of the rows moves a class."""
    table, _, evaluation = scored
    assert evaluation.class_names == tuple(NAMES)
    shuffled = table.sample(frac=1, random_state=1)
    again = ev.evaluate(shuffled, NAMES, groups=shuffled["row"], resamples=10)
    np.testing.assert_array_equal(again.confusion, evaluation.confusion)
    assert ev.most_confused_pairs(again) == ev.most_confused_pairs(evaluation)


def test_class_without_images_scores_zero_and_knows_nothing(scored):
    """A class that occurs nowhere has no support, a score of 0 and the interval 0..1."""
    never = scored[2].classes[3]
    assert (never.support, never.predicted) == (0, 0)
    assert (never.f1.value, never.f1.low, never.f1.high) == (0, 0, 1)


def test_groups_widen_the_intervals(scored):
    """Images in groups of four are worth fewer images."""
    table, _, evaluation = scored
    grouped = ev.evaluate(table, NAMES, groups=[f"g{row // 4}" for row in table["row"]], resamples=10)
    assert grouped.num_groups == 30
    assert grouped.accuracy.value == evaluation.accuracy.value
    assert grouped.accuracy.low < evaluation.accuracy.low
    assert "120 images in 30 groups of near duplicates" in ev.report_text(grouped, table)


def test_most_confused_pairs_are_counted_and_sorted():
    """Pairs with most images come first, with the share of the true class."""
    table = pd.DataFrame({"row": range(6), "path": "p", "confidence": 0.5})
    table["label"] = ["a", "a", "a", "b", "b", "c"]
    table["predicted"] = ["b", "b", "a", "a", "b", "c"]
    evaluation = ev.evaluate(table, ["a", "b", "c"], groups=range(6), resamples=10)
    first, second = ev.most_confused_pairs(evaluation)
    assert (first.label, first.predicted, first.count, first.share) == ("a", "b", 2, pytest.approx(2 / 3))
    assert (second.label, second.predicted, second.count, second.share) == ("b", "a", 1, 0.5)
    assert ev.most_confused_pairs(evaluation, limit=1) == [first]


def test_table_is_aligned(scored):
    """Every column ends at the same place, and a short table says what it leaves out."""
    lines = ev.classification_table(scored[2]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[2:5]] == ["ibuprofen", "amoxil", "zocor"]
    short = ev.classification_table(scored[2], worst=2)
    assert "3 more are in report.txt" in short
    assert "never seen" in short.splitlines()[2]


def test_files_hold_what_was_measured(scored, tmp_path):
    """metrics.json, report.txt and predictions.parquet come back as they were, rows in the manifest's order."""
    table, probabilities, evaluation = scored
    order = np.random.default_rng(0).permutation(len(table))
    location = str(tmp_path / "evaluation" / "test")
    written = ev.write_evaluation(evaluation, table.iloc[order], location, probabilities=probabilities[order])
    assert [name.rsplit("/", 1)[-1] for name in written] == ["predictions.parquet", "report.txt", "metrics.json"]
    numbers = storage.read_json(written[2])
    assert numbers == json.loads(json.dumps(ev.to_dict(evaluation)))
    assert numbers["accuracy"]["low"] < numbers["accuracy"]["value"] < numbers["accuracy"]["high"]
    stored = pq.read_table(io.BytesIO(storage.read_bytes(written[0]))).to_pandas()
    pd.testing.assert_frame_equal(stored[list(ev.COLUMNS)], table, check_dtype=False)
    assert stored["row"].dtype == np.int64
    np.testing.assert_array_equal(np.stack(stored["probabilities"].tolist()), probabilities)
    report = storage.read_bytes(written[1]).decode()
    assert "the surest first" in report
    assert str(evaluation.macro_f1) in report


def test_same_predictions_give_the_same_bytes(scored, tmp_path):
    """Writing twice, in another order of rows, gives equal files."""
    table, _, evaluation = scored
    first = ev.write_evaluation(evaluation, table, str(tmp_path / "a"))
    second = ev.write_evaluation(evaluation, table[::-1], str(tmp_path / "b"))
    assert [storage.read_bytes(name) for name in first] == [storage.read_bytes(name) for name in second]


def test_bad_input_is_named(scored):
    """What is wrong stands in the error: column, class, groups, probabilities, confidence."""
    table, probabilities, _ = scored
    cases = [
        ("columns \\['path'\\] are missing", table.drop(columns="path"), NAMES, table["row"], None),
        ("no rows", table[:0], NAMES, [], None),
        ("label: aspirin: not among", table, NAMES[:4], table["row"], None),
        ("stands there twice", table, ["a", "a"], table["row"], None),
        ("groups: received 2, expected one value for each of 120", table, NAMES, [1, 2], None),
        ("received shape \\(120, 4\\), expected \\(120, 5\\)", table, NAMES, table["row"], probabilities[:, :4]),
        ("the largest is not that of `predicted`", table, NAMES, table["row"], probabilities[::-1]),
        ("confidence: received", table.assign(confidence=np.nan), NAMES, table["row"], None),
    ]
    for message, predictions, names, groups, array in cases:
        with pytest.raises(ValueError, match=message):
            ev.evaluate(predictions, names, groups=groups, probabilities=array, resamples=10)
