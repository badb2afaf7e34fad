"""The model card: Markdown that shows every name as it is, honest words, and code that does what the package does."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from support.report_examples import HOSTILE, LONG, alone, make_decision, make_facts, make_scores

from pharmclf.evaluation.abstention_policy import AbstentionPolicy, write_policy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting.model_card import escape_markdown, model_card
from pharmclf.reporting.text_format import THIN

MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def plain(card: str) -> str:
    """The card without its narrow spaces."""
    return card.replace(THIN, " ")


def rendered(card: str) -> str:
    """The card as HTML."""
    return MARKDOWN.render(card)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1).filter(str.strip))
def test_an_escaped_text_is_shown_as_it_is(text: str):
    """Within a line of Markdown it comes out as itself, but for runs of blanks."""
    shown = rendered(f"a {escape_markdown(text)} z")
    assert html.unescape(shown).strip() == f"<p>a {' '.join(text.split())} z</p>".replace("  ", " ")


@pytest.mark.parametrize("run", [True, False], ids=["run", "alone"])
def test_names_from_the_data_make_no_elements(run: bool):
    """Whatever classes and sets are called: no element, link or picture but the card's own, and no row out of shape."""
    page = rendered(model_card(make_facts(HOSTILE, extra=HOSTILE[:1]) if run else alone(HOSTILE)))
    elements = set(re.findall(r"</?([a-z][a-z0-9]*)", page))
    allowed = {"h1", "h2", "h3", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert elements <= allowed
    for table in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
        assert len({row.count("</t") for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)}) == 1
    for name in (*HOSTILE[:6], HOSTILE[7]):
        assert name in html.unescape(page), name
    assert "\u202e" not in page


def test_the_card_has_its_parts_and_numbers():
    """What it is, what for, data, scores with intervals, failures, threshold, code, origin, in this order."""
    card = plain(model_card(make_facts()))
    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == [
        "What it is", "What it is for, and what not", "Data", "How well it does", "Where it fails",
        "When it answers by itself", "How to use it", "Where it comes from",
    ]  # fmt: skip
    for part in (
        "**Right on 90.0 % of 60 test images** (95 % interval 79.9–95.3 %).",
        "3 products on the backbone lite0, trained on 60 images",
        "**It knows 3 products and nothing else.**",
        "| test | 60 | 90.0 % (79.9–95.3 %) |",
        "| amber | 20 | 90.0 % (69.9–97.2 %) |",
        "Most often confused, of the test images: amber predicted as birch (2 images, 10.0 % of it)",
        "On “shifted”, 60 images, it is right on 60.0 %",
        "From a confidence of 0.8000 after temperature scaling (temperature 1.5000); below that, ask a human.",
        "promises at most 5 % wrong answers",
        "Versions: python 3.11, keras 3.15.",
        "Fingerprints: data " + "0" * 32,
    ):
        assert part in card, part


def test_the_card_begins_with_the_verdict_and_its_reasons():
    """Before any score; a card of a model that was not judged has none."""
    facts = make_facts()
    assert facts.verdict is not None
    card = plain(model_card(facts))
    first = card.index(f"**{facts.verdict.level.capitalize()}: ")
    assert first < card.index("**Right on")
    shown = html.unescape(rendered(card))
    assert all(reason.text in shown and reason.remedy in shown for reason in facts.verdict.reasons)
    assert "sable" not in model_card(alone()).split("## ")[0]
    purpose = "It proposes the name of a product"
    assert purpose in card
    assert purpose not in model_card(make_facts(mistakes=20))


def test_what_is_not_assured_is_said_with_what_it_would_take():
    """Only observed: how many images it would need, and no promise; nothing answered: no threshold is named."""
    observed = plain(model_card(make_facts(decision=make_decision(assured=False))))
    assert "this is not assured" in observed
    assert "at least 59 independent validation images" in observed
    assert "promises at most" not in observed
    nothing = plain(model_card(make_facts(decision=make_decision(2.0))))
    assert "all are left to a human" in nothing
    assert "From a confidence of" not in nothing


def test_extremes_read_well():
    """Without a mistake, without a run, with an untested class and with many classes."""
    assert "No mistake among the test images." in model_card(make_facts(mistakes=0, extra=()))
    lone = model_card(alone())
    assert "It has no threshold" in lone
    assert "None" not in lone.split("```")[0]
    assert "and 20 more in `labels.json`" in model_card(make_facts(LONG, per_class=4, mistakes=1))
    facts = make_facts()
    scores = facts.test.evaluation
    unseen = dataclasses.replace(scores.classes[2], support=0, recall=Estimate(0.0, 0.0, 1.0))
    untested = dataclasses.replace(scores, classes=(*scores.classes[:2], unseen))
    card = model_card(dataclasses.replace(facts, sets=[dataclasses.replace(facts.test, evaluation=untested)]))
    assert "Not tested at all: cedar." in card
    assert "| cedar | 0 | not known |" in card


def _code(card: str) -> str:
    found = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("decision", [make_decision(0.5), make_decision(0.75), make_decision(2.0), None], ids=str)
def test_the_code_of_the_card_answers_as_the_package_does(
    decision: AbstentionPolicy | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Run in the model's folder with a stand-in for keras: the class, or a human below the threshold."""
    facts = make_facts(decision=decision) if decision else alone()
    probabilities = np.array([[0.2, 0.7, 0.1]], np.float32)

    class Model:
        input_shape = (None, 8, 8, 3)

        def predict(self, images: np.ndarray) -> np.ndarray:
            assert (images.shape, images.dtype) == ((1, 8, 8, 3), np.dtype("float32"))
            assert np.abs(images - [200, 30, 30]).max() < 4
            return probabilities

    keras = ModuleType("keras")
    keras.__dict__["saving"] = SimpleNamespace(load_model={"model.keras": Model()}.get)
    monkeypatch.setitem(sys.modules, "keras", keras)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 30, 30)).save("tablet.jpg")
    Path("labels.json").write_text(json.dumps(["amber", "birch", "cedar"]))
    if decision:
        write_policy(decision, str(tmp_path / "decision.json"))
    exec(compile(_code(model_card(facts)), "card", "exec"), {})
    said = capsys.readouterr().out.strip()
    if decision is None:
        assert said.split()[0] == "birch"
    else:
        answered = bool(decision.accepts(decision.calibrated(probabilities).max(axis=1))[0])
        assert said == ("birch" if answered else "ask a human")
        assert answered == (decision.threshold == 0.5)


def test_equal_facts_give_equal_cards():
    assert model_card(make_facts()) == model_card(make_facts())


def test_scores_of_every_set_stand_in_one_table():
    card = plain(model_card(make_facts(extra=("dim", "warm"))))
    rows = [line.split(" | ")[0] for line in card.splitlines() if line.startswith("| ")]
    assert rows[1:5] == ["| ---", "| test", "| dim", "| warm"]
    scores, _ = make_scores(("amber", "birch", "cedar"), make_decision())
    assert scores.answered is not None
    assert f"{100 * scores.answered.coverage.value:.1f} %" in card
