"""The model card, Markdown beside the model: what it is, how well it does, where it fails, when it should not answer.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Names of classes, sets and files are escaped: they are
shown as they are, whatever they hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pharmclf.core.units import format_count, format_examples
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.abstention_policy import DECISION_FILE, AbstentionPolicy
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.result_files import MAX_OPEN_CLASSES, WEAKEST
from pharmclf.evaluation.results import ClassResult, EvaluationResult
from pharmclf.reporting import load_image_snippet, text_format
from pharmclf.reporting.html_report_tables import sort_by_recall
from pharmclf.reporting.report_data import DatasetReport, EvalSetReport, ReportData

CARD_FILE = "README.md"
"""Its name, beside the model."""
_WORST = 5  # classes and pairs that are named
_MOST_NAMES = 30  # classes that are listed
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&#!$^])")
_BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # would turn the rest of the line round
_LOAD = 'model = keras.saving.load_model("model.keras")'
_READ = "json.loads(pathlib.Path({}).read_bytes())"
_PREDICT = 'p = model.predict(load_image("tablet.jpg", model.input_shape[1])[None].astype("float32"))[0]'


def model_card(facts: ReportData) -> str:
    """The card as Markdown (CommonMark with tables); equal facts give equal text.

    Args:
        facts: what it says; what is not known is left out.
    """
    verdict = text_format.build_verdict(facts)
    parts = [
        [f"# {escape_markdown(facts.name)}", f"**{verdict.headline}** ({verdict.certainty}). {verdict.answers}"],
        _description_section(facts),
        _usage_section(facts),
        _data_section(facts.data) if facts.data else [],
        _scores_section(facts),
        _failures_section(facts),
        _threshold_section(facts),
        _code(facts.decision, facts.data.white_level if facts.data else MAX_VALUE),
        _origin_section(facts),
    ]
    return "\n\n".join(line for part in parts for line in part if line) + "\n"


def escape_markdown(text: object) -> str:
    """A text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", _BIDI_CONTROLS.sub("", " ".join(str(text).split())))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are escaped already; numbers stand to the right."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))


def _format_list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _description_section(facts: ReportData) -> list[str]:
    names = facts.test.evaluation.class_names
    listed = ", ".join(escape_markdown(name) for name in names[:_MOST_NAMES])
    more = f", and {len(names) - _MOST_NAMES} more in `labels.json`" if len(names) > _MOST_NAMES else ""
    kind = f"An image classifier of {format_count(len(names), 'product')}"
    if facts.result:
        kind += (
            f" on the backbone {escape_markdown(facts.result['backbone'])}, trained on "
            f"{format_count(facts.result['train_images'], 'image')} in two phases: first its head, then its upper "
            "blocks"
        )
    made = f" Made {escape_markdown(facts.created)}." if facts.created else ""
    takes = "It takes RGB images with values from 0 to 255 and gives a probability for each product."
    return ["## What it is", f"{kind}.{made} {takes}", f"Products: {listed}{more}."]


def _usage_section(facts: ReportData) -> list[str]:
    num_classes = len(facts.test.evaluation.classes)
    shifts = [item for item in facts.sets[1:] if item.drop and item.drop.high < 0]
    elsewhere = "It was not tested on images of another source."
    if len(facts.sets) > 1:
        elsewhere = "It does worse there." if shifts else "On those tried below it did no worse beyond chance."
    return [
        "## What it is for, and what not",
        "It proposes the name of a product to a person who is able to check it and does.",
        _format_list(
            [
                f"**It knows {num_classes} products and nothing else.** A picture of anything else gets one of their "
                "names too, and can get it with high confidence.",
                "**It must not be the only check before a patient takes a medicine.** It sees a surface, not what is "
                "in it: not strength, batch, expiry or forgery, unless these were classes of its own.",
                f"**Other cameras, light, backgrounds or packages are another task.** {elsewhere} Test it on your own "
                "images before you use it, and again when anything changes.",
                "**Its confidence is measured, not understood.** It holds on average for images like the validation "
                "images, not for each image.",
            ]
        ),
    ]


def _data_section(data: DatasetReport) -> list[str]:
    _, train, validation, test = data.counts[-1]
    copies = "No image is a copy of another."
    if data.num_duplicate_groups:
        groups = format_count(data.num_duplicate_groups, "group")
        where = "each group lies in one split."
        if data.num_torn_groups:
            where = f"{data.num_torn_groups:,} of the groups lie in several splits, so scores flatter."
        copies = f"{format_count(data.num_duplicate_images, 'image')} in {groups} are copies of one another; {where}"
    bad = f" {format_count(data.num_quarantined, 'file')} could not be used." if data.num_quarantined else ""
    smallest = min(data.counts[:-1], key=lambda row: row[1])
    return [
        "## Data",
        f"{format_count(train, 'image')} to train on, {validation:,} to choose epoch, temperature and threshold, "
        f"{test:,} to test. {copies}{bad} Fewest to train on: {escape_markdown(smallest[0])}, {smallest[1]:,}.",
        _format_list(escape_markdown(note) for note in data.notes),
    ]


def _scores_section(facts: ReportData) -> list[str]:
    heading = ["", "images", "accuracy", "macro F1", "calibration error", "answered by itself", "wrong among answers"]
    rows = []
    for item in facts.sets:
        scores, point = item.evaluation, item.evaluation.answered
        shares: list[Estimate | None] = [scores.accuracy, scores.macro_f1, scores.calibration_error]
        shares += [point.coverage, point.error] if point else [None, None]
        cells = [text_format.format_with_interval(share) if share else "–" for share in shares]
        rows.append([escape_markdown(item.name), f"{scores.num_images:,}", *cells])
    classes = list(facts.test.evaluation.classes)
    left_out = len(classes) - WEAKEST if len(classes) > MAX_OPEN_CLASSES else 0
    if left_out:
        classes = sort_by_recall(facts.test.evaluation)[0]
    return [
        "## How well it does",
        f"In brackets: 95{text_format.THIN}% intervals; copies of one picture count as one.",
        _table(heading, rows),
        "### Each product, on " + escape_markdown(text_format.images_label(facts.test)),
        _table(["product", "images", "recall", "precision", "F1"], map(_class_row, classes)),
        f"The {WEAKEST} products with the lowest F1; {left_out:,} more are in the run's report.txt."
        if left_out
        else "",
    ]


def _class_row(item: ClassResult) -> list[str]:
    return [
        escape_markdown(item.name),
        f"{item.support:,}",
        text_format.format_with_interval(item.recall) if item.support else "not known",
        text_format.format_with_interval(item.precision) if item.predicted else "not known",
        text_format.format_with_interval(item.f1) if item.has_examples else "not known",
    ]


def _failures_section(facts: ReportData) -> list[str]:
    lines = [line for item in facts.sets for line in _set_failures(item, facts)]
    lines += [_missing_info(facts.test.evaluation)]
    return ["## Where it fails", _format_list(lines)]


def _set_failures(facts: EvalSetReport, report: ReportData) -> list[str]:
    scores, where = facts.evaluation, escape_markdown(text_format.images_label(facts))
    lines = (
        []
        if facts is report.test
        else [escape_markdown(text_format.shift_sentence(facts, report.test, report.decision))]
    )
    missed = sorted((item for item in scores.classes if item.support and item.recall.value < 1), key=_recall)
    if missed:
        named = "; ".join(
            f"{escape_markdown(item.name)} {text_format.format_with_interval(item.recall)}" for item in missed[:_WORST]
        )
        lines.append(f"Least often recognised, of {where}: {named}.")
    else:
        lines.append(f"No mistake among {where}.")
    pairs = [
        f"{escape_markdown(pair.label)} taken for {escape_markdown(pair.predicted)} "
        f"({format_count(pair.count, 'image')}, {text_format.format_percent(pair.share)} of it)"
        for pair, _ in facts.confused[:_WORST]
    ]
    return [
        *lines,
        *([f"Most often confused, of {where}: {'; '.join(pairs)}."] if pairs else []),
        *_notes_section(facts),
    ]


def _recall(item: ClassResult) -> float:
    return item.recall.value


def _notes_section(facts: EvalSetReport) -> list[str]:
    return [f"{escape_markdown(facts.name)}: {escape_markdown(note)}" for note in facts.notes]


def _missing_info(scores: EvaluationResult) -> str:
    """How little is known of single classes."""
    tested = [item for item in scores.classes if item.support]
    vaguest = max(tested, key=lambda item: item.recall.high - item.recall.low)
    untested = [item.name for item in scores.classes if not item.support]
    listed = format_examples([escape_markdown(name) for name in untested], _MOST_NAMES)
    text = (
        f"What is known of single products is coarse: that of {escape_markdown(vaguest.name)}, with "
        f"{format_count(vaguest.support, 'test image')}, is between {text_format.format_percent(vaguest.recall.low)} "
        "and "
        f"{text_format.format_percent(vaguest.recall.high)} recognised."
    )
    return text + (f" Not tested at all: {listed}." if untested else "")


def _threshold_section(facts: ReportData) -> list[str]:
    decision, lines = facts.decision, ["## When it answers by itself"]
    if decision is None:
        return [*lines, text_format.answers_sentence(facts.test.evaluation.answered)]
    if decision.threshold <= 1:
        lines.append(
            f"From a confidence of {decision.threshold:.4f} after temperature scaling "
            f"(temperature {decision.temperature:.4f}); below that, ask a human."
        )
    lines.append(text_format.promise_sentence(decision, facts.test))
    if not decision.assured:
        lines.append(
            f"To promise it, at least {format_count(decision.num_needed, 'independent validation image')} must be "
            f"answered without an error; there were {decision.num_validation_images:,} in all."
        )
    if decision.threshold <= 1:
        lines.append(
            "That is said of images drawn like these, not of another source, and is a little hopeful: the same "
            "validation images chose the epoch."
        )
    lines.append(text_format.calibration_sentence(facts.test.evaluation, decision.temperature))
    return lines


def _code(decision: AbstentionPolicy | None, white_level: int) -> list[str]:
    lines = [
        "import json, keras, numpy as np, pathlib",
        load_image_snippet.IMPORTS,
        "",
        load_image_snippet.load_image_text(white_level),
        "",
    ]
    if decision:
        lines += [
            _LOAD,
            f"labels, decision = ({_READ.format('name')} for name in {('labels.json', DECISION_FILE)})",
            f'{_PREDICT} ** (1 / decision["temperature"])',
            'print(labels[p.argmax()] if p.max() / p.sum() >= decision["threshold"] else "ask a human")',
        ]
    else:
        lines += [
            _LOAD,
            f"labels = {_READ.format(repr('labels.json'))}",
            _PREDICT,
            "print(labels[p.argmax()], p.max())",
        ]
    return ["## How to use it", "\n".join(["```python", *lines, "```"])]


def _origin_section(facts: ReportData) -> list[str]:
    parts = []
    if facts.command:
        parts += ["Made with " + escape_markdown(facts.command)]
    for title, values in (("Versions", facts.versions), ("Fingerprints", facts.fingerprints)):
        if values:
            parts += [
                f"{title}: "
                + ", ".join(f"{escape_markdown(key)} {escape_markdown(value)}" for key, value in values.items())
            ]
    return ["## Where it comes from", *(f"{part}." for part in parts)] if parts else []
