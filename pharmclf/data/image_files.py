"""Finds the images below a folder or prefix, among files of systems and tools and results of runs."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.core.units import format_examples
from pharmclf.data.demo import MARKER
from pharmclf.data.image_decoding import IMAGE_EXTENSIONS

_HIDDEN = (".", "__MACOSX")
_SYSTEM_NAMES = frozenset(
    {
        # Windows
        "$recycle.bin", "recycler", "recycled", "system volume information", "config.msi", "msocache", "$winreagent",
        "$sysreset", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "albumartsmall.jpg",
        # macOS and Linux
        "lost+found", "network trash folder", "temporary items", "thevolumesettingsfolder", "icon\r", "desktop db",
        "desktop df",
        # network storage: Synology, QNAP, NetApp, Buffalo, Asustor
        "@eadir", "@tmp", "@sharebin", "@synoresource", "@recycle", "@recently-snapshot", "@transcode", "#recycle",
        "#snapshot", "~snapshot", "trashbox", "recycle bin", "synoindex_media_info",
        # photo tools: Capture One, Nikon, Canon, Picasa, file managers
        "captureone", "nksc_param", "zbthumbnail.info", "picasa.ini", "_thumbs", "_thumbnails",
        # programs and experiments
        "__pycache__", "node_modules", "site-packages", "mlruns", "wandb", "lightning_logs",
    }
)  # fmt: skip
"""Names of files and folders, in lower case, that are never labels."""
_SYSTEM_NAME = re.compile(
    r"found\.\d{3}"  # chkdsk
    r"|.*\.(lrdata|lrcat-data|cocatalog)"  # previews of Lightroom, catalogues of Capture One
    r"|albumart_\{.*\}.*\.jpg|synophoto_thumb_.*"
    r"|segmentation(class|object)(png|npy|visualization)?"  # masks of Pascal VOC: labelme, CVAT
    r"|task-\d+-annotation-\d+-by-\d+-tag-.*"  # masks of Label Studio
)
_MASK = re.compile(r"(.+)[_-]masks?([_-]?\d+)?")
_UNREAD_EXTENSIONS = frozenset(
    {
        ".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcm", ".dcr", ".dng", ".erf", ".exr",
        ".fff", ".iiq", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".kdc",
        ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pbm", ".pcx", ".pef", ".pgm", ".pnm", ".ppm",
        ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".svg", ".tga",
        ".wdp", ".x3f", ".xcf",
    }
)  # fmt: skip
"""Extensions of images in unsupported formats."""
_MANIFEST = re.compile(r"(?:(.*)/)?manifests/[0-9a-f]{32}\.parquet")
_TOOL_FILE = re.compile(r".+/pyvenv\.cfg|.*_json/label_viz\.png", re.DOTALL)  # Python environments, labelme's exports
_SHOWN = 5


@dataclass(frozen=True)
class ImageFiles:
    """The images of a listing."""

    images: list[storage.FileEntry]
    """By location; one with `unreadable` is not read, but has a row in quarantine or predictions."""
    notes: list[str]
    """Files that were left out, one line for each kind."""
    left_out: frozenset[str]
    """Folders of results and tools, relative to the root."""


def relative_path(root: str, location: str) -> str:
    """The part of a location below a folder or prefix."""
    return location.removeprefix(f"{root.rstrip('/')}/")


def is_system_file(relative: str) -> bool:
    """Whether a path below the data is hidden, or has a part that is named like files of a system or a tool."""
    return any(part.startswith(_HIDDEN) or _is_tool_name(part) for part in relative.split("/"))


def _is_tool_name(part: str) -> bool:
    name = part.casefold()
    return name in _SYSTEM_NAMES or _SYSTEM_NAME.fullmatch(name) is not None


def find_images(root: str, results: str = "") -> ImageFiles:
    """List the images below a folder or prefix.

    Args:
        root: an absolute path or a URI.
        results: the storage of runs, which is not listed; "": only recognized results are left out.

    Raises:
        OSError: nothing there, unreadable, or the storage does not answer.
    """
    entries = storage.list_entries(root, lambda folder: folder != root and is_system_file(relative_path(root, folder)))
    places = {relative_path(root, entry.location): entry for entry in entries}
    if results:
        results = results.rstrip("/") if storage.is_remote(results) else os.path.abspath(results)
    given = relative_path(root, results) if results.startswith(f"{root.rstrip('/')}/") else ""
    homes = _results_folders(places, given)
    tools = {place.rpartition("/")[0] for place in places if _TOOL_FILE.fullmatch(place)}
    stems = {_stem(place) for place in places if _extension(place) in IMAGE_EXTENSIONS}
    images, skipped = list[storage.FileEntry](), _SkippedFiles(homes={given} - {""})  # reported also before it exists
    for place, entry in places.items():
        extension = _extension(place)
        if place == MARKER:  # of the demo
            continue
        if (home := _enclosing_folder(place, homes)) is not None:
            skipped.homes.add(home)
        elif any(part.startswith(_HIDDEN) for part in place.split("/")):
            skipped.hidden += 1
        elif (tool := _enclosing_folder(place, tools)) is not None:
            skipped.tools[tool] += 1
        elif name := next(filter(_is_tool_name, place.split("/")), ""):
            skipped.tools[name] += 1
        elif extension not in IMAGE_EXTENSIONS | _UNREAD_EXTENSIONS:
            if entry.unreadable:
                skipped.odd.append(f"{place} ({entry.unreadable})")
            else:
                skipped.others[extension or "without extension"] += 1
        elif (mask := _MASK.fullmatch(_stem(place))) and mask[1] in stems:
            skipped.masks += 1
        elif extension in IMAGE_EXTENSIONS or entry.unreadable:
            images.append(entry)
        elif _stem(place) in stems:
            skipped.twins[extension] += 1
        else:
            reason = f"format {extension} is not read: convert it to .jpg or .png"
            images.append(dataclasses.replace(entry, unreadable=reason))
    return ImageFiles(images, skipped.notes(), frozenset({*homes, *tools}))


def _extension(place: str) -> str:
    return os.path.splitext(place)[1].lower()


def _stem(place: str) -> str:
    """A path without its extension, in lower case."""
    return os.path.splitext(place)[0].casefold()


def _enclosing_folder(place: str, folders: Collection[str]) -> str | None:
    """The outermost of some folders that contains a path; "" is the root."""
    if "" in folders:
        return ""
    end = place.find("/") if folders else -1
    while end >= 0:
        if place[:end] in folders:
            return place[:end]
        end = place.find("/", end + 1)
    return None


def _results_folders(places: Collection[str], given: str) -> set[str]:
    """Folders of runs, sweeps, evaluations or the demo; "" where it is the root."""
    homes = {given} - {""}
    for place in places:
        folder, _, name = place.rpartition("/")
        if match := _MANIFEST.fullmatch(place):  # of a storage; a root has no name
            homes.add(match[1] or "manifests")
        is_run = name in ("run.json", "sweep.json") and (folder or "manifest.parquet" in places)
        is_evaluation = name == "confusion_matrix.png" and f"{folder}/metrics.json" in places
        is_demo = name == MARKER and folder.rpartition("/")[2].startswith("demo-data-")
        if is_run or (folder and (is_evaluation or is_demo)):
            homes.add(folder)
    return homes


@dataclass
class _SkippedFiles:
    """Files that were left out of a listing."""

    homes: set[str]
    tools: Counter[str] = dataclasses.field(default_factory=Counter)
    others: Counter[str] = dataclasses.field(default_factory=Counter)
    twins: Counter[str] = dataclasses.field(default_factory=Counter)
    odd: list[str] = dataclasses.field(default_factory=list)
    hidden: int = 0
    masks: int = 0

    def notes(self) -> list[str]:
        """One line for each kind; without the number of results, which grows with every run."""
        counts = {
            "hidden": self.hidden,
            f"of systems and tools ({_format_counts(self.tools)})": self.tools.total(),
            f"of other types ({_format_counts(self.others)})": self.others.total(),
            f"each next to the same image in a format that is read ({_format_counts(self.twins)})": self.twins.total(),
            "masks of images next to them": self.masks,
        }
        notes = [f"files not read, {what}: {count}" for what, count in counts.items() if count]
        if self.homes:
            homes = sorted(f"{home or '.'}/" for home in self.homes)
            notes.append(f"results of runs, left out: {format_examples(homes)}")
        if self.odd:
            notes.append(f"left out: {format_examples(self.odd)}")
        return notes


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(10))
