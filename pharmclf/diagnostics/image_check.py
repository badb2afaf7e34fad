"""The images of a run as a node reaches them: some are read and decoded."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.config import DEMO, RunConfig
from pharmclf.core.errors import ConfigError, single_line
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.image_decoding import IMAGE_EXTENSIONS
from pharmclf.data.image_files import is_system_file, relative_path
from pharmclf.data.scan import NOT_READ, scan_file
from pharmclf.diagnostics.results import Finding, fail, ok, warn

_SAMPLE = 16
_LISTS = (".csv", ".parquet")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ImagesInfo:
    """What became of the sample on a node."""

    num_read: int
    seconds: float
    bad: tuple[tuple[str, str], ...] = ()
    """Images that were not decoded: location, why."""
    unavailable: str = ""
    """Why the storage gave nothing; the rest of the sample was not tried then."""


def sample_locations(config: RunConfig) -> list[str]:
    """Locations of some images of a run; none where it draws them itself.

    Raises:
        ConfigError: there are none, or not where the configuration says.
        StorageUnavailableError: the storage does not answer.
    """
    if config.data == DEMO:
        return []
    if config.data.lower().endswith(_LISTS):
        items = list_dataset(config.data).items
        return [item.location for item in items[:: max(1, len(items) // _SAMPLE)]][:_SAMPLE]
    try:
        root = storage.absolute(config.data).rstrip("/")
        found = (entry.location for entry in storage.list_files(root) if _is_image(relative_path(root, entry.location)))
        sample = list(itertools.islice(found, _SAMPLE))
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        reason = single_line(error)
        raise ConfigError(f"{reason}. Give --data a readable folder, s3:// prefix or list") from error
    if not sample:
        raise ConfigError(f"{config.data}: no image in it. Expected <class>/<image>.jpg")
    return sample


def _is_image(relative: str) -> bool:
    return os.path.splitext(relative)[1].lower() in IMAGE_EXTENSIONS and not is_system_file(relative)


def probe_images(locations: Sequence[str]) -> ImagesInfo:
    """Read and decode images."""
    began, bad = time.perf_counter(), list[tuple[str, str]]()
    for number, location in enumerate(locations):
        try:
            scan = scan_file(location)
        except storage.StorageUnavailableError as error:
            seconds = time.perf_counter() - began
            return ImagesInfo(num_read=number, seconds=seconds, bad=tuple(bad), unavailable=str(error))
        if scan.status != "ok":
            bad.append((location, scan.status))
    return ImagesInfo(num_read=len(locations), seconds=time.perf_counter() - began, bad=tuple(bad))


def check_images(facts: ImagesInfo, data: str) -> Finding:
    """Whether a node can train on the images.

    Args:
        facts: of the node.
        data: where the images lie, as the configuration says.
    """
    if data == DEMO:
        return ok("data", "the demo draws its images itself")
    if facts.unavailable:
        remedy = "see that this node reaches the storage of the images as the driver does"
        return fail("data", f"{data}: {facts.unavailable}", remedy)
    if not facts.bad:
        return ok("data", f"{data}: {facts.num_read} images read and decoded in {facts.seconds:.1f} s")
    listed = "; ".join(f"{location.removeprefix(f'{data}/')}: {why}" for location, why in facts.bad[:_SHOWN])
    text = f"{data}: {len(facts.bad)} of {facts.num_read} images cannot be used: {listed}"
    if len(facts.bad) < facts.num_read:
        return warn("data", text, "jobs/prepare.py finds all bad images; a run leaves them out, up to --max-bad")
    if all(why.startswith(NOT_READ) for _, why in facts.bad):
        remedy = "the driver lists them and this node cannot read them: give --data an s3:// prefix, or a folder that "
        return fail("data", text, f"{remedy}all nodes mount, readable by the user of Ray")
    return fail("data", text, "look at the files: none of the sample is an image that can be decoded")
