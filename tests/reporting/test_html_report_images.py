"""The images of a report: an example of each class, quality, enlargement, the table of test images, confusions."""

from __future__ import annotations

import base64
import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.html_page import Element, Read
from support.report_examples import alone, make_decision, make_facts, make_scores

from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.metrics import Estimate, OperatingPoint
from pharmclf.reporting import text_format
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.report_data import EvalSetReport, ReportData
from pharmclf.reporting.report_inputs import list_predictions

HUNDRED = [f"product {number:03}" for number in range(100)]


@pytest.fixture(scope="module")
def hundred() -> Read:
    """The page of a run with a hundred classes."""
    return Read(page_html(make_facts(HUNDRED, per_class=4, mistakes=1, extra=())))


@pytest.fixture(scope="module")
def ordinary() -> Read:
    """The page of an ordinary run with an extra set."""
    return Read(page_html(make_facts()))


def section(page: Read, name: str) -> Element:
    (found,) = page.root.find("section", name)
    return found


@pytest.mark.parametrize("page", ["ordinary", "hundred"])
def test_every_class_has_an_image_and_its_number_of_images(page: str, request: pytest.FixtureRequest):
    tiles = [
        tile
        for part in section(request.getfixturevalue(page), "data").find("ul", "gallery")
        for tile in part.find("li")
    ]
    names = ["amber", "birch", "cedar"] if page == "ordinary" else HUNDRED
    assert [tile.find("b")[0].text for tile in tiles] == names
    assert all(len(tile.find("img")) == 1 for tile in tiles)
    assert all("45 images" in tile.text and "20 · 5 · 20" in tile.text for tile in tiles)


def test_outliers_are_shown_with_their_value_and_their_path(ordinary: Read):
    quality = section(ordinary, "quality")
    assert "All images: 300 px" in quality.text
    shots = quality.find("figure", "shot")
    assert ["outlier" in shot.text for shot in shots] == [True, False, True]
    assert "2 %" in shots[0].text
    assert all("/images/amber.jpg" in shot.text for shot in shots)


def test_every_image_enlarges_without_a_script_and_has_its_path(ordinary: Read):
    """Each is in the summary of folded details, which a click, a tap and the keyboard open; only charts are not."""
    images = ordinary.root.find("main")[0].find("img")
    assert len(images) > 40
    assert all(
        image.parent and image.parent.tag == "summary" and image.is_inside("details", "zoom") for image in images
    )
    zooms = ordinary.root.find("details", "zoom")
    assert all("/images/" in zoom.find("p")[0].text for zoom in zooms)
    assert not any("open" in zoom.attributes for zoom in zooms)


def answers(page: Read) -> list[list[str]]:
    """The cells of the table of test images."""
    (table,) = page.root.find("table", "answers")
    return [[cell.text for cell in row.find("td")] for row in table.find("tbody")[0].find("tr")]


def test_the_table_has_a_row_for_every_test_image_and_is_readable_without_a_script():
    """As many rows as images; each answer is right where its class is the true one; filters wait for the script."""
    facts = make_facts(mistakes=3)
    page = Read(page_html(facts))
    rows = answers(page)
    assert len(rows) == facts.test.evaluation.num_images == 60
    assert [row[0] for row in rows] == ["✗ wrong"] * 9 + ["✓ right"] * 51
    assert all((row[0] == "✓ right") == (row[1] == row[2]) for row in rows)
    assert [[*row[1:3], row[5]] for row in rows] == [[i.label, i.predicted, i.path] for i in facts.test.predictions]
    left = facts.test.evaluation.num_images - facts.test.evaluation.answered.num_answered
    assert sum(row[4] == "left" for row in rows) == left
    assert {row[4] for row in rows} == {"left", "answered"}
    (form,) = page.root.find("form")
    assert "hidden" in form.attributes
    assert not any("hidden" in row.attributes for row in page.root.find("tr"))


def test_a_model_without_a_threshold_has_no_decisions():
    rows = answers(Read(page_html(alone())))
    assert {len(row) for row in rows} == {5}
    assert len(rows) == 60


def test_of_a_large_set_the_surest_mistakes_and_the_least_sure_answers_are_listed():
    """The first rows are those of the bound; the page says how many there are and where the others are."""
    facts = make_facts(mistakes=3)
    _, table = make_scores(["amber", "birch", "cedar"], facts.decision, mistakes=3)
    some = list_predictions(table, "/images", most=20)
    assert list(some) == list(facts.test.predictions[:20])
    wrong = [item.confidence for item in some if item.label != item.predicted]
    right = [item.confidence for item in some if item.label == item.predicted]
    assert (len(wrong), len(right)) == (9, 11)
    assert wrong == sorted(wrong, reverse=True)
    assert right == sorted(right)
    page = Read(page_html(dataclasses.replace(facts, sets=[dataclasses.replace(facts.test, predictions=some)])))
    assert len(answers(page)) == 20
    text = section(page, "images").text
    assert "20 of 60 images" in text
    assert "predictions.parquet" in text


def test_a_set_of_one_image_has_a_page():
    """One right image of two classes: a table with one row, no confusions, nothing that is not a number."""
    probabilities = np.array([[0.75, 0.25]], np.float32)
    table = predictions_table(np.array([0]), ["/images/a/1.jpg"], ["a"], probabilities, ["a", "b"])
    scores = evaluate(table, ["a", "b"], groups=[0], probabilities=probabilities, resamples=5)
    item = EvalSetReport(
        name="one", source="/images", evaluation=scores, predictions=list_predictions(table, "/images/")
    )
    page = Read(page_html(ReportData(sets=[item], decision=None)))
    assert answers(page) == [["✓ right", "a", "a", "75.0 %", "a/1.jpg"]]
    assert "nan" not in page.text
    assert section(page, "confusion").find("table", "pairs") == []


def test_results_from_which_images_are_missing_have_a_page_without_their_sections():
    """As those of earlier versions: no predictions, no examples, no measures."""
    facts = make_facts()
    assert facts.data
    test = dataclasses.replace(facts.test, predictions=(), samples=(), worst=(), confused=())
    page = Read(
        page_html(
            dataclasses.replace(facts, sets=[test], data=dataclasses.replace(facts.data, examples={}, quality=()))
        )
    )
    assert page.root.find("section", "images") == page.root.find("section", "quality") == []
    assert len(section(page, "data").find("li")) == 3 + len(facts.data.notes)
    assert page.root.find("table", "answers") == page.root.find("form") == []


def test_of_a_hundred_classes_the_largest_confusions_are_listed_and_the_matrix_is_folded(hundred: Read):
    confusion = section(hundred, "confusion")
    (pairs,) = confusion.find("table", "pairs")
    counts = [int(row.find("td")[1].text) for row in pairs.find("tbody")[0].find("tr")]
    assert len(counts) == 20
    assert counts == sorted(counts, reverse=True)
    (matrix,) = confusion.find("table", "matrix")
    assert matrix.is_inside("details")
    assert len(matrix.find("tbody")[0].find("tr")) == 100
    assert sum(int(cell.text) for cell in matrix.find("td") if cell.text.isdecimal()) == 400


def test_a_small_matrix_is_open_and_hardware_is_folded(ordinary: Read):
    matrix, extra = section(ordinary, "confusion").find("table", "matrix")
    assert not matrix.is_inside("details")
    assert extra.is_inside("details")
    (hardware,) = section(ordinary, "hardware").find("details")
    assert "open" not in hardware.attributes
    assert all(fact.is_inside("details") for fact in section(ordinary, "hardware").find("dl"))


def test_the_policy_allows_the_script_of_the_page_and_no_other(ordinary: Read):
    (script,) = ordinary.root.find("script")
    (text,) = script.content
    assert isinstance(text, str)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = next(meta.attributes["content"] for meta in ordinary.root.find("meta") if "http-equiv" in meta.attributes)
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "http" not in text


@given(st.integers(1, 5000), st.data())
def test_what_is_answered_and_what_is_left_sum_to_100_in_every_sentence(images: int, data: st.DataObject):
    """The parts right, wrong and left, and the shares answered and left that the text names: the same left."""
    answered = data.draw(st.integers(0, images))
    wrong = data.draw(st.integers(0, answered))
    share = answered / images
    error = Estimate(wrong / answered, 0.0, 1.0) if answered else None
    point = OperatingPoint(0.9, Estimate(share, 0.0, 1.0), error, answered, images)
    parts = text_format.format_parts(text_format.answer_shares(point))
    numbers = [float(part.removesuffix(f"{text_format.THIN}%")) for part in parts]
    assert sum(numbers) == pytest.approx(100, abs=1e-9)
    rest = float(text_format.format_rest(parts[2]).removesuffix(f"{text_format.THIN}%"))
    assert rest == pytest.approx(numbers[0] + numbers[1], abs=1e-9)
    assert rest == pytest.approx(100 * share, abs=0.11)
    sentence = text_format.answers_sentence(point)
    if answered:
        assert text_format.format_rest(parts[2]) in sentence
        assert (f"({parts[2]})" in sentence) == (answered < images)


def test_the_page_of_a_hundred_classes_stays_below_two_megabytes(hundred: Read):
    size = len(page_html(make_facts(HUNDRED, per_class=4, mistakes=1, extra=(), decision=make_decision())).encode())
    assert size < 2_000_000
