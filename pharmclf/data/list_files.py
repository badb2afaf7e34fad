"""Finds the files of a list, also where its paths come from another system or lack file extensions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pharmclf import storage
from pharmclf.core.errors import ConfigError, single_line
from pharmclf.core.units import format_examples
from pharmclf.data.image_decoding import IMAGE_EXTENSIONS

_MAX_SHOWN, _MAX_CHARACTERS = 5, 200


@contextlib.contextmanager
def refusing_unreadable(flag: str, given: str, root: str) -> Iterator[None]:
    """Raise a ConfigError where the block cannot list the images of a folder or list, unless the storage is down.

    Args:
        flag: of the location.
        given: by the user.
        root: the same, absolute.
    """
    try:
        yield
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        reason = single_line(error).removeprefix(f"{root}: ")
        reason = "nothing there" if reason == root else reason
        raise ConfigError(f"{flag} {given}: {reason}. Give a readable {storage.place_word(given)} or list") from error


def locate_files(
    source: str, folder: str, paths: Sequence[str]
) -> tuple[list[str], dict[str, tuple[int, int]], list[str]]:
    r"""Find the files of a list.

    A missing path is tried with / instead of \, and where it has no extension, with those of images.

    Args:
        source: the flag and its value, for messages.
        folder: of the list.
        paths: (n,) of the list.

    Returns:
        (n,) locations; size in bytes and time of change in nanoseconds of those that exist; notes.

    Raises:
        ConfigError: a path without an extension that fits several images.
    """
    location_of = {path: resolve_path(folder, path) for path in dict.fromkeys(paths)}
    known, notes = stat_files(location_of.values()), []
    slashed = {
        path: resolve_path(folder, path.replace("\\", "/"))
        for path, location in location_of.items()
        if "\\" in path and location not in known
    }
    known |= stat_files(slashed.values())
    slashed = {path: location for path, location in slashed.items() if location in known or not _has_ending(path)}
    if slashed:
        location_of |= slashed
        notes.append(f"paths with \\ between folders, read as /: {len(slashed)}")
    bare = {path: location for path, location in location_of.items() if location not in known and not _has_ending(path)}
    ended = _with_endings(source, set(bare.values()), known)
    if ended:
        known |= stat_files(ended.values())
        location_of |= {path: ended[location] for path, location in bare.items() if location in ended}
        kinds = sorted({os.path.splitext(location)[1] for location in ended.values()})
        notes.append(f"paths without an ending, found as {', '.join(kinds)}: {len(ended)}")
    return [location_of[path] for path in paths], known, notes


def not_found_message(folder: str, paths: Sequence[str]) -> str:
    """The message for a list none of whose files exists: what was tried, what exists, and the remedy."""
    first = paths[0][:_MAX_CHARACTERS]
    tried = list(dict.fromkeys([resolve_path(folder, first), resolve_path(folder, first.replace("\\", "/"))]))
    text = f"none of its {len(set(paths))} paths leads to a file. The first is {first!r}, looked for as {tried[0]}"
    text += f" and {tried[1]}" if len(tried) > 1 else ""
    text += "" if _has_ending(first) else ", and with the ending of an image"
    if not storage.is_remote(tried[-1]):
        parent = os.path.dirname(tried[-1])
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(parent))
            text += f"; {parent} holds {format_examples(names, _MAX_SHOWN) or 'nothing'}"
        bases = [os.getcwd(), folder, *map(str, Path(folder).parents)] if not os.path.isabs(first) else []
        fits = next((base for base in bases if os.path.isfile(os.path.join(base, first.replace("\\", "/")))), None)
        text += f"; below {fits} it is there" if fits else ""
    return f"{text}. Write paths relative to the list's folder {folder}, or absolute ones"


def resolve_path(folder: str, path: str) -> str:
    """The location of a path of a list: absolute, or relative to the list's folder."""
    path = path.removeprefix("file://")
    if storage.is_remote(path):
        return path
    if storage.is_remote(folder) and not path.startswith("/"):
        bucket = _bucket(folder)
        return bucket + os.path.normpath(storage.join(folder.removeprefix(bucket), path))
    return os.path.normpath(os.path.join(folder, path))


def _bucket(location: str) -> str:
    return "/".join(location.split("/", 3)[:3])


def stat_files(locations: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Size and time of the files that exist; remote ones by one listing per bucket."""
    known, buckets = {}, dict[str, list[str]]()
    for location in locations:
        if storage.is_remote(location):
            buckets.setdefault(_bucket(location), []).append(location)
        elif os.path.isfile(location):
            known[location] = ((status := os.stat(location)).st_size, status.st_mtime_ns)
    for bucket, remote in buckets.items():
        common = os.path.commonpath([path.removeprefix(bucket).rpartition("/")[0] or "/" for path in remote])
        with contextlib.suppress(FileNotFoundError):
            entries = storage.list_files(storage.join(bucket, common))
            known |= {entry.location: (entry.size_bytes, entry.mtime_ns) for entry in entries}
    return known


def _has_ending(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def _with_endings(source: str, bare: set[str], known: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Locations without an extension -> the images of that name."""
    existing = [location for location in known if storage.is_remote(location)]
    for folder in {storage.parent(location) for location in bare if not storage.is_remote(location)}:
        with contextlib.suppress(OSError):
            existing += [storage.join(folder, name) for name in os.listdir(folder)]
    images: dict[str, str] = {}
    for location in sorted(existing):
        stem = os.path.splitext(location)[0]
        if stem in bare and _has_ending(location):
            if stem in images:
                raise ConfigError(f"{source}: {stem} has no ending, and both {images[stem]} and {location} are there. "
                                  "Write paths with their endings")  # fmt: skip
            images[stem] = location
    return images
