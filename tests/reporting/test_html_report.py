"""report.html: one harmless file, right in its words, and looked at in a browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.html_page import ELEMENTS, Read, attributes
from support.report_examples import (
    HOSTILE,
    LONG,
    alone,
    make_decision,
    make_facts,
    make_pictures,
    make_scores,
    make_set,
)

from pharmclf.evaluation.metrics import Estimate, OperatingPoint, confusion_counts
from pharmclf.reporting import html_report, html_report_tables, text_format
from pharmclf.reporting.html_report import page_html
from pharmclf.reporting.report_data import DatasetReport, ReportData


@pytest.mark.parametrize("extra", [HOSTILE[:2], None], ids=["run", "alone"])
def test_names_from_the_data_are_shown_and_never_obeyed(extra: tuple[str, ...] | None):
    """Whatever classes, sets and files are called: no element but the page's own, no handler, every name as text."""
    page = Read(page_html(make_facts(HOSTILE, extra=extra) if extra else alone(HOSTILE)))
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    for name in HOSTILE:
        assert name in page.text, name


@pytest.fixture(scope="module")
def ordinary() -> str:
    """The page of an ordinary run with an extra set."""
    return page_html(make_facts(extra_mistakes=10))


def test_the_page_reaches_for_nothing_outside_itself(ordinary: str):
    """Every address is `data:` or a place in the page; the style sheet imports nothing; the policy forbids the rest."""
    page = Read(ordinary)
    addresses = [value for name in ("src", "href", "xlink:href", "srcset") for value in attributes(page, name)]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    ids = attributes(page, "id")
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)
    assert all(use.startswith("#") for use in re.findall(r"url\(([^)]*)\)", ordinary))
    assert "@import" not in ordinary
    assert "default-src 'none'" in next(iter(attributes(page, "content")))


def test_the_page_can_be_read_without_seeing_it(ordinary: str):
    """A language, headings without gaps, an alternative text for every picture, a scope for every table heading."""
    page = Read(ordinary)
    assert ("html", {"lang": "en"}) in page.elements
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    assert all(found.get("alt") for tag, found in page.elements if tag == "img")
    assert all("scope" in found for tag, found in page.elements if tag == "th")
    pictures = [found for tag, found in page.elements if tag == "svg"]
    assert all(found.get("aria-hidden") == "true" or found.get("aria-label") for found in pictures)


def test_the_page_has_the_verdict_with_its_reasons_and_commands():
    """Before any score, whatever the classes are called; a page of a model that was not judged has none."""
    facts = make_facts(HOSTILE, mistakes=8)
    assert facts.verdict is not None
    assert facts.verdict.reasons
    text = " ".join(Read(page_html(facts)).text.split())
    place = text.index(f"{facts.verdict.level.capitalize()}: {facts.verdict.level.meaning}")
    assert place < text.index("At a glance", text.index("Right on"))
    for reason in facts.verdict.reasons:
        assert " ".join(reason.text.split()) in text
    assert all(step.command in text for step in facts.next_steps)
    assert "Usable" not in Read(page_html(alone())).text


def test_the_page_has_suspicious_labels_possible_classes_and_the_scores_of_folds(ordinary: str):
    """Each section is left out where a run has none of it."""
    found = Read(ordinary).text
    bare = dataclasses.replace(make_facts(), held_out=None, suspects=())
    less = Read(page_html(bare)).text
    for text in ("Suspicious labels", "labelled amber", "each predicted by a model that has not seen it"):
        assert text in found
        assert text not in less
    assert "with --folds all are" not in found
    assert "Possible classes" in found
    assert "the true class is among the possible classes" in found


def test_equal_facts_give_equal_pages(ordinary: str):
    assert page_html(make_facts(extra_mistakes=10)) == ordinary


def test_a_set_without_splits_is_shown_as_a_whole():
    """All images of all its classes, and how many of them were tested; nothing of training or of splits."""
    counts = [("amber", 0, 0, 25), ("birch", 0, 0, 20), ("no product", 0, 0, 15), ("all", 0, 0, 60)]
    data = DatasetReport(
        counts=counts, num_quarantined=2, num_duplicate_groups=1, num_duplicate_images=2, num_torn_groups=0,
        has_splits=False,
    )  # fmt: skip
    html = page_html(dataclasses.replace(alone(per_class=15), data=data))
    (section,) = Read(html).root.find("section", "data")
    text = section.text
    assert text.startswith("Data 60 images of 3 classes, 45 of them tested. 2 images in 1 group are copies")
    assert "2 files could not be used." in text
    assert "amber 25 images birch 20 images no product 15 images" in text
    assert "train" not in text
    assert "split" not in text


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=5).filter(any))
def test_parts_of_a_whole_are_shown_so_that_they_sum_to_100(amounts: list[int]):
    """Each is off by less than its last digit, and only 0 is shown as 0 and only the whole as 100."""
    shown = [
        text.removesuffix("\u202f%") for text in text_format.format_parts([amount / sum(amounts) for amount in amounts])
    ]
    if not any(text[0] in "<>" for text in shown):
        assert sum(map(float, shown)) == pytest.approx(100, abs=1e-9)
        for text, amount in zip(shown, amounts, strict=True):
            assert (float(text) in (0, 100)) == (amount in (0, sum(amounts)))
            digits = len(text.partition(".")[2])
            if 0 < amount < sum(amounts):
                assert abs(float(text) - 100 * amount / sum(amounts)) < 10**-digits
    else:
        assert min(amount for amount in amounts if amount) / sum(amounts) < 1e-6


def test_thirds_and_halves_of_a_digit_lose_nothing():
    assert text_format.format_parts([1 / 3, 1 / 3, 1 / 3]) == ["33.4\u202f%", "33.3\u202f%", "33.3\u202f%"]
    assert text_format.format_parts([0.8765, 0.1235]) == ["87.7\u202f%", "12.3\u202f%"]
    assert text_format.format_parts([0.0, 1.0, 0.0]) == ["0\u202f%", "100\u202f%", "0\u202f%"]
    assert text_format.format_parts([0.9999, 0.0001]) == ["99.99\u202f%", "0.01\u202f%"]


def test_what_is_not_known_is_left_out(ordinary: str):
    """An evaluation without a run has no data, curves, times or settings; a run has all sections."""
    names = [
        "summary", "data", "quality", "classes", "confusion", "mistakes", "samples", "images", "confidence", "sets",
        "curves", "time", "hardware", "settings",
    ]  # fmt: skip
    titles = {f"{name}-title" for name in names}
    assert [name for name in attributes(Read(ordinary), "id") if f"{name}-title" in titles] == names
    found = attributes(Read(page_html(alone())), "id")
    left = ["summary", "classes", "confusion", "mistakes", "samples", "images", "confidence"]
    assert [name for name in found if f"{name}-title" in titles] == left


def test_a_page_of_large_noisy_pictures_stays_below_three_megabytes():
    """Noise is the worst that a codec can get; the pictures are made smaller until they fit."""
    facts = make_facts([f"class {number}" for number in range(10)], side=320)
    sides = [html_report.fit_side(facts, budget) for budget in (10**5, html_report.IMAGES_BUDGET_BYTES, 10**9)]
    assert sides == sorted(set(sides))
    assert len(page_html(facts).encode()) < 3_000_000


def test_the_head_tells_the_outcome(ordinary: str):
    """Accuracy, what is answered and how well, what is left, the promise, the fall on the extra set."""
    text = " ".join(Read(ordinary).text.replace(text_format.THIN, " ").split())
    head = text[text.index("Right on") : text.index("Macro F1")]
    assert "Right on 90.0 % of 60 test images " in head
    assert "95 % interval 79.9–95.3 %." in head
    assert "answers by itself: 90.0 % (79.9–95.3 %) of the images, and 0 % (0–6.6 %) of these answers are wrong" in head
    assert "The other 6 images (10.0 %) are left to a human." in head
    assert "promises at most 5 % wrong answers: the 240 validation images that it answers show that" in head
    assert "The test images agree with it, but are too few to prove it." in head
    assert "On “shifted”, 60 images, it is right on 50.0 % (37.7–62.3 %): 40.0 points fewer than on the test" in head
    assert "of these answers are wrong, more than the limit." in head


@pytest.mark.parametrize("none", [True, False], ids=["nothing answered", "all right"])
def test_extremes_read_well(none: bool):
    """Where nothing is answered, and where nothing is wrong, the page says so, without a number that is not known."""
    decision = make_decision(2.0) if none else make_decision(0.5)
    html = page_html(make_facts(decision=decision, mistakes=2 if none else 0, extra=()))
    text = Read(html).text
    assert "nan" not in text.lower().replace("finance", "")
    assert "None" not in text.replace("None is left", "").replace("None are left", "")
    if none:
        assert "It answers none of them by itself: all are left to a human." in text
        assert "nothing is answered" in text
    else:
        assert "No mistake among 60 images." in text
        assert "Largest confusions" not in text
        assert "None is left to a human." in text or "None are left to a human." in text


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_to_a_certainty(share: float):
    """Only 0 is shown as 0 %, only 1 as 100 %; all else stays within half a digit."""
    text = text_format.format_number(share)
    assert (text == "0") == (share == 0)
    assert (text == "100") == (share == 1)
    if not text.startswith(("<", ">")):
        assert abs(float(text) - 100 * share) <= 0.0500001
        assert share in (0, 1) or 0 < float(text) < 100


@given(st.floats(0, 1))
def test_a_confidence_is_never_rounded_up(share: float):
    shown = float(text_format.format_confidence(share).removesuffix(f"{text_format.THIN}%"))
    assert shown <= 100 * share + 1e-9
    assert shown > 100 * share - 0.1 - 1e-9


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Estimate(0.002, 0.0, 0.009), "confirmed"), (Estimate(0.008, 0.002, 0.02), "agrees"),
        (Estimate(0.02, 0.005, 0.05), "doubtful"), (Estimate(0.05, 0.02, 0.1), "broken"), (None, None),
    ],
)  # fmt: skip
def test_a_promise_is_checked_with_the_interval(error: Estimate | None, state: str | None):
    """Confirmed: the whole interval lies within it; broken: the whole interval lies above it."""
    point = OperatingPoint(0.9, Estimate(0.5, 0.4, 0.6), error, 50, 100)
    assert text_format.check_promise(make_decision(max_error=0.01), point) == state


def test_what_is_not_assured_is_not_promised():
    """A threshold that was only observed says so, and up to which share may be wrong."""
    facts = make_facts(decision=make_decision(assured=False))
    text = text_format.score_sentences(facts).promise.replace(text_format.THIN, " ")
    assert "promises" not in text
    assert "this is not assured: after the 240 validation images that it answers, up to 3.2 % may be wrong" in text


def test_a_difference_within_chance_is_no_fall():
    facts = make_facts(extra_mistakes=3)
    assert facts.sets[1].drop is not None
    assert facts.sets[1].drop.high > 0
    assert "no clear difference from the test images" in text_format.score_sentences(facts).shifts[0]


def test_a_calibration_that_does_not_hold_elsewhere_is_told():
    """Where confidence and accuracy lie farther apart than on the test images beyond chance, and only there."""
    told = "a temperature fitted on images of one source does not hold for another."
    assert told in text_format.score_sentences(make_facts(extra_mistakes=12)).shifts[0]
    assert told not in text_format.score_sentences(make_facts(extra_mistakes=2)).shifts[0]


def test_copies_in_several_splits_are_confessed(ordinary: str):
    """Where the list of the data set tears groups apart, the page claims nothing of leaks."""
    facts = make_facts()
    assert facts.data is not None
    torn = dataclasses.replace(facts, data=dataclasses.replace(facts.data, num_torn_groups=1))
    confessed = page_html(torn)
    assert "Each group lies in one split" in ordinary
    assert "Each group lies in one split" not in confessed
    assert "1 group into several splits: scores flatter." in confessed


def test_the_matrix_counts_every_image_and_shows_the_worst_classes():
    """Up to 25 classes all are there; of more only those with mistakes, the worst at most."""
    scores, _ = make_scores(["a", "b", "c"], None)
    whole = html_report_tables.build_matrix(scores)
    assert sum(cell.count for row in whole.rows for cell in row) == scores.num_images
    assert [cell.right for cell in whole.rows[1]] == [False, True, False]
    many, _ = make_scores(LONG, None, mistakes=0)
    assert html_report_tables.build_matrix(many).names == []
    truth = np.array([*np.repeat(np.arange(50), 20), 0, 1])
    given = np.array([*np.repeat(np.arange(50), 20), 1, 2])
    some = dataclasses.replace(many, cells=confusion_counts(truth, given, 50))
    assert html_report_tables.build_matrix(some).names == list(LONG[:3])
    assert html_report_tables.build_matrix(some, most=2).num_hidden == 48


def test_the_weakest_class_stands_first_and_an_unseen_one_last():
    facts = make_set("test", ["a", "b", "c"], None)
    scores = facts.evaluation
    worse = dataclasses.replace(scores.classes[1], f1=Estimate(0.1, 0.0, 0.2))
    unseen = dataclasses.replace(scores.classes[0], support=0, predicted=0, f1=Estimate(0.0, 0.0, 1.0))
    first, rest = html_report_tables.sort_by_recall(
        dataclasses.replace(scores, classes=(unseen, worse, scores.classes[2]))
    )
    assert [item.name for item in first] == ["b", "c", "a"]
    assert rest == []
    html = page_html(ReportData(sets=[dataclasses.replace(facts, evaluation=scores)], decision=None))
    assert html.index("<bdi>a</bdi>") < html.index("<bdi>c</bdi>")


def test_recalls_show_the_largest_fall_first_and_what_is_missing():
    """A class without an image in a set is named, without a number."""
    first, second = make_set("test", ["a", "b"], None), make_set("other", ["a", "b"], None, mistakes=9)
    classes = second.evaluation.classes
    unseen = dataclasses.replace(classes[0], support=0)
    second = dataclasses.replace(
        second, evaluation=dataclasses.replace(second.evaluation, classes=(unseen, classes[1]))
    )
    rows = html_report_tables.recalls_by_set([first, second])
    assert [row.name for row in rows] == ["b", "a"]
    assert rows[1].recalls[1] is None


def _light(colour: np.ndarray) -> float:
    """Relative luminance of an sRGB colour 0..1 (WCAG 2.2)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["hit", "miss"])
def test_numbers_of_the_matrix_stand_out_at_every_strength(kind: str, dark: bool):
    """Black or white, whichever the style sheet chooses, has a contrast of 4.5 or more on every mix of colours."""
    style = (Path(html_report_tables.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    colours: dict[str, np.ndarray] = {}
    for name, value in re.findall(r"--([\w-]+): #(\w{6});", style.split("* { box-sizing")[0]):
        if dark or name not in colours:  # the second definition is that of the dark
            colours[name] = np.array([int(value[place : place + 2], 16) for place in (0, 2, 4)]) / 255
    for strength in np.linspace(0.02, 1, 99).round(2):
        ground = _light(strength * colours[kind] + (1 - strength) * colours["paper"])
        deep = html_report_tables.color_intensity(strength) in (
            ("d1", "d2", "d3") if dark else ("d2", "d3") if kind == "hit" else ("d3",)
        )
        ink = _light(colours["deep-ink" if deep else "cell-ink"])
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5, (kind, strength)


def test_heat_lights_up_the_picture_where_it_is():
    """Hot places are brighter and coloured, cold ones dark and grey; a heatmap of another size is stretched."""
    _, table = make_scores(["a", "b"], None)
    picture = make_pictures(table, [0])[0]
    heat = np.zeros((48, 48), np.float32)
    heat[:24] = 1
    picture = dataclasses.replace(picture, image=np.full((48, 48, 3), 120, np.uint8), heatmap=heat)
    over = html_report.heat_overlay(picture).astype(int)
    assert over[:24].mean() > 2 * over[24:].mean()
    assert np.ptp(over[40, 40]) == 0
    assert np.ptp(over[5, 5]) > 50
    small = dataclasses.replace(picture, image=picture.image[:, :24], heatmap=heat[20:28, :8])
    over = html_report.heat_overlay(small).astype(int)
    assert over.shape == (48, 24, 3)
    assert over[:20].mean() > 2 * over[28:].mean()
    with pytest.raises(ValueError, match="received none"):
        html_report.heat_overlay(dataclasses.replace(picture, heatmap=None))
