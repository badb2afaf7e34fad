"""Check of the images of a run as a node reaches them: a sample is read and decoded."""

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

_SAMPLE_SIZE = 16
_LISTS = (".csv", ".parquet")
_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class ImagesInfo:
    """The result of reading the sample on a node."""

    num_read: int
    seconds: float
    bad: tuple[tuple[str, str], ...] = ()
    """Images that were not decoded: location, reason."""
    unavailable: str = ""
    """Why the storage does not answer; the rest of the sample was not tried."""


def sample_locations(config: RunConfig) -> list[str]:
    """Locations of some images of a run; none where it draws them itself.

    Raises:
        ConfigError: the data cannot be read, or holds no image.
        StorageUnavailableError: the storage does not answer.
    """
    if config.data == DEMO:
        return []
    if config.data.lower().endswith(_LISTS):
        items = list_dataset(config.data).items
        return [item.location for item in items[:: max(1, len(items) // _SAMPLE_SIZE)]][:_SAMPLE_SIZE]
    try:
        root = storage.absolute(config.data).rstrip("/")
        locations = (entry.location for entry in storage.list_files(root))
        images = (location for location in locations if _is_image(relative_path(root, location)))
        sample = list(itertools.islice(images, _SAMPLE_SIZE))
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        reason = single_line(error)
        raise ConfigError(f"{reason}. Give --data a readable folder, s3:// prefix or list") from error
    if not sample:
        raise ConfigError(f"{config.data}: received no image. Expected <class>/<image>.jpg")
    return sample


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS and not is_system_file(path)


def probe_images(locations: Sequence[str]) -> ImagesInfo:
    """Read and decode images."""
    began, num_read, bad, unavailable = time.perf_counter(), 0, list[tuple[str, str]](), ""
    try:
        for location in locations:
            scan = scan_file(location)
            num_read += 1
            if scan.status != "ok":
                bad.append((location, scan.status))
    except storage.StorageUnavailableError as error:
        unavailable = str(error)
    return ImagesInfo(num_read=num_read, seconds=time.perf_counter() - began, bad=tuple(bad), unavailable=unavailable)


def check_images(info: ImagesInfo, data: str) -> Finding:
    """Whether a node can train on the images at `data`, as in RunConfig; pure."""
    if data == DEMO:
        return ok("data", "the demo draws its images itself")
    if info.unavailable:
        remedy = "make the storage of the images reachable from this node, as it is from the driver"
        return fail("data", f"{data}: {info.unavailable}", remedy)
    if not info.bad:
        return ok("data", f"{data}: {info.num_read} images read and decoded in {info.seconds:.1f} s")
    examples = "; ".join(f"{location.removeprefix(f'{data}/')}: {why}" for location, why in info.bad[:_NUM_EXAMPLES])
    text = f"{data}: {len(info.bad)} of {info.num_read} images cannot be used: {examples}"
    if len(info.bad) < info.num_read:
        return warn("data", text, "pharmclf prepare finds all bad images; a run leaves them out, up to --max-invalid")
    if all(why.startswith(NOT_READ) for _, why in info.bad):
        remedy = "the driver lists them and this node cannot read them: give --data an s3:// prefix, or a folder that "
        return fail("data", text, f"{remedy}all nodes mount, readable by the user of Ray")
    return fail("data", text, "look at the files: no file of the sample can be decoded as an image")
