"""The work itself: the missing parts are predicted in one stream, and each is written when its images are through."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pharmclf import storage
from pharmclf.core.console import Say, show_activity
from pharmclf.core.terminal import Result
from pharmclf.core.units import format_count
from pharmclf.core.usual_times import LOAD_MODEL_S
from pharmclf.data.image_set import ImageSet
from pharmclf.distributed.cluster import connect, usable_nodes
from pharmclf.distributed.ray_address import requested_address
from pharmclf.evaluation.metrics import Estimate, proportion_difference, wilson_interval
from pharmclf.evaluation.predict import predict_stream
from pharmclf.evaluation.predictor import PredictSpec
from pharmclf.inference.interruptible import interruptible
from pharmclf.inference.options import PredictOptions
from pharmclf.inference.output_shards import OutputShards
from pharmclf.inference.output_table import SCHEMA, TopKOutput
from pharmclf.inference.placement import plan_actors, should_use_ray
from pharmclf.models.devices import count_local_gpus
from pharmclf.progress import image_progress

_SHOWN = 20  # bad images that are named on the console


def missing_shards(parts: OutputShards, say: Say) -> list[int]:
    """Numbers of the parts that do not stand; those of other tables are deleted."""
    there, others = parts.existing()
    for name in others:
        storage.delete_file(storage.join(parts.folder, name))
    if others:
        say(f"deleted: {len(others)} parts of another model, threshold, part size or state of the images")
    if there:
        say(f"{len(there)} of {len(parts)} parts exist already")
    return [number for number, name in enumerate(parts.names) if name not in there]


def assign_workers(what: PredictSpec, options: PredictOptions, num_images: int) -> PredictSpec:
    """Choose who predicts, and join or start Ray where it does.

    Raises:
        ConfigError: the cluster lacks the requested resources, or may not be joined.
    """
    on_cluster = bool(requested_address())
    gpus = count_local_gpus() if options.accelerator != "cpu" else 0
    if not should_use_ray(options.num_workers, options.accelerator, num_images, on_cluster=on_cluster, gpus_here=gpus):
        return what
    connect(allow_open=options.allow_unauthenticated_cluster)
    return dataclasses.replace(what, actors=plan_actors(usable_nodes(), options.num_workers, options.accelerator))


def predict_shards(
    what: PredictSpec,
    answers: TopKOutput,
    parts: OutputShards,
    missing: Sequence[int],
    stopped: Callable[[], bool],
    say: Say,
    white_level: int,
) -> None:
    """Predict and write parts, until all are written or a stop is requested.

    Args:
        answers: what `what.columns` is.
        missing: numbers of those that are to be written.
        white_level: of files of 16 bits, as the model was trained with.
    """
    spans = [parts.span(number) for number in missing]
    paths = pa.concat_arrays([parts.images.paths.slice(first, last - first) for first, last in spans])
    given = parts.images.unreadable
    reasons = np.array([given.get(place, "") for first, last in spans for place in range(first, last)], object)
    read = pa.array(np.where(reasons == "", paths.to_numpy(zero_copy_only=False), ""), pa.string()) if given else paths
    by = f"{what.actors} processes on Ray" if what.actors else "this process"
    say(f"predicting {format_count(len(paths), 'image')} in {by}")
    progress = image_progress("predicting")
    waiting, done, written = SCHEMA.empty_table(), 0, 0
    stream = interruptible(stopped, predict_stream(what, ImageSet.of_paths(read, white_level)))
    with show_activity("loading the model", LOAD_MODEL_S) as loading, contextlib.closing(stream) as blocks:
        for block in blocks:
            loading.begin("")
            bad = block["bad"].astype(object)
            known = reasons[done : done + len(bad)]
            bad = np.where(known == "", bad, known)
            here = paths.slice(done, len(bad))
            table = answers.table(here, block, bad)
            waiting, done = pa.concat_tables([waiting, table]), done + len(bad)
            progress(done, len(paths))
            while written < len(missing) and len(waiting) >= (size := spans[written][1] - spans[written][0]):
                parts.write(missing[written], waiting.slice(0, size).combine_chunks())
                waiting, written = waiting.slice(size), written + 1


@dataclass
class PredictionSummary:
    """What a whole table says, added up part by part."""

    num_images: int = 0
    num_abstained: int = 0
    num_unknown: int = 0
    num_bad: int = 0
    shown: list[str] = field(default_factory=list)
    """The first bad images, with their reasons."""

    def add(self, table: pa.Table) -> None:
        """Count a part."""
        bad = table.filter(pc.is_valid(table["error"])).select(["path", "error"]).to_pylist()
        self.num_images += len(table)
        self.num_bad += len(bad)
        self.num_abstained += pc.sum(table["abstain"]).as_py() or 0
        self.num_unknown += pc.sum(table["unknown"]).as_py() or 0
        self.shown += [f"{row['path']}: {row['error']}" for row in bad[: _SHOWN - len(self.shown)]]

    def summary_line(
        self, output: str, threshold: float | None, usual: Estimate | None, unknown: Estimate | None, say: Say
    ) -> None:
        """Say it, and whether the images look unlike those that the model knows.

        Args:
            threshold: least confidence of an answer; None: nothing abstains.
            usual: share of the validation images that it answers; None: not known for this threshold.
            unknown: share of the validation images that it calls unknown; None: it has no limit for that.
        """
        for line in self.shown:
            say(f"bad image: {line}")
        if self.num_bad > len(self.shown):
            say(f"bad images: and {self.num_bad - len(self.shown):,} more, see the column error")
        good = self.num_images - self.num_bad
        if threshold is not None and threshold > 1:
            say(f"all {good:,} images are for a person: the model answers nothing by itself")
        elif threshold is not None:
            left = self.num_abstained - self.num_bad
            share = left / max(good, 1)
            strangers = f"{self.num_unknown:,} unlike the training images, " if unknown else ""
            unsure = f"{left - self.num_unknown:,} below the confidence {threshold:.4f}"
            say(f"{left:,} of {good:,} images ({share:.1%}) are for a person: {strangers}{unsure}")
            strange = wilson_interval(self.num_unknown, good) if good else None
            signs = []
            if usual and good and proportion_difference(usual, wilson_interval(good - left, good)).high < 0:
                signs.append(f"answers {1 - share:.1%} of these images, and {usual.value:.1%} of its validation images")
            if unknown and strange and proportion_difference(unknown, strange).low > 0:
                more = f"calls {strange.value:.1%} of these images unknown, and {unknown.value:.1%} of"
                signs.append(f"{more} {'those' if signs else 'its validation images'}")
            if signs:
                say(
                    f"warning: the model {'; it '.join(signs)}: they look unlike those, so that more of its answers "
                    "may be wrong. Test it on some that people have named: pharmclf evaluate"
                )
        say(Result(f"{format_count(self.num_images, 'image')}, {self.num_bad:,} of them bad; written to {output}"))
