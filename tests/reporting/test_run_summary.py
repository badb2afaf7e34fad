"""result.json and the console summary."""

import dataclasses
import json
import math
import re

import pytest
from support.report_examples import make_facts

from pharmclf.evaluation.verdict import Level, Reason, ReasonCode, Verdict
from pharmclf.reporting import run_summary
from pharmclf.reporting.next_steps import TrainedModel

TRAINED = TrainedModel(model="runs/demo", data="photos", name="demo")


@pytest.fixture(scope="module")
def finished():
    return run_summary.build_result(make_facts(extra=()))


def test_a_result_is_json_with_the_test_accuracy_of_the_phases_that_were_tested(finished):
    assert finished["phases"][0]["test_accuracy"] is None
    assert finished["phases"][1]["test_accuracy"] == finished["test_accuracy"] == pytest.approx(0.9)
    assert json.loads(json.dumps(finished, allow_nan=False)) == finished


def test_a_price_is_written_and_shown_only_where_it_is_known(finished):
    facts = make_facts(extra=())
    priced = run_summary.build_result(dataclasses.replace(facts, run=dataclasses.replace(facts.run, price=0.0123)))
    assert priced == finished | {"price": 0.0123}
    assert ", price 0.0123\n" in run_summary.summary_text(priced, "runs/x", TRAINED)
    assert "price" not in run_summary.summary_text(finished, "runs/x", TRAINED)


def test_intervals_hold_their_numbers(finished):
    for key in ("val_accuracy", "test_accuracy", "test_macro_f1"):
        low, high = finished[f"{key}_interval"]
        assert low < finished[key] < high


def test_numbers_that_are_not_finite_become_none():
    """A phase without a validation or a speed says so; JSON knows no NaN."""
    facts = make_facts()
    phase = dataclasses.replace(facts.run.phases[0], images_per_second=math.inf, val_accuracy=math.nan)
    run = dataclasses.replace(facts.run, workers=0, phases=[phase])
    result = run_summary.build_result(dataclasses.replace(facts, run=run))
    assert result["phases"][0]["images_per_second"] is None
    assert result["phases"][0]["val_accuracy"] is None
    assert "in one process" in run_summary.summary_text(result, "runs/x", TRAINED)


def test_the_summary_ends_with_verdict_commands_and_report(finished, tmp_path):
    """The last line is the address of the report, in a browser's form; before it three commands and the verdict."""
    lines = run_summary.summary_text(finished, str(tmp_path / "my runs" / "demo"), TRAINED).splitlines()
    assert lines[-1] == f"report: file://{tmp_path}/my%20runs/demo/report.html"
    assert [line.split()[:2] for line in lines if line.startswith("  pharmclf")] == [
        ["pharmclf", "predict"], ["pharmclf", "evaluate"], ["pharmclf", "export"]
    ]  # fmt: skip
    assert any(line.startswith("verdict: good: ") for line in lines)  # without reasons
    assert "runs/demo" in next(line for line in lines if "predict" in line)
    remote = run_summary.summary_text(finished, "s3://bucket/runs/demo/", TRAINED).splitlines()
    assert remote[-1] == "report: s3://bucket/runs/demo/report.html"


def test_a_record_without_a_verdict_has_a_summary(finished):
    before = {name: value for name, value in finished.items() if name not in ("verdict", "warnings")}
    text = run_summary.summary_text(before, "s3://bucket/runs/demo", TRAINED)
    assert "verdict" not in text
    assert text.endswith("\nreport: s3://bucket/runs/demo/report.html")


def test_many_reasons_are_counted(finished):
    """Of ten, six are shown; the others are in the report."""
    reason = Reason(code=ReasonCode.LOOK_ALIKES, level=Level.REVIEW, text="a " * 80, remedy="b " * 80)
    result = finished | Verdict((reason,) * 10).to_dict()
    text = run_summary.summary_text(result, "s3://bucket/runs/demo", TRAINED)
    assert sum(line.startswith("  - a a") for line in text.splitlines()) == 6
    assert sum(line.startswith("    b b") for line in text.splitlines()) == 3  # one remedy of three lines, once
    assert "and 4 more" in text
    assert max(len(line) for line in text.splitlines() if " b b" in line or " a a" in line) <= 80


def test_summary_is_plain_aligned_text(finished):
    """80 columns, no colours, no line ends in blanks; phases are named, and their numbers are in columns."""
    text = run_summary.summary_text(finished, "s3://bucket/runs/demo/", TRAINED)
    assert text.isascii()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 80
    for part in ("phase 1", "phase 2", "2 workers", "1:15"):
        assert part in text
    columns = [line for line in text.splitlines() if line.startswith("  phase ")]
    assert len({re.search(r"0\.\d", line).start() for line in columns}) == 1
