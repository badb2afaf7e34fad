"""Benchmark of the recipe: each ingredient of a training on top of the same base, and some of them together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pharmclf import storage
from pharmclf.benchmark.measure import Ingredient, RecipeOptions, Report
from pharmclf.benchmark.pharmclf_run import local_runs, run_to_end
from pharmclf.config import RunConfig, from_dict, to_dict
from pharmclf.core.console import Say
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE
from pharmclf.evaluation.metrics import Estimate, paired_difference, proportion

BASE = "base"
INGREDIENTS: dict[Ingredient, dict[str, dict[str, float | bool]]] = {
    "light": {"augment": {"brightness": 0.5, "contrast": 0.3, "color": 0.25}},
    "blur-noise": {"augment": {"blur": 0.01, "noise": 10.0}},
    "erase": {"augment": {"erase": 0.2}},
    "no-mirror": {"augment": {"horizontal_flip": False, "vertical_flip": False}},
}
"""Settings that each ingredient adds to those of the base."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a run got right on each set of images."""

    seconds: float
    hits: Mapping[str, pd.DataFrame]
    """By set: `hit` (whether the answer is right) and `image` (its group of near duplicates)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """One variant on one set of images, over all seeds."""

    variant: str
    dataset: str
    accuracy: Estimate
    difference: Estimate | None
    """From the base on the same images; None: it is the base."""
    seconds: float
    """Of one run, the mean."""


def benchmark_recipe(config: RunConfig, options: RecipeOptions, say: Say) -> Report:
    """Train the base, the base with each ingredient, and with all that are chosen together, with several seeds.

    Args:
        config: the base; sets of `eval_data` are compared besides the test split.

    Returns:
        rows: fields of RecipeRow.
    """
    with local_runs(config) as base:
        variants = {BASE: base} | {name: add_ingredients(base, [name]) for name in options.ingredients}
        if len(options.ingredients) > 1:
            variants[" + ".join(options.ingredients)] = add_ingredients(base, options.ingredients)
        scores: dict[str, list[Scores]] = {name: [] for name in variants}
        for seed in range(options.seeds):
            for number, (name, variant) in enumerate(variants.items()):
                run = dataclasses.replace(variant, name=f"run-{number}-{seed}", seed=config.seed + seed)
                scores[name].append(run_in_subprocess(partial(run_scored, run, time.time())))
                say(f"{name}, seed {run.seed}: {describe(scores[name][-1])}")
    rows = compare_variants(scores)
    for line in recipe_table(rows):
        say(line)
    return {
        "backbone": config.backbone, "image_size": config.image_size, "seeds": options.seeds,
        "ingredients": {name: INGREDIENTS[name] for name in options.ingredients},
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip


def add_ingredients(config: RunConfig, names: Sequence[Ingredient]) -> RunConfig:
    """A configuration with the settings of some ingredients."""
    settings: dict[str, Any] = to_dict(config)
    for name in names:
        for section, values in INGREDIENTS[name].items():
            settings[section] |= values
    return from_dict(settings)


def run_scored(config: RunConfig, began: float) -> Scores:
    """Train and test a run, in the process of the caller.

    Args:
        began: `time.time()` at the start of this process.

    Raises:
        RunError: the run failed.
    """
    folder = run_to_end(config)
    seconds, hits = time.time() - began, {}
    groups = Manifest.read(storage.join(folder, MANIFEST_FILE)).table["group"]
    for name in ("test", *config.eval_locations):
        table = pd.read_parquet(storage.join(folder, "evaluation", name, "predictions.parquet"))
        images = table["row"].map(groups) if name == "test" else table["path"]
        hits[name] = pd.DataFrame({"hit": table["label"] == table["predicted"], "image": images})
    return Scores(seconds=seconds, hits=hits)


def describe(scores: Scores) -> str:
    """The accuracies and the time of a run, in words."""
    shares = ", ".join(f"{name} {table['hit'].mean():.3f}" for name, table in scores.hits.items())
    return f"accuracy {shares}, {scores.seconds:.0f} s"


def compare_variants(scores: Mapping[str, Sequence[Scores]]) -> list[RecipeRow]:
    """A row for each variant and set of images; pure.

    The images of all seeds count together; the same image under several seeds counts as copies of one.
    """
    rows = []
    for name, runs in scores.items():
        for dataset in runs[0].hits:
            tables = [pd.concat([run.hits[dataset] for run in each]) for each in (scores[BASE], runs)]
            base, own = (table["hit"].to_numpy(bool) for table in tables)
            images = tables[1]["image"].to_numpy()
            rows.append(
                RecipeRow(
                    variant=name, dataset=dataset, accuracy=proportion(own, images),
                    difference=None if name == BASE else paired_difference(base, own, images),
                    seconds=float(np.mean([run.seconds for run in runs])),
                )
            )  # fmt: skip
    return rows


def recipe_table(rows: Sequence[RecipeRow]) -> list[str]:
    """The comparison as lines of text; pure."""
    cells = [["", "images", "accuracy (95 %)", "difference (95 %)", "seconds"]]
    for row in rows:
        text = ""
        if change := row.difference:
            text = f"{100 * change.value:+.1f} ({100 * change.low:.1f} to {100 * change.high:.1f}) points"
        cells.append([row.variant, row.dataset, str(row.accuracy), text, f"{row.seconds:.0f}"])
    return align_columns(cells, left=[0, 1])
