"""What settings hold as text, read: numbers of workers and rows, locations, named data sets."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pharmclf.core.errors import ConfigError

AUTO, WHOLE = "auto", "whole"
"""Words: found out at the start; a micro-batch that is a worker's whole share."""
_STORAGE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file", "memory")
FULL_SIZE = "full"
"""The size of the model among the sizes of a phase."""
_SIZE_STEP = 32  # halved five times by every backbone: so all its padding is the same at every size
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of a folder
_SPLIT_NAMES = ("train", "validation", "test", "folds")


def parse_workers(text: str, name: str = "num_workers") -> tuple[int, int]:
    """Read a number of workers: "2" -> (2, 2), "1-4" -> (1, 4), "0" -> (0, 0); "auto" -> (0, 0) until it is chosen.

    Raises:
        ConfigError: anything else.
    """
    if text == AUTO:
        return 0, 0
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if match:
        low, high = int(match[1]), int(match[2] or match[1])
        if low <= high and (low > 0 or high == 0):
            return low, high
    raise ConfigError(
        f"{name}: received {text!r}, expected auto, N, MIN-MAX or 0. "
        "Write 2 for two workers, 1-4 for as many as there are, 0 to train in this process, auto for what fits here"
    )


def parse_microbatch(text: str) -> int | None:
    """Read a number of rows: "whole" -> 0, "16" -> 16, "auto" -> None.

    Raises:
        ConfigError: anything else.
    """
    if text in (AUTO, WHOLE):
        return None if text == AUTO else 0
    if re.fullmatch(r"[1-9]\d{0,4}", text):
        return int(text)
    raise ConfigError(
        f"microbatch: received {text!r}, expected whole, auto or a number of images from 1 to 99999. "
        "Write 16 for at most 16 images on a device at once, auto to have the number found"
    )


def parse_image_sizes(text: str, epochs: int, name: str, model_size: int) -> tuple[int, ...]:
    """Read the image sizes of a phase: "128x10-full" with 14 epochs -> ten times 128, four times 224; "" -> none.

    No size is larger than the model's, so that a preset fits a smaller model too. Where all are the model's, there are
    none.

    Args:
        text: sizes in pixels or `full`, each with a number of epochs; those without one share the rest evenly, and
            where they are too many for that, the last of them.
        epochs: of the phase.
        name: of the setting, for errors.
        model_size: side of the model's input in pixels, the value of `full`; here 224.

    Raises:
        ConfigError: anything else, sizes that are no multiples of 32, or other epochs than the phase has.
    """
    if not text or not epochs:
        return ()
    parts = [re.fullmatch(rf"(\d+|{FULL_SIZE})(?:x([1-9]\d*))?", part.strip()) for part in text.split("-")]
    sizes = [(model_size if part[1] == FULL_SIZE else int(part[1]), int(part[2] or 0)) for part in parts if part]
    rest, open_parts = epochs - sum(count for _, count in sizes), sum(count == 0 for _, count in sizes)
    fits = rest > 0 if open_parts else rest == 0
    is_size = all(size == model_size or (size and size % _SIZE_STEP == 0) for size, _ in sizes)
    if len(sizes) < len(parts) or not fits or not is_size:
        raise ConfigError(
            f"{name}: received {text!r} for {epochs} epochs, expected sizes that are multiples of {_SIZE_STEP}, and "
            f"epochs that add up. Write 128x10-{FULL_SIZE} for 10 epochs at 128 pixels and the others at {model_size}"
        )
    found: list[int] = []
    for size, count in sizes:
        if not count and open_parts > rest:
            open_parts -= 1
            continue
        share = count or -(-rest // open_parts)  # the first take what does not divide evenly
        if not count:
            rest, open_parts = rest - share, open_parts - 1
        found += [min(size, model_size)] * share
    return tuple(found) if min(found) < model_size else ()


def check_image_sizes(text: str, epochs: int, name: str, model_size: int, *, is_last: bool) -> None:
    """Check the image sizes of a phase.

    Args:
        text, epochs, name, model_size: as in `parse_image_sizes`.
        is_last: no phase follows.

    Raises:
        ConfigError: as `parse_image_sizes`; a last phase that ends with another size than the model's.
    """
    sizes = parse_image_sizes(text, epochs, name, model_size)
    if sizes and is_last and sizes[-1] != model_size:
        raise ConfigError(
            f"{name}: received {text}, expected the model's image_size {model_size} in the last epoch. Write "
            f"{text}-{FULL_SIZE}, or change --image-size"
        )


def check_batch_word(source: str, text: str) -> None:
    """Check a batch size that is not a number: the word auto leaves it as it is, and asks for `microbatch: auto`.

    Args:
        source: the flag, or the file and key, that an error names.
        text: what the user wrote.

    Raises:
        ConfigError: another word.
    """
    if text != AUTO:
        raise ConfigError(
            f"{source}: received {text!r}, expected a number of images, or auto. auto leaves the global batch as "
            "it is, and finds how much of it a device computes at once"
        )


def refuse_auto(microbatch: str, who: str) -> None:
    """Refuse what only a run finds out.

    Raises:
        ConfigError: it would have to be found.
    """
    if microbatch == AUTO:
        raise ConfigError(
            f"microbatch: received auto, but {who} does not try what fits. Give --microbatch N, as a run has found it"
        )


def parse_data_sets(texts: Sequence[str], setting: str = "eval_data") -> dict[str, str]:
    """Read NAME=LOCATION entries of a setting -> name -> location, in the order given.

    Raises:
        ConfigError: an entry without a name or a location, a name that no folder can have or that stands there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, location = text.partition("=")
        if not re.fullmatch(_NAME, name) or not location:
            raise ConfigError(
                f"{setting}: received {text!r}, expected NAME=DIR or NAME=s3://…, the name of letters, digits, '.', "
                "'_' and '-'. It becomes a folder's name"
            )
        if name in found or name in _SPLIT_NAMES:
            raise ConfigError(f"{setting}: the name {name!r} is taken already. Give each set another name")
        check_location(setting, location)
        found[name] = location
    return found


def check_name(name: str) -> None:
    """Check the name of a run, which may be empty.

    Raises:
        ConfigError: a name that no folder can have.
    """
    if name and not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"name: received {name!r}, expected letters, digits, '.', '_' and '-'. It becomes a folder's name"
        )


def expand_home(text: str) -> str:
    """A path, or NAME=PATH, with the home folder in place of a ~ at the beginning of the path; other text unchanged."""
    match = re.fullmatch(r"([\w.-]+=)?(~.*)", text)
    return (match[1] or "") + os.path.expanduser(match[2]) if match else text


def has_credentials(location: str) -> bool:
    """Whether a URI names a user."""
    return re.match(r"[\w+.-]+://[^/]*@", location) is not None


def refuse_credentials(name: str, location: str) -> None:
    """Refuse a location with credentials in it: they would land in logs and in run.json.

    Raises:
        ConfigError: it has some.
    """
    if has_credentials(location):
        raise ConfigError(
            f"{name}: received a URI with credentials in it, expected s3://bucket/prefix. Give them by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
        )


def check_location(name: str, location: str) -> None:
    """Refuse a location that no storage has, such as the address of a web page, or one with credentials in it.

    Raises:
        ConfigError: it is one.
    """
    refuse_credentials(name, location)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if scheme and scheme[1].lower() not in _STORAGE_SCHEMES:
        raise ConfigError(
            f"{name}: received {location!r}, and {scheme[1]}:// is no folder or bucket. Download and unpack it, and "
            "give the folder, or give s3://bucket/prefix"
        )
