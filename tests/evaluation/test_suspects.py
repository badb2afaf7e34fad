"""Labels that a model which has not seen the images finds unlikely are listed, the least likely first."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pharmclf.data.label_corrections import correct_labels
from pharmclf.data.manifest import COLUMNS, Manifest
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.scoring import ScoredDataset
from pharmclf.evaluation.suspects import find_suspects, suspects_csv

NAMES = ("a", "b", "c", "d")


def scored_set(labels: list[str], probabilities: np.ndarray, groups: list[int] | None = None) -> ScoredDataset:
    """Images 0.png, 1.png, … below /data with labels and probabilities."""
    rows = np.arange(len(labels))
    table = pd.DataFrame({name: [""] * len(labels) for name in COLUMNS})
    table = table.assign(
        path=[f"/data/{row}.png" for row in rows], label=labels, group=groups or rows, split="test", status="ok"
    )
    images = EvalDataset(name="test", source="/data", manifest=Manifest(table, NAMES, "/data"), rows=rows)
    predictions = predictions_table(rows, images.paths, labels, probabilities, NAMES)
    evaluation = evaluate(predictions, NAMES, groups=images.groups, resamples=2)
    return ScoredDataset(images=images, probabilities=probabilities, table=predictions, evaluation=evaluation)


def random_answers(truth: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Probabilities of a model that is right for some 96 % of the images, and confuses a and b."""
    logits = draw.normal(0, 1, (len(truth), 4)) + 6 * np.eye(4)[truth]
    logits[truth < 2, :2] += draw.normal(0, 2.5, ((truth < 2).sum(), 2))
    shares = np.exp(logits)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def test_nine_of_ten_of_as_many_images_as_were_mislabelled_are_mislabelled():
    """5 % of the labels are replaced by another class at random."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 4, 2000)
    probabilities = random_answers(truth, draw)
    assert 0.9 < (probabilities.argmax(axis=1) == truth).mean() < 0.99
    flipped = draw.choice(2000, 100, replace=False)
    given = truth.copy()
    given[flipped] = (given[flipped] + draw.integers(1, 4, 100)) % 4
    found = find_suspects([scored_set([NAMES[number] for number in given], probabilities)], NAMES)
    hits = found["place"].isin(flipped)
    assert hits[:100].mean() >= 0.9
    assert hits.sum() >= 98
    assert (found["p_label"].to_numpy()[1:] >= found["p_label"].to_numpy()[:-1]).all()


def test_near_duplicates_of_a_suspect_follow_it():
    probabilities = np.float32([[0.2, 0.8, 0, 0], [0.15, 0.85, 0, 0], [0.1, 0.9, 0, 0], [0.4, 0.6, 0, 0]])
    found = find_suspects([scored_set(["a", "a", "a", "b"], probabilities, [0, 1, 0, 3])], NAMES)
    assert found["place"].tolist() == [2, 0, 1]


def test_the_list_is_taken_back_as_corrections(tmp_path: Path):
    """A person has agreed with one suggestion and dropped an image."""
    probabilities = np.float32(
        [[0.9, 0.1, 0, 0], [0, 0.9, 0.1, 0], [0.2, 0.8, 0, 0], [0, 0, 0.9, 0.1], [0, 0.2, 0.8, 0]]
    )
    scored = scored_set(["a", "b", "a", "b", "c"], probabilities)
    found = find_suspects([scored], NAMES)
    listed = pd.read_csv(io.BytesIO(suspects_csv(found)))
    assert listed["path"].tolist() == ["3.png", "2.png"]
    assert listed["p_label"].tolist() == pytest.approx([0.0, 0.2])
    listed["label"] = ["drop", "b"]
    listed.to_csv(tmp_path / "suspects.csv", index=False)
    corrected = correct_labels(scored.images.manifest, str(tmp_path / "suspects.csv"))
    assert corrected.ok["label"].tolist() == ["a", "b", "b", "c"]
    assert not len(corrected.quarantined)
    assert corrected.class_names == ("a", "b", "c")
    assert corrected.fingerprint != scored.images.manifest.fingerprint
