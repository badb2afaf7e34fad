"""The pictures: PNG that opens, of the right size, the same every time, whatever the names are."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from figure_checks import boxes, check_texts, opened
from support.report_examples import make_history

from pharmclf.evaluation.evaluate import evaluate
from pharmclf.reporting import run_plots
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.fonts import format_names


def make_evaluation(names, count=300, seed=0):
    """An evaluation of random predictions, right in 80 of 100 cases."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, len(names), count)
    predicted = np.where(generator.random(count) < 0.8, truth, generator.integers(0, len(names), count))
    labels = np.array(names, object)
    table = pd.DataFrame({"row": np.arange(count), "path": "p", "label": labels[truth], "predicted": labels[predicted]})
    return evaluate(table.assign(confidence=0.5), names, groups=table["row"], resamples=5)


@pytest.mark.parametrize("names", [["a", "b"], [f"product {number}" for number in range(12)]])
def test_confusion_matrix_is_a_picture(names):
    """The same every time, on a white ground, with blue for right and orange for wrong."""
    png, again = (png_bytes(run_plots.confusion_matrix_figure(make_evaluation(names))) for _ in range(2))
    assert png == again
    image = opened(png)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert ((pixels[..., 2] - pixels[..., 0]) > 60).sum() > 1000
    assert ((pixels[..., 0] - pixels[..., 2]) > 20).sum() > 1000


def test_texts_of_fifty_classes_do_not_overlap():
    names = [f"product {number:02} prolonged release tablets {number} mg" for number in range(50)]
    evaluation = make_evaluation(names, count=7000)
    figure = run_plots.confusion_matrix_figure(evaluation)
    assert len(boxes(figure)) > 200
    check_texts(figure, shared=1.0)


def test_many_classes_are_cut_to_those_with_most_mistakes(monkeypatch):
    monkeypatch.setattr(run_plots, "MAX_CLASSES", 5)
    figure = run_plots.confusion_matrix_figure(make_evaluation([f"class {number}" for number in range(9)]))
    assert any("the 5 of 9 classes with most mistakes" in text.get_text() for text in figure.texts)
    assert len(figure.axes[0].get_xticklabels()) == 5


def test_names_in_any_script_and_with_dollars_are_drawn():
    """Missing glyphs warn nobody, and $...$ is no formula."""
    names = ["$\\frac$", "阿莫西林", "a_b^c", "50 % | é"]
    assert opened(png_bytes(run_plots.confusion_matrix_figure(make_evaluation(names)))).width > 300


def test_pictures_need_no_pyplot():
    """Neither pyplot with its global figures nor TensorFlow or Ray is imported."""
    code = (
        "import sys, pharmclf.reporting.run_plots, pharmclf.reporting.run_summary; "
        "print([name for name in ('matplotlib.pyplot', 'tensorflow', 'ray', 'keras') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_learning_curves_mark_the_chosen_epoch_and_the_border():
    """Three panels; the subtitle names the chosen epoch, and every panel the two phases."""
    figure = run_plots.learning_curves_figure(make_history(), ("phase1", 2))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert any("phase 1, epoch 3 of 7" in text.get_text() for text in figure.texts)
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["phase 1", "phase 2"]
        assert any(list(line.get_xdata()) == [4.5, 4.5] for line in axes.lines)


@pytest.mark.parametrize("history", [make_history(1, 0), make_history(0, 2), make_history(30, 30)])
def test_learning_curves_of_any_length_are_a_picture(history):
    """One epoch, one phase and many epochs all open as PNG; unknown numbers leave gaps."""
    unknown = dataclasses.replace(history[0], val_loss=math.nan)
    assert opened(png_bytes(run_plots.learning_curves_figure([unknown, *history[1:]]))).width > 1500


def test_best_epoch_is_that_of_the_highest_validation_accuracy():
    """Of equal accuracies the lower loss wins, then the earlier epoch; a given one is kept, a strange one refused."""
    numbers = zip(make_history(3, 0), (0.9, 0.9, math.nan), (0.4, 0.3, 0.1), strict=True)
    history = [dataclasses.replace(record, val_accuracy=accuracy, val_loss=loss) for record, accuracy, loss in numbers]
    assert run_plots.chosen_index(history) == 1
    assert opened(png_bytes(run_plots.learning_curves_figure(history, ("phase1", 2))))
    with pytest.raises(ValueError, match="expected the phase and epoch of an entry"):
        run_plots.learning_curves_figure(history, ("phase2", 1))
    with pytest.raises(ValueError, match="no epochs"):
        run_plots.learning_curves_figure([])


def test_sample_predictions_show_at_most_fifteen():
    """20 images make the picture of 15; one image makes a narrower one; numbers that differ are refused."""
    images = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    table = pd.DataFrame({"label": ["a"] * 20, "predicted": ["a", "b"] * 10, "confidence": 0.75})
    png = png_bytes(run_plots.sample_predictions_figure(images, table))
    assert png == png_bytes(run_plots.sample_predictions_figure(images[:15], table[:15]))
    assert opened(png_bytes(run_plots.sample_predictions_figure(images[:1], table[:1]))).width < opened(png).width
    with pytest.raises(ValueError, match="20 images and 3 predictions"):
        run_plots.sample_predictions_figure(images, table[:3])


def test_shortened_name_keeps_both_ends():
    """Look-alikes differ at the end, so the middle gives way; short names stay."""
    assert format_names("amoxicillin trihydrate capsules 500 mg", 20) == "amoxicillin t…500 mg"
    assert format_names("zocor", 20) == "zocor"
    assert all(len(format_names("x" * 50, length)) <= length for length in range(2, 40))
