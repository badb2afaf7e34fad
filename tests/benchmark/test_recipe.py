"""Ingredients of a training on top of a base: what they set, how they are compared, and a run that is scored."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pharmclf import storage
from pharmclf.benchmark.measure import RecipeOptions
from pharmclf.benchmark.recipe import (
    BASE,
    INGREDIENTS,
    Scores,
    add_ingredients,
    compare_variants,
    recipe_table,
    run_scored,
)
from pharmclf.config import ConfigError, HeadConfig, PhaseConfig, RunConfig, to_dict


def scores(right: int, seconds: float = 1.0) -> Scores:
    """Of 100 images, the first ones are right."""
    table = pd.DataFrame({"hit": np.arange(100) < right, "image": np.arange(100)})
    return Scores(seconds=seconds, hits={"test": table})


def test_an_ingredient_changes_the_settings_that_it_names_alone():
    plain, changed = to_dict(RunConfig()), to_dict(add_ingredients(RunConfig(), ["light", "erase"]))
    named = {(part, key) for name in ("light", "erase") for part, each in INGREDIENTS[name].items() for key in each}
    assert {(part, key) for part, key in named if changed[part][key] != plain[part][key]} == named
    for part, key in named:
        changed[part][key] = plain[part][key]
    assert changed == plain


def test_each_variant_is_compared_with_the_base_on_the_same_images():
    base, better = compare_variants({BASE: [scores(70)], "light": [scores(90, 3.0)]})
    assert base.difference is None
    assert better.difference is not None
    assert (better.accuracy.value, better.difference.value, better.seconds) == (0.9, pytest.approx(0.2), 3.0)
    assert better.difference.low > 0.1
    assert any("+20.0 (" in line for line in recipe_table([base, better]))


def test_an_image_under_several_seeds_counts_once():
    """Its repetitions narrow no interval."""
    one = compare_variants({BASE: [scores(70)], "light": [scores(90)]})[1]
    three = compare_variants({BASE: [scores(70)] * 3, "light": [scores(90)] * 3})[1]
    assert dataclasses.replace(three, seconds=one.seconds) == one


@pytest.mark.parametrize("values", [{"seeds": 0}, {"ingredients": ()}])
def test_options_that_compare_nothing_are_refused(values: dict[str, object]):
    with pytest.raises(ConfigError, match="expected"):
        RecipeOptions(**values)  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_is_scored_on_its_test_split_and_on_other_images(shared_ray: None, drawn_images: str, tmp_path: Path):
    config = RunConfig(
        data=drawn_images, storage=str(tmp_path), name="run", eval_data=(f"again={drawn_images}",), image_size=32,
        batch_size=16, weights="none", num_workers="0", head=HeadConfig(dense=()), phase1=PhaseConfig(epochs=1),
        phase2=PhaseConfig(epochs=0), skip_checks=True,
    )  # fmt: skip
    found = run_scored(add_ingredients(config, ["light", "blur-noise", "erase"]), time.time())
    result = storage.read_json(f"{tmp_path}/run/result.json")
    # of the same images elsewhere, those of the training are left out
    assert {name: len(table) for name, table in found.hits.items()} == {"test": result["test_images"], "again": 20}
    assert found.hits["test"]["hit"].mean() == pytest.approx(result["test_accuracy"])
    assert found.hits["test"]["image"].notna().all()
    assert found.seconds > 0
