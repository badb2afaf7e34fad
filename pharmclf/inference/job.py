"""Prediction at scale: images -> parts -> one table; after a kill the same command predicts the missing parts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_OK, ConfigError
from pharmclf.core.signals import GracefulShutdown
from pharmclf.core.timeouts import FINAL_STORAGE_S
from pharmclf.core.units import format_count
from pharmclf.data.destination import check_destination
from pharmclf.data.image_set import ImageSet
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.evaluation.drift import Appearance, describe_drift
from pharmclf.evaluation.predictor import PredictSpec
from pharmclf.evaluation.saved_model import SavedModel, load_model_info
from pharmclf.inference.batch_predict import PredictionSummary, assign_workers, missing_shards, predict_shards
from pharmclf.inference.image_listing import ImageListing, list_images
from pharmclf.inference.options import PredictOptions
from pharmclf.inference.output_shards import OutputShards
from pharmclf.inference.output_table import TopKOutput
from pharmclf.inference.tolerant_reader import read_images
from pharmclf.reporting.image_sample import SAMPLED_IMAGES, evenly_spaced_indices, load_upright
from pharmclf.storage.lease import Lease, LeaseHeldError


def predict_images(options: PredictOptions, say: Say) -> int:
    """Predict images, or resume the prediction, or report that it is complete.

    Returns:
        The exit code: 0, or 130 and 143 after a signal.

    Raises:
        ConfigError: bad input; nothing has been predicted or changed.
        StorageUnavailableError, PermissionError: the storage gives or takes nothing; the parts that are done stay.
        CorruptedShardError: a part is not what was written.
    """
    check_destination("--output", storage.absolute(options.output))
    model = load_model_info(options.model)
    if model.verdict and model.verdict.warning:
        say(model.verdict.warning)
    answers = _build_output(model, options.threshold, say)
    parts = _build_shards(model, answers, options, say)
    complete = _is_complete(parts, options)  # another table is refused before anything is written
    if not complete or storage.exists(parts.folder):
        with GracefulShutdown() as stop, _output_lock(parts) as lease:
            complete = _is_complete(parts, options)  # by another process, which has ended since
            if not complete and not _predict_and_join(parts, model, answers, options, stop, lease, say):
                say("stopped on request; finished parts are kept, and the same command predicts the rest")
                return stop.exit_code
            storage.delete_folder(parts.folder)  # while no other process can begin to write there
    if complete:
        images = format_count(len(parts.images), "image")
        say(f"{parts.output} is complete already, {images}; --overwrite predicts them again")
    return EXIT_OK


def _build_output(model: SavedModel, threshold: float | None, say: Say) -> TopKOutput:
    decision = model.decision
    if threshold is None and decision is None:
        say("note: the model came without decision.json, so that it never abstains; --threshold gives it a confidence")
    elif threshold is None and decision is not None:
        threshold = decision.threshold
        if threshold > 1:
            say(
                "note: the model answers nothing by itself: on its validation images no confidence gave at most "
                f"{decision.max_error:.2%} wrong answers; --threshold gives it one"
            )
        elif not decision.assured:
            say(
                f"note: the model's threshold {threshold:.4f} is a best guess: its validation images could not assure "
                f"that at most {decision.max_error:.2%} of its answers are wrong"
            )
    return TopKOutput(labels=model.labels, decision=decision, threshold=threshold, strangeness=model.strangeness)


def _build_shards(model: SavedModel, answers: TopKOutput, options: PredictOptions, say: Say) -> OutputShards:
    images = list_images(options.input)
    for note in images.notes:
        say(f"note: {note}")
    output = storage.absolute(options.output)
    about = {
        "model": model.sha256,
        "labels": list(model.labels),
        "image_size": model.image_size,
        "temperature": model.decision.temperature if model.decision else None,
        "threshold": answers.threshold,
        "sets": dataclasses.asdict(model.decision.sets) if model.decision and model.decision.sets else None,
        "unknown": dataclasses.asdict(model.decision.unknown) if model.decision and model.decision.unknown else None,
        **({} if model.white_level == MAX_VALUE else {"white_level": model.white_level}),
    }
    return OutputShards(output=output, images=images, size=options.part_size, about=about)


def _is_complete(parts: OutputShards, options: PredictOptions) -> bool:
    return not options.overwrite and parts.is_complete()


@contextlib.contextmanager
def _output_lock(parts: OutputShards) -> Iterator[Lease]:
    """Hold the lease of an output; a folder without parts goes with it."""
    try:
        lease = Lease.acquire(parts.folder)
    except LeaseHeldError as error:
        raise ConfigError(f"--output: {error}. Wait for it, or give another --output") from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"--output {parts.output}: {error}. Give a place that can be written to") from error
    try:
        yield lease
    finally:
        lease.release()
        with contextlib.suppress(OSError), storage.timeout(FINAL_STORAGE_S):
            if not any(parts.existing()):
                storage.delete_folder(parts.folder)


def _predict_and_join(
    parts: OutputShards,
    model: SavedModel,
    answers: TopKOutput,
    options: PredictOptions,
    stop: GracefulShutdown,
    lease: Lease,
    say: Say,
) -> bool:
    """Predict the missing parts and join all -> True; False if a stop was requested first."""

    def stopped() -> bool:
        return stop.received is not None or bool(lease.is_lost)

    missing = missing_shards(parts, say)
    if missing:
        what = PredictSpec(
            models=(model.location,),
            image_size=model.image_size,
            locator_size=model.locator_size,
            with_features=answers.strangeness is not None,
            read=read_images,
            columns=answers,
            gpus=options.accelerator != "cpu",
        )
        num_images = sum(last - first for first, last in map(parts.span, missing))
        what = assign_workers(what, options, num_images)
        predict_shards(what, answers, parts, missing, stopped, say, model.white_level)
    lease.check()
    if stop.received is not None:
        return False
    summary = PredictionSummary()
    parts.join(summary.add)
    decision = model.decision
    usual = decision.coverage if decision and answers.threshold == decision.threshold else None
    unknown = decision.unknown.share if decision and decision.unknown else None
    if decision and decision.appearance:
        _say_drift(decision.appearance, parts.images, model.white_level, say)
    summary.summary_line(parts.output, answers.threshold, usual, unknown, say)
    return True


def _say_drift(usual: Appearance, images: ImageListing, white_level: int, say: Say) -> None:
    """Say in what some of the images differ from those of the training."""
    some = images.paths.take(evenly_spaced_indices(len(images.paths), SAMPLED_IMAGES))
    here = Appearance.of_images(load_upright(ImageSet.of_paths(some, white_level)))
    for line in describe_drift(usual, here) if here else ():
        say(f"note: these images are {line}")
