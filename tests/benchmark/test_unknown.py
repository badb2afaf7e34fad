"""Products that a model has not seen: which are left out, how methods are compared, and the outputs of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pharmclf.benchmark.measure import UnknownOptions
from pharmclf.benchmark.unknown import (
    CONFIDENCE,
    FAR,
    KNOWN,
    LEFT_OUT,
    NEAR,
    Outputs,
    compare_methods,
    method_scores,
    run_outputs,
    unknown_table,
    write_lists,
)
from pharmclf.config import ConfigError, HeadConfig, PhaseConfig, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import cached_manifest

OURS = "pharmclf: Mahalanobis, two tensors"


def outputs(generator: np.random.Generator, centres: dict[str, np.ndarray], count: int, weights: np.ndarray) -> Outputs:
    """Features around the centre of each product, and what a linear classifier makes of them."""
    labels = np.array(sorted(centres) * count)
    pooled = np.stack([centres[label] for label in labels]) + 0.3 * generator.standard_normal((len(labels), 32))
    logits = pooled @ weights
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Outputs(
        labels=labels,
        groups=np.arange(len(labels)),
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        logits=logits,
        block=pooled[:, :16],
        pooled=pooled,
    )


@pytest.fixture(scope="module")
def sets() -> dict[str, Outputs]:
    """Four known products; of two left-out ones one is beyond the second, far from all, and one is as the first."""
    generator = np.random.default_rng(0)
    known = {name: generator.standard_normal(32) for name in "abcd"}
    weights = np.stack([known[name] for name in "abcd"], axis=1)
    beyond = generator.standard_normal(32)
    beyond -= weights @ np.linalg.lstsq(weights, beyond, rcond=None)[0]  # which no class sees
    away = {"far": known["b"] + beyond, "twin": known["a"]}
    return {
        **{name: outputs(generator, known, 60, weights) for name in ("train", "validation", "test")},
        LEFT_OUT: outputs(generator, away, 60, weights),
    }


def test_every_way_to_measure_strangeness_gives_a_score_for_each_image(sets: dict[str, Outputs]):
    scores = method_scores(sets)
    assert {"confidence", "energy", "ViM", "relative Mahalanobis", OURS} <= scores.keys()
    for of_sets in scores.values():
        assert {name: part.shape for name, part in of_sets.items()} == {
            name: (len(each.labels),) for name, each in sets.items()
        }


def test_a_far_product_is_found_and_a_twin_is_not(sets: dict[str, Outputs]):
    """By distance; confidence alone answers for both; known products are answered nearly as before."""
    rows = {(row.method, row.images): row for row in compare_methods([sets, sets], ["twin"], 0.05)}
    assert rows[OURS, FAR].answered.value < 0.05 < rows[CONFIDENCE, FAR].answered.value
    assert rows[OURS, NEAR].answered.value > 0.8
    assert (rows[OURS, FAR].auroc or 0) > 0.99
    assert (rows[OURS, NEAR].auroc or 1) < 0.85
    assert rows[OURS, KNOWN].answered.value > rows[CONFIDENCE, KNOWN].answered.value - 0.06
    assert rows[OURS, KNOWN].auroc is None
    assert rows[OURS, FAR].num_images == 120
    assert any(OURS in line and FAR in line for line in unknown_table(list(rows.values())))


def test_without_a_list_each_product_is_left_out_once():
    products = tuple("abcdefgh")
    parts = UnknownOptions().parts(products)
    assert sorted(name for part in parts for name in part) == list(products)
    assert UnknownOptions(leave_out=("a,b", "c")).parts(products) == [("a", "b"), ("c",)]
    for options in (UnknownOptions(leave_out=("a,x",)), UnknownOptions(near=("x",))):
        with pytest.raises(ConfigError, match="received x, expected products of the data: a, b, c"):
            options.parts(products)
    with pytest.raises(ConfigError, match="received nearly all products"):
        UnknownOptions(leave_out=("a,b,c,d,e,f,g",)).parts(products)


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_gives_outputs_for_the_products_that_it_has_not_seen(
    shared_ray: None, drawn_images: str, drawn_manifest: Manifest, tmp_path: Path
):
    """The lists keep all images, each in one of them; probabilities are those of the logits."""
    out = drawn_manifest.class_names[:2]
    lists = write_lists(cached_manifest(drawn_images, str(tmp_path / "lists")), out, tmp_path, 0)
    config = RunConfig(
        data=str(lists[0]), unknown=(f"{LEFT_OUT}={lists[1]}",), storage=str(tmp_path / "runs"), name="run",
        image_size=32, batch_size=16, weights="none", num_workers="0", head=HeadConfig(dense=(8,)),
        phase1=PhaseConfig(epochs=1), phase2=PhaseConfig(epochs=0), skip_checks=True,
    )  # fmt: skip
    found = run_outputs(config)
    assert set(found[LEFT_OUT].labels) == set(out)
    assert not set(found["train"].labels) & set(out)
    for each in found.values():
        shares = np.exp(each.logits - each.logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(each.probabilities, shares / shares.sum(axis=1, keepdims=True), atol=1e-5)
        assert each.pooled.shape == (len(each.labels), 1280)
        assert each.block.shape == (len(each.labels), 192)
