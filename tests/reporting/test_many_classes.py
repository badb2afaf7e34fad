"""What a thousand classes print, draw and store."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.report_examples import make_decision, make_facts, make_scores

from pharmclf.data.prepare import format_split_counts
from pharmclf.evaluation import metrics
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.result_files import console_table, to_dict, write_evaluation
from pharmclf.evaluation.results import most_confused_pairs
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.model_card import model_card

MANY = tuple(f"class_{number:04}" for number in range(1000))
COUNTS = [(name, 10 + place, 2, 3) for place, name in enumerate(MANY)]
TOTAL = ("all", sum(row[1] for row in COUNTS), 2000, 3000)


@pytest.fixture(scope="module")
def many():
    facts = make_facts(MANY, per_class=4, mistakes=1)
    return dataclasses.replace(facts, data=dataclasses.replace(facts.data, counts=[*COUNTS, TOTAL]))


def test_a_thousand_classes_take_26_lines_of_the_terminal_and_30_classes_all_theirs(many):
    lines = console_table(many.test.evaluation).splitlines()
    assert len(lines) == 22  # heading, 20 classes, where the others are
    assert lines[21] == "(the 20 classes with the lowest F1; 980 more are in report.txt)"
    thirty, _ = make_scores(MANY[:30], None, per_class=4)
    assert [line.split()[0] for line in console_table(thirty).splitlines()[1:]] == list(MANY[:30])


def test_the_rarest_20_of_a_thousand_classes_are_counted_in_the_terminal_and_the_file_with_all_is_named():
    lines = format_split_counts([*reversed(COUNTS), TOTAL], "run/manifest.parquet")
    assert len(lines) == 23
    assert [line.split()[0] for line in lines[1:21]] == list(MANY[:20])
    assert lines[21] == "(the 20 classes with the fewest images; 980 more are in run/manifest.parquet)"
    assert lines[22].split() == ["all", "509500", "2000", "3000"]
    assert len(format_split_counts([*COUNTS[:30], TOTAL], "m")) == 32


def test_the_model_card_lists_the_20_weakest_of_a_thousand_classes(many):
    card = model_card(many)
    assert sum(line.startswith("| class\\_") for line in card.splitlines()) == 20
    assert "The 20 products with the lowest F1; 980 more are in the run's report.txt." in card
    assert len(card) < 20_000


def test_the_page_has_at_most_500_rows_of_a_thousand_classes_in_a_table(many):
    page = page_html(many)
    classes = page[page.index('<section id="classes"') : page.index('<section id="confusion"')]
    assert classes.count('<tr role="row"><th role="rowheader"') == 500
    assert "500 more classes, with a higher F1, are in report.txt and metrics.json of this set." in classes
    data = page[page.index('<section id="data"') : page.index('<section id="quality"')]
    assert data.count("<b><bdi>class_") == 500
    assert "The 500 classes with the fewest images; 500 more are in manifest.parquet." in data


def test_ten_thousand_classes_take_megabytes_of_json_and_200_classes_keep_the_whole_matrix():
    names = [f"class_{number:05}" for number in range(10_000)]
    rows = np.arange(5000)
    table = pd.DataFrame(
        {"row": rows, "path": "p", "label": names[:5000], "predicted": names[:4000] + [names[0]] * 1000}
    ).assign(confidence=0.5)
    stored = to_dict(evaluate(table, names, groups=rows, resamples=2))
    cells = stored["confusion_cells"]
    assert stored["confusion"] is None
    assert cells["true"] == list(range(5000))
    assert cells["predicted"] == list(range(4000)) + [0] * 1000
    assert cells["images"] == [1] * 5000
    assert len(json.dumps(stored, indent=2)) < 10_000_000
    few, _ = make_scores(MANY[:200], None, per_class=2, mistakes=1)
    stored = to_dict(few)
    assert "confusion_cells" not in stored
    assert stored["confusion"] == few.confusion.tolist()
    assert few.confusion.sum() == 400
    assert few.confusion.shape == (200, 200)


def test_numbers_of_many_classes_are_computed_without_a_table_of_doubles_of_all_of_them():
    """The doubles of 300 images and 10,000 classes alone would take 24 MB."""
    generator = np.random.default_rng(3)
    probabilities = generator.random((300, 10_000), dtype=np.float32)
    names, truth = [str(number) for number in range(10_000)], generator.integers(0, 10_000, 300)
    labels = [names[number] for number in truth]
    tracemalloc.start()
    try:
        decision = make_decision()
        table = predictions_table(np.arange(300), labels, labels, probabilities, names, decision)
        scores = evaluate(
            table, names, groups=np.arange(300), probabilities=probabilities, decision=decision, resamples=20
        )
        most_confused_pairs(scores)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80e6  # blocks of 8 MB; the confusion matrix alone would take 800 MB


@pytest.mark.parametrize("numbers", [1, 7, 100])
def test_blocks_of_rows_give_the_same_bits_as_all_rows_at_once(monkeypatch, numbers):
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.ones(30) * 0.2, 50).astype(np.float32)
    truth = generator.integers(0, 30, 50)

    def computed():
        best, confidence = metrics.most_probable(probabilities, 1.7)
        hits = metrics.top_k_hits(truth, probabilities, 3)
        return metrics.fit_temperature(probabilities, truth), best.tolist(), confidence.tolist(), hits.tolist()

    whole = computed()
    assert whole[2] == metrics.apply_temperature(probabilities, 1.7).max(axis=1).tolist()
    monkeypatch.setattr("pharmclf.evaluation.metrics.intervals._BLOCK", 30 * numbers)
    monkeypatch.setattr("pharmclf.evaluation.metrics.calibration._MAX_TABLE_CELLS", 0)
    assert computed() == whole


def test_probabilities_written_in_several_row_groups_are_read_as_one_column(monkeypatch, tmp_path):
    scores, table = make_scores(MANY[:10], None, per_class=3)
    probabilities = np.random.default_rng(0).random((30, 10), dtype=np.float32)
    write_evaluation(scores, table, str(tmp_path / "one"), probabilities=probabilities)
    monkeypatch.setattr("pharmclf.evaluation.result_files._GROUP_NUMBERS", 70)
    write_evaluation(scores, table, str(tmp_path / "many"), probabilities=probabilities)
    stored = [pq.ParquetFile(tmp_path / part / "predictions.parquet") for part in ("one", "many")]
    assert [file.num_row_groups for file in stored] == [1, 5]
    one, many = (file.read() for file in stored)
    assert one.equals(many)
    assert many["probabilities"].to_pylist() == probabilities.tolist()
