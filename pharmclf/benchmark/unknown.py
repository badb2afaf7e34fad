"""Benchmark of unknown products: models that have not seen some of the products, and what they make of these.

Each way to measure strangeness takes part in the decision as the one of a run does: its limit is set on the validation
images, so that few answers are lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.benchmark.measure import Report, UnknownOptions
from pharmclf.benchmark.pharmclf_run import local_runs, run_to_end
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.subprocess_call import run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE, cached_manifest, manifest_cache
from pharmclf.data.ray_loader import load_images
from pharmclf.evaluation.abstention_policy import fit_policy
from pharmclf.evaluation.datasets import EvalDataset, split_dataset, unknown_datasets
from pharmclf.evaluation.metrics import Estimate, proportion
from pharmclf.evaluation.scoring import predict_datasets
from pharmclf.evaluation.strangeness import fit_strangeness, sample_training_rows
from pharmclf.training.context import MODEL_FILE

KNOWN, NEAR, FAR = "known", "look-alikes left out", "others left out"
LEFT_OUT, CONFIDENCE = "left-out", "confidence"
NEIGHBOUR = 5
_BATCH = 64
_VIM_SHARE = 2  # of the channels, one in so many spans the principal space of ViM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model gives for n images of a set."""

    labels: NDArray[np.str_]
    groups: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    """(n, classes)."""
    logits: NDArray[np.float32]
    """(n, classes)."""
    block: NDArray[np.float32]
    """(n, channels) the mean over all places of what enters the last block."""
    pooled: NDArray[np.float32]
    """(n, channels)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnknownRow:
    """One way to decide, on one kind of images, over all models."""

    method: str
    images: str
    num_images: int
    answered: Estimate
    """Share of the images that are answered."""
    auroc: float | None
    """Of telling these images from known ones by the score alone, the mean of the models; None: they are known."""


def benchmark_unknown(config: RunConfig, options: UnknownOptions, say: Say) -> Report:
    """Train without some of the products, several times, and show the models all of them.

    Args:
        config: of the runs; sets of `unknown` are shown too.

    Returns:
        rows: fields of UnknownRow.
    """
    found: list[dict[str, Outputs]] = []
    with local_runs(config) as base:
        manifest = cached_manifest(base.data, manifest_cache(base.storage))
        for number, products in enumerate(options.parts(manifest.class_names)):
            lists = write_lists(manifest, products, Path(base.storage), number)
            strangers = (*base.unknown, f"{LEFT_OUT}={lists[1]}")
            run = dataclasses.replace(base, name=f"run-{number}", data=str(lists[0]), unknown=strangers)
            found.append(run_in_subprocess(partial(run_outputs, run)))
            right = found[-1]["test"].probabilities.argmax(axis=1) == class_numbers(found[-1], "test")
            say(f"without {', '.join(products)}: test accuracy {right.mean():.3f}")
    rows = compare_methods(found, options.near, config.target_error_share)
    for line in unknown_table(rows):
        say(line)
    return {
        "backbone": config.backbone, "image_size": config.image_size, "target_error": config.target_error_share,
        "left_out": list(options.parts(manifest.class_names)), "near": list(options.near),
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip


def write_lists(manifest: Manifest, products: Sequence[str], folder: Path, number: int) -> tuple[Path, Path]:
    """Write the lists of the images of all but some products, and of these."""
    rows = manifest.ok[["path", "label", "group"]]
    is_out, lists = rows["label"].isin(products), (folder / f"known-{number}.csv", folder / f"left-out-{number}.csv")
    for part, location in zip((rows[~is_out], rows[is_out]), lists, strict=True):
        part.to_csv(location, index=False)
    return lists


def run_outputs(config: RunConfig) -> dict[str, Outputs]:
    """Train and test a run, in the process of the caller -> what its model gives for each set, and for `train`.

    Raises:
        RunError: the run failed.
    """
    folder = run_to_end(config)
    manifest = Manifest.read(storage.join(folder, MANIFEST_FILE))
    sample = dataclasses.replace(split_dataset(manifest, "train", config.data), rows=sample_training_rows(manifest))
    sets = [sample, *(split_dataset(manifest, split, config.data) for split in ("validation", "test"))]
    sets += unknown_datasets(config, manifest)
    model = storage.join(folder, MODEL_FILE)
    located = predict_datasets([model], sets, config.image_size, manifest.locator_size, actors=0, gpus=True)
    return {part.images.name: _outputs(model, part.images, config.image_size) for part in located}


def _outputs(location: str, images: EvalDataset, image_size: int) -> Outputs:
    import keras

    from pharmclf.models.backbones import CLASSIFIER, inner_model, read_model
    from pharmclf.models.head import compared_tensors

    classifier = inner_model(read_model(location), CLASSIFIER)
    block, pooled = compared_tensors(classifier)
    logits = classifier.get_layer("head")(pooled)
    model = keras.Model(classifier.inputs[0], [classifier.outputs[0], logits, block, pooled])
    parts = []
    for first in range(0, len(images.rows), _BATCH):
        pixels, _ = load_images(images.files.slice(first, _BATCH), image_size)
        parts.append([np.asarray(part) for part in model(pixels.astype(np.float32))])
    probabilities, scores, before, features = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Outputs(
        labels=np.array(images.labels), groups=images.groups.astype(np.int64),
        probabilities=probabilities, logits=scores, block=before, pooled=features,
    )  # fmt: skip


def class_numbers(sets: Mapping[str, Outputs], name: str) -> NDArray[np.int64]:
    """(n,) class numbers of a set of known products."""
    return np.searchsorted(np.unique(sets["train"].labels), sets[name].labels)


def method_scores(sets: Mapping[str, Outputs]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Method -> set -> (n,) strangeness; pure."""
    classes = class_numbers(sets, "train")
    block, pooled = ({name: _unit(getattr(each, part)) for name, each in sets.items()} for part in ("block", "pooled"))
    top = {name: each.logits.max(axis=1, keepdims=True).astype(np.float64) for name, each in sets.items()}
    energy = {
        name: -(top[name][:, 0] + np.log(np.exp(each.logits - top[name]).sum(axis=1))) for name, each in sets.items()
    }
    nearest = {name: 1 - np.sort(part @ pooled["train"].T, axis=1)[:, -NEIGHBOUR] for name, part in pooled.items()}

    def mahalanobis(*tensors: Mapping[str, np.ndarray], of: np.ndarray = classes) -> dict[str, NDArray[np.float64]]:
        fitted = fit_strangeness([part["train"] for part in tensors], of, [part["validation"] for part in tensors])
        if fitted is None:
            raise ValueError("too few images to fit a distance")
        return {name: fitted([part[name] for part in tensors]) for name in sets}

    last, all_in_one = mahalanobis(pooled), mahalanobis(pooled, of=np.zeros_like(classes))
    return {
        CONFIDENCE: {name: -each.probabilities.max(axis=1).astype(np.float64) for name, each in sets.items()},
        "energy": energy,
        f"distance to neighbour {NEIGHBOUR}": nearest,
        "Mahalanobis, pooled": last,
        "relative Mahalanobis": {name: last[name] - all_in_one[name] for name in sets},
        "ViM": _virtual_logit(sets, energy),
        "pharmclf: Mahalanobis, two tensors": mahalanobis(block, pooled),
    }


def _unit(rows: np.ndarray) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float64)


def _virtual_logit(
    sets: Mapping[str, Outputs], energy: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Virtual-logit matching (Wang et al. 2022): what of the features is outside their principal space, with energy."""
    pooled = {name: each.pooled.astype(np.float64) for name, each in sets.items()}
    centre = pooled["train"].mean(axis=0)
    train = pooled["train"] - centre
    outside = np.linalg.eigh(train.T @ train)[1][:, : train.shape[1] // _VIM_SHARE]
    lengths = {name: np.linalg.norm((part - centre) @ outside, axis=1) for name, part in pooled.items()}
    factor = sets["train"].logits.max(axis=1).mean() / lengths["train"].mean()
    return {name: lengths[name] * factor + energy[name] for name in sets}


def kinds_of_images(sets: Mapping[str, Outputs], near: Sequence[str]) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Kind of images -> the set that has them, and their places in it; pure."""
    looks_alike = np.isin(sets[LEFT_OUT].labels, list(near))
    kinds = {KNOWN: ("test", np.arange(len(sets["test"].labels)))}
    kinds |= {NEAR: (LEFT_OUT, np.flatnonzero(looks_alike)), FAR: (LEFT_OUT, np.flatnonzero(~looks_alike))}
    others = [name for name in sets if name not in ("train", "validation", "test", LEFT_OUT)]
    kinds |= {name: (name, np.arange(len(sets[name].labels))) for name in others}
    return {kind: place for kind, place in kinds.items() if len(place[1])}


def compare_methods(found: Sequence[Mapping[str, Outputs]], near: Sequence[str], max_error: float) -> list[UnknownRow]:
    """A row for each method and kind of images, over all models; pure.

    Args:
        found: outputs of each model.
        near: products that look like others.
        max_error: share of wrong answers for which thresholds are chosen.
    """
    from sklearn.metrics import roc_auc_score

    answers: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for number, sets in enumerate(found):
        validation, truth = sets["validation"], class_numbers(sets, "validation")
        for method, scores in method_scores(sets).items():
            uses = method != CONFIDENCE
            limit_on = scores["validation"] if uses else None
            policy = fit_policy(validation.probabilities, truth, validation.groups, max_error, limit_on)
            for kind, (name, rows) in kinds_of_images(sets, near).items():
                images, strangeness = sets[name], scores[name][rows]
                confidence = policy.calibrated(images.probabilities[rows]).max(axis=1)
                part = {
                    "answered": policy.accepts(confidence, strangeness if uses else None),
                    "group": [f"{number}/{group}" for group in images.groups[rows]],
                    "auroc": roc_auc_score(
                        np.repeat([0, 1], [len(scores["test"]), len(rows)]), np.append(scores["test"], strangeness)
                    ),
                }
                answers.setdefault((method, kind), []).append(pd.DataFrame(part))
    return [
        UnknownRow(
            method=method,
            images=kind,
            num_images=sum(map(len, parts)),
            answered=proportion(*(pd.concat(parts)[name].to_numpy() for name in ("answered", "group"))),
            auroc=None if kind == KNOWN else float(np.mean([part["auroc"].iloc[0] for part in parts])),
        )
        for (method, kind), parts in answers.items()
    ]


def unknown_table(rows: Sequence[UnknownRow]) -> list[str]:
    """The comparison as lines of text; pure."""
    cells = [["", "shown", "images", "answered (95 %)", "AUROC"]]
    for row in rows:
        auroc = "" if row.auroc is None else f"{row.auroc:.3f}"
        cells.append([row.method, row.images, f"{row.num_images:,}", str(row.answered), auroc])
    return align_columns(cells, left=[0, 1])
