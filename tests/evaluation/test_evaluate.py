"""The evaluation: the table of predictions, numbers with intervals, text and files."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from pharmclf import storage
from pharmclf.evaluation import evaluate as ev
from pharmclf.evaluation import metrics, result_files, results
from pharmclf.evaluation.abstention_policy import fit_policy

NAMES = ["ibuprofen", "amoxil", "zocor", "never seen", "aspirin"]


def make_predictions(count=120, seed=0):
    """Predictions of a model that is right in 85 of 100 cases, and then surer; class 3 occurs nowhere."""
    generator = np.random.default_rng(seed)
    used = np.array([0, 1, 2, 4])
    truth = used[generator.integers(0, 4, count)]
    predicted = np.where(generator.random(count) < 0.85, truth, used[generator.integers(0, 4, count)])
    probabilities = generator.random((count, len(NAMES)))
    probabilities[np.arange(count), predicted] = 1 + generator.random(count) * np.where(truth == predicted, 1.0, 0.3)
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = np.array(NAMES, object)[truth]
    paths = [f"images/{index}.jpg" for index in range(count)]
    return ev.predictions_table(np.arange(count), paths, labels, probabilities, NAMES), probabilities


@pytest.fixture(scope="module")
def scored():
    table, probabilities = make_predictions()
    evaluation = ev.evaluate(table, NAMES, groups=table["row"], probabilities=probabilities, resamples=100)
    return table, probabilities, evaluation


@pytest.fixture(scope="module")
def decided():
    """The same with a decision that was fitted on other images."""
    others, probabilities = make_predictions(400, seed=1)
    decision = fit_policy(probabilities, pd.Index(NAMES).get_indexer(others["label"]), others["row"], 0.1)
    raw, probabilities = make_predictions()
    table = ev.predictions_table(raw["row"], raw["path"], raw["label"], probabilities, NAMES, decision)
    evaluation = ev.evaluate(
        table, NAMES, groups=table["row"], probabilities=probabilities, decision=decision, resamples=100
    )
    return table, probabilities, decision, evaluation


def test_evaluation_equals_scikit_learn(scored):
    """Accuracy and macro F1 over names are those of scikit-learn, inside their intervals."""
    table, _, evaluation = scored
    assert evaluation.accuracy.value == pytest.approx(accuracy_score(table["label"], table["predicted"]))
    assert evaluation.macro_f1.value == pytest.approx(f1_score(table["label"], table["predicted"], average="macro"))
    for estimate in (evaluation.accuracy, evaluation.macro_f1, evaluation.calibration_error):
        assert estimate.low < estimate.value < estimate.high
    assert list(evaluation.top_k_accuracy) == [3]
    assert evaluation.top_k_accuracy[3].value >= evaluation.accuracy.value


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
@example([(2, 2)])
@example([(2, 1)])
@example([(0, 1), (1, 2), (2, 0)])
def test_every_class_equals_scikit_learn_on_sets_that_lack_classes(pairs):
    """From one image on, all wrong, classes that never occur: precision, recall, F1, support and macro F1 agree, and
    what no image speaks for has the interval 0..1."""
    names = ["a", "b", "c", "d"]
    truth, predicted = ([names[pair[side]] for pair in pairs] for side in (0, 1))
    table = pd.DataFrame({"row": range(len(pairs)), "path": "p", "label": truth, "predicted": predicted})
    found = ev.evaluate(table.assign(confidence=0.5), names, groups=table["row"], resamples=5)
    expected = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    for result, *scores in zip(found.classes, *expected, strict=True):
        ours = (result.precision.value, result.recall.value, result.f1.value, result.support)
        assert ours == pytest.approx(scores)
        assert result.has_examples == (result.name in {*truth, *predicted})
        assert result.support or (result.recall.low, result.recall.high) == (0, 1)
    assert found.macro_f1.value == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert result_files.report_text(found, table.assign(confidence=0.5))


def test_table_of_predictions_says_what_the_model_said(decided):
    """The most probable class, its probability after temperature scaling, and whether the image is left to a human."""
    table, probabilities, decision, _ = decided
    assert list(table.columns) == [*ev.COLUMNS, ev.ABSTAIN]
    best = probabilities.argmax(axis=1)
    assert table["predicted"].tolist() == [NAMES[number] for number in best]
    calibrated = decision.calibrated(probabilities)
    np.testing.assert_array_equal(table["confidence"], calibrated[np.arange(len(best)), best])
    np.testing.assert_array_equal(table["abstain"], calibrated.max(axis=1) < decision.threshold)
    assert table["abstain"].dtype == bool
    assert table["abstain"].nunique() == 2
    plain, _ = make_predictions()
    assert list(plain.columns) == list(ev.COLUMNS)
    np.testing.assert_array_equal(plain["confidence"], probabilities.max(axis=1))
    with pytest.raises(ValueError, match=r"received shape \(120, 5\), expected \(120, 4\)"):
        ev.predictions_table(plain["row"], plain["path"], plain["label"], probabilities, NAMES[:4])


def test_table_of_no_images_is_empty():
    """A part without a readable image has the columns and no row."""
    table = ev.predictions_table(np.array([], np.int64), [], [], np.zeros((0, len(NAMES)), np.float32), NAMES)
    assert (list(table.columns), len(table)) == (list(ev.COLUMNS), 0)


def test_a_decision_adds_what_it_changes(scored, decided):
    """Calibration before and after, the operating point at its threshold; accuracy and confusion stay as they were."""
    table, _, decision, evaluation = decided
    without = scored[2]
    assert without.answered is None
    assert without.raw_calibration_error is None
    assert evaluation.raw_calibration_error == without.calibration_error
    assert evaluation.calibration_error.value < without.calibration_error.value
    assert evaluation.accuracy == without.accuracy
    np.testing.assert_array_equal(evaluation.confusion, without.confusion)
    assert evaluation.top_k_accuracy == without.top_k_accuracy
    answered = table[~table["abstain"]]
    assert evaluation.answered == metrics.OperatingPoint(
        threshold=decision.threshold,
        coverage=metrics.wilson_interval(len(answered), 120),
        error=metrics.wilson_interval(int((answered["label"] != answered["predicted"]).sum()), len(answered)),
        num_answered=len(answered),
        num_images=120,
    )


def test_curves_are_those_of_the_confidences_in_the_table(decided):
    """Reliability and risk-coverage after temperature scaling, every image in both."""
    table, _, _, evaluation = decided
    correct = (table["label"] == table["predicted"]).to_numpy()
    expected = metrics.risk_coverage(table["confidence"].to_numpy(), correct)
    np.testing.assert_array_equal(evaluation.risk_coverage.thresholds, expected.thresholds)
    np.testing.assert_array_equal(evaluation.risk_coverage.error, expected.error)
    assert sum(part.count for part in evaluation.reliability) == 120


def test_a_table_of_another_temperature_is_refused(scored, decided):
    """Raw confidences with a decision: its threshold would mean nothing for them."""
    table, probabilities, _ = scored
    with pytest.raises(ValueError, match="not those of temperature"):
        ev.evaluate(table, NAMES, groups=table["row"], probabilities=probabilities, decision=decided[2], resamples=5)


def test_difference_is_that_of_the_accuracies(scored):
    """A set with half of the accuracy: the drop with an interval that holds it; against itself, 0 in the middle."""
    table, _, evaluation = scored
    spoilt = table.assign(label=np.where(table["row"] % 2, "never seen", table["label"]))
    drop = results.accuracy_difference(evaluation, ev.evaluate(spoilt, NAMES, groups=table["row"], resamples=5))
    expected = (spoilt["label"] == table["predicted"]).mean() - (table["label"] == table["predicted"]).mean()
    assert drop.value == pytest.approx(expected)
    assert drop.low < drop.value < drop.high < 0
    same = results.accuracy_difference(evaluation, evaluation)
    assert (same.value, same.low) == (0, pytest.approx(-same.high))


def test_classes_keep_the_order_of_the_model(scored):
    """Neither the alphabet nor the order of the rows moves a class."""
    table, _, evaluation = scored
    assert evaluation.class_names == tuple(NAMES)
    shuffled = table.sample(frac=1, random_state=1)
    again = ev.evaluate(shuffled, NAMES, groups=shuffled["row"], resamples=10)
    np.testing.assert_array_equal(again.confusion, evaluation.confusion)
    assert results.most_confused_pairs(again) == results.most_confused_pairs(evaluation)


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
    assert "120 images in 30 groups of near duplicates" in result_files.report_text(grouped, table)


def test_most_confused_pairs_are_counted_and_sorted():
    """Pairs with most images come first, with the share of the true class."""
    table = pd.DataFrame({"row": range(6), "path": "p", "confidence": 0.5})
    table["label"] = ["a", "a", "a", "b", "b", "c"]
    table["predicted"] = ["b", "b", "a", "a", "b", "c"]
    evaluation = ev.evaluate(table, ["a", "b", "c"], groups=range(6), resamples=10)
    first, second = results.most_confused_pairs(evaluation)
    assert (first.label, first.predicted, first.count, first.share) == ("a", "b", 2, pytest.approx(2 / 3))
    assert (second.label, second.predicted, second.count, second.share) == ("b", "a", 1, 0.5)
    assert results.most_confused_pairs(evaluation, limit=1) == [first]


@pytest.mark.parametrize("table", [result_files.classification_table, result_files.console_table])
def test_tables_are_aligned(scored, table):
    """Every column ends at the same place; the classes are in the model's order."""
    lines = table(scored[2]).splitlines()
    assert len({len(line) for line in lines}) == 1
    first = 2 if set(lines[1]) == {"-"} else 1
    assert [line.split()[0] for line in lines[first : first + 3]] == ["ibuprofen", "amoxil", "zocor"]


def test_classes_that_nothing_is_known_of_have_no_score_in_the_text(scored):
    """A class without images is no bad class: it has dashes for numbers."""
    for table, numbers in (
        (result_files.classification_table, ["-", "-", "-", "0"]),
        (result_files.console_table, ["0", "-", "-", "-", "-"]),
    ):
        row = next(line for line in table(scored[2]).splitlines() if line.startswith("never seen"))
        assert row.split()[2:] == numbers


def test_the_terminal_shows_the_weakest_of_many_classes():
    """Of 40 classes twenty, those with the lowest F1 first; a class without images is not among them."""
    names = [f"c{number:02}" for number in range(40)]
    truth = np.repeat(np.arange(39), 4)
    predicted = np.where((truth % 13 == 5) & (np.arange(len(truth)) % 4 == 0), 0, truth)
    labels, paths = [names[number] for number in truth], ["p"] * len(truth)
    table = ev.predictions_table(np.arange(len(truth)), paths, labels, np.eye(40, dtype=np.float32)[predicted], names)
    lines = result_files.console_table(ev.evaluate(table, names, groups=table["row"], resamples=1)).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["c00", "c05", "c18", "c31"]
    assert len(lines) == 22
    assert "20 more are in report.txt" in lines[-1]
    assert "c39" not in "".join(lines)


def test_report_says_how_sure_and_how_often_it_answers(scored, decided):
    """Calibration before and after, the threshold with its coverage and error, and the error at shares answered."""
    table, _, decision, evaluation = decided
    report = result_files.report_text(evaluation, table)
    left = evaluation.num_images - evaluation.answered.num_answered
    for part in (
        f"calibration error             {evaluation.calibration_error}",
        f"  before temperature scaling  {evaluation.raw_calibration_error}",
        f"confidence of at least {decision.threshold:.6g}; {left} images are left to a human",
        f"  share answered              {evaluation.answered.coverage}",
        f"  error among answered        {evaluation.answered.error}",
        f"    100.0%   {table['confidence'].min():10.6f}   {1 - evaluation.accuracy.value:.4f}",
    ):
        assert part in report
    without = result_files.report_text(scored[2], scored[0])
    assert "temperature" not in without
    assert "left to a human" not in without
    assert "Error among the images it is surest of" in without


def test_report_says_where_nothing_is_answered():
    """A threshold that no confidence reaches: all images are left to a human, and the JSON has no error."""
    table, probabilities = make_predictions(30)
    decision = fit_policy(probabilities, np.full(30, 3), np.arange(30), 0.01)  # all wrong
    table = ev.predictions_table(table["row"], table["path"], table["label"], probabilities, NAMES, decision)
    evaluation = ev.evaluate(table, NAMES, groups=table["row"], decision=decision, resamples=5)
    assert table["abstain"].all()
    assert "Answered by the model: none; 30 images are left to a human" in result_files.report_text(evaluation, table)
    assert result_files.to_dict(evaluation)["answered"]["error"] is None
    assert evaluation.raw_calibration_error is None  # without probabilities


def test_files_hold_what_was_measured(decided, tmp_path):
    """metrics.json, report.txt and predictions.parquet come back as they were, rows in the manifest's order."""
    table, probabilities, _, evaluation = decided
    order = np.random.default_rng(0).permutation(len(table))
    location = str(tmp_path / "evaluation" / "test")
    written = result_files.write_evaluation(evaluation, table.iloc[order], location, probabilities=probabilities[order])
    assert [name.rsplit("/", 1)[-1] for name in written] == ["predictions.parquet", "report.txt", "metrics.json"]
    numbers = storage.read_json(written[2])
    assert numbers == json.loads(json.dumps(result_files.to_dict(evaluation)))
    assert numbers["accuracy"]["low"] < numbers["accuracy"]["value"] < numbers["accuracy"]["high"]
    assert numbers["raw_calibration_error"]["value"] > numbers["calibration_error"]["value"]
    assert numbers["answered"]["error"]["value"] == evaluation.answered.error.value
    assert sum(part["count"] for part in numbers["reliability"]) == 120
    stored = pq.read_table(io.BytesIO(storage.read_bytes(written[0]))).to_pandas()
    assert list(stored.columns) == [*ev.COLUMNS, ev.ABSTAIN, "probabilities"]
    pd.testing.assert_frame_equal(stored[[*ev.COLUMNS, ev.ABSTAIN]], table, check_dtype=False)
    assert stored["row"].dtype == np.int64
    np.testing.assert_array_equal(np.stack(stored["probabilities"].tolist()), probabilities)
    report = storage.read_bytes(written[1]).decode()
    assert "the surest first" in report
    assert str(evaluation.macro_f1) in report


def test_a_long_curve_is_thinned_in_the_file():
    """Of 3,000 confidences at most 200 points are written, the one that answers all among them."""
    table, _ = make_predictions(3000)
    curve = result_files.to_dict(ev.evaluate(table, NAMES, groups=table["row"], resamples=2))["risk_coverage"]
    assert 150 < len(curve["coverage"]) <= 200
    assert curve["coverage"][-1] == 1.0
    assert len(curve["thresholds"]) == len(curve["error"]) == len(curve["coverage"])


def test_same_predictions_give_the_same_bytes(scored, tmp_path):
    """Writing twice, in another order of rows, gives equal files."""
    table, _, evaluation = scored
    first = result_files.write_evaluation(evaluation, table, str(tmp_path / "a"))
    second = result_files.write_evaluation(evaluation, table[::-1], str(tmp_path / "b"))
    assert [storage.read_bytes(name) for name in first] == [storage.read_bytes(name) for name in second]


def test_bad_input_is_named(scored):
    """What is wrong stands in the error: column, class, groups, probabilities, confidence."""
    table, probabilities, _ = scored
    cases = [
        ("columns \\['path'\\] are missing", table.drop(columns="path"), NAMES, table["row"], None),
        ("no rows", table[:0], NAMES, [], None),
        ("label: received aspirin, expected the model's 4 classes", table, NAMES[:4], table["row"], None),
        ("class_names: received a name twice", table, ["a", "a"], table["row"], None),
        ("groups: received 2, expected one value for each of 120", table, NAMES, [1, 2], None),
        ("received shape \\(120, 4\\), expected \\(120, 5\\)", table, NAMES, table["row"], probabilities[:, :4]),
        ("the largest is not that of `predicted`", table, NAMES, table["row"], probabilities[::-1]),
        ("confidence: received", table.assign(confidence=np.nan), NAMES, table["row"], None),
    ]
    for message, predictions, names, groups, array in cases:
        with pytest.raises(ValueError, match=message):
            ev.evaluate(predictions, names, groups=groups, probabilities=array, resamples=10)
