"""Decides which folder of a data set is the label, and which is a split. Pure.

Where two readings make sense, an error names both, and the setting that chooses.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_count, format_examples
from pharmclf.data.splits import SPLITS, TEST, TRAIN, VALIDATION

Folder = tuple[str, ...]
"""The folders above an image, the outermost first."""
_SPLIT_NAMES = {
    "train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST,
    "testing": TEST,
}  # fmt: skip
_NO_LABEL = re.compile(
    r"front|back|rear|sides?|top|bottom|left|right|obverse|reverse|recto|verso|avers|revers|front ?side|back ?side"
    r"|vorne|hinten|oben|unten|vorderseite|rückseite|rueckseite|devant|derrière|delante|atrás"
    r"|side[ _-]?[ab\d]"
    r"|(view|angle|pose|position|cam|camera|kamera|batch|lot|charge|session|shoot|series|day|week|tray)[ _-]?\d+"
    r"|\d{4}[-_.]\d{2}([-_.]\d{2})?"  # dates; digits alone may be numbers of products
    r"|imgs?|images?|photos?|pic(s|tures?)|bilder|fotos?|jpe?gs?|pngs?|raw|originals?|crops?|cropped|resized"
    r"|(pre)?processed|aug|augmented|augmentations?"
)
"""Names of folders that say how, when or from where an image was taken, and are never labels."""
_SHOWN = 3
_MAX_SPLITS = 6  # names of folders of splits in a message


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How the folders of a data set are read."""

    label_level: int = 0
    """As in `RunConfig`."""
    keep_splits: bool = True
    """Whether images keep the splits that their folders name."""
    results: str = ""
    """The storage of runs, which is not listed; "": none."""
    classes: tuple[str, ...] = ()
    """Classes of a model: the innermost folder with such a name is the label. Empty: unknown."""
    loose_label: str = ""
    """Label of images in no folder; "": they are not read."""


DEFAULT_LAYOUT_OPTIONS = LayoutOptions()
"""Labels and splits are detected, without a model or a storage."""


@dataclass(frozen=True)
class FolderLayout:
    """Labels and splits of folders."""

    labels: dict[Folder, str]
    """Of each folder with a label."""
    splits: dict[Folder, str]
    """Of each folder with a label: "train", "validation", "test", or "" where none is given."""
    notes: list[str]
    """Messages for the user, one line each."""


def label_key(label: str) -> str:
    """A form of a label that ignores case, blanks and Unicode form."""
    plain = " ".join(unicodedata.normalize("NFC", label).split())
    return unicodedata.normalize("NFC", plain.casefold())


def parse_folders(data: str, counts: Mapping[Folder, int], reading: LayoutOptions) -> FolderLayout:
    """Find label and split of the folders that hold images.

    Args:
        data: as the user gave it, for messages.
        counts: folders -> images in each; none is empty.
        reading: how they are read.

    Raises:
        ConfigError: two readings make sense, or no folder has the requested level.
    """
    rests, splits, notes = _extract_splits(data, counts, reading)
    if reading.classes:
        known = _classes_by_key(reading.classes)
        places = {folder: _known_label_level(rest, known) for folder, rest in rests.items()}
    elif reading.label_level:
        places = _label_levels(data, rests, reading.label_level)
    else:
        places, more = _find_label_levels(data, rests)
        notes += more
    labels = {folder: rests[folder][place] for folder, place in places.items()}
    return FolderLayout(labels, {folder: splits[folder] for folder in labels}, notes)


def merge_labels(labels: Sequence[str], classes: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Merge labels that differ only in case, blanks or Unicode form.

    Args:
        labels: of all images.
        classes: of a model, whose names are used.

    Returns:
        old label -> new label, for those that change; and a note.
    """
    forms = defaultdict[str, Counter[str]](Counter)
    for label, count in Counter(labels).items():
        forms[label_key(label)][label] += count
    known, changed, merged = _classes_by_key(classes), dict[str, str](), []
    for key, form_counts in sorted(forms.items()):
        if key in known:
            name = known[key]
        elif len(form_counts) == 1:
            continue
        else:
            most_common = min(form_counts, key=lambda form: (-form_counts[form], form))
            name = " ".join(unicodedata.normalize("NFC", most_common).split())
        others = [form for form in sorted(form_counts) if form != name and form not in classes]
        changed |= dict.fromkeys(others, name)
        merged += [f"{name} (also {', '.join(_disambiguate(form, name) for form in others)})"] if others else []
    if not merged:
        return {}, []
    return changed, [f"labels that differ in case, blanks or Unicode form only are one: {format_examples(merged)}"]


def _disambiguate(form: str, name: str) -> str:
    """A form of a label, with escapes where it looks like the name."""
    if unicodedata.normalize("NFC", form) == name:
        return ascii(form)
    return repr(form) if form != " ".join(form.split()) else form


def _classes_by_key(classes: Sequence[str]) -> dict[str, str]:
    """Key -> class, for keys of only one class."""
    counts = Counter(map(label_key, classes))
    return {key: name for name in classes if counts[key := label_key(name)] == 1}


def _known_label_level(names: Folder, known: Mapping[str, str]) -> int:
    """Index of the innermost folder with the name of a class, else of the innermost that may be a label."""
    levels = (place for place in reversed(range(len(names))) if label_key(names[place]) in known)
    return next(levels, _possible_label_levels(names)[-1])


def _extract_splits(
    data: str, counts: Mapping[Folder, int], reading: LayoutOptions
) -> tuple[dict[Folder, Folder], dict[Folder, str], list[str]]:
    """Folders without the names of splits, the split of each, and notes; folders without another name are left out."""
    plain = {folder: folder for folder in counts}, dict.fromkeys(counts, ""), list[str]()
    cuts = {folder: place for folder in counts if (place := _split_level(folder)) is not None}
    kinds = {_split_of(folder, place) for folder, place in cuts.items()}
    rests = {folder: folder[:place] + folder[place + 1 :] for folder, place in cuts.items()}
    if len(kinds) < 2 or (reading.label_level and not any(rests.values())):
        return plain
    named = {folder[place]: SPLITS.index(_split_of(folder, place)) for folder, place in cuts.items()}
    names = ", ".join(sorted(named, key=lambda name: (named[name], name))[:_MAX_SPLITS])
    if not any(rests.values()):
        if len(cuts) < len(counts):  # products among folders that are named like splits
            return plain
        raise ConfigError(
            f"--data {data}: the folders {names} are named like splits, and hold images without class folders. "
            "Expected train/<class>/<image>.jpg; give a list of path and label, or --label-level -1 if they are labels"
        )
    rests = {folder: rests.get(folder, folder) for folder in counts}
    rests = {folder: rest for folder, rest in rests.items() if rest}
    splits = {folder: _split_of(folder, cuts[folder]) if folder in cuts else "" for folder in rests}
    totals = Counter[str]()
    for folder, split in splits.items():
        totals[split] += counts[folder]
    given = [split for split in SPLITS if totals[split]]
    if not reading.keep_splits or len(given) < 2:
        return rests, dict.fromkeys(rests, ""), [f"the folders {names} are splits and no labels; they are not kept"]
    listed = ", ".join(f"{totals[split]:,} {split}" for split in given)
    notes = [f"the splits are those of the folders {names}: {listed}; --split.ignore-folders draws them"]
    if totals[""]:
        notes.append(f"in no folder of a split, so that theirs is drawn: {format_count(totals[''], 'image')}")
    return rests, splits, notes


def _split_level(folder: Folder) -> int | None:
    """Index of the outermost folder that is named like a split."""
    return next((place for place, name in enumerate(folder) if name.strip().casefold() in _SPLIT_NAMES), None)


def _split_of(folder: Folder, place: int) -> str:
    return _SPLIT_NAMES[folder[place].strip().casefold()]


def _label_levels(data: str, rests: Mapping[Folder, Folder], level: int) -> dict[Folder, int]:
    """Index of the label in each folder that has such a level."""
    levels = {
        folder: level - 1 if level > 0 else len(rest) + level
        for folder, rest in rests.items()
        if len(rest) >= abs(level)
    }
    if not levels:
        deepest = max(map(len, rests.values()), default=0)
        raise ConfigError(
            f"--data {data}: received --label-level {level}, and no image lies below so many folders. Expected at most "
            f"{deepest} (folders of splits do not count)"
        )
    return levels


def _find_label_levels(data: str, rests: Mapping[Folder, Folder]) -> tuple[dict[Folder, int], list[str]]:
    """Index of the label in each folder, and notes; refuse folders of which two readings make sense."""
    first = _common_prefix_length(rests.values())
    levels = {folder: _possible_label_levels(rest, first) for folder, rest in rests.items()}
    names = {folder: tuple(label_key(rests[folder][place]) for place in places) for folder, places in levels.items()}
    shared = _common_prefix_length(names.values())
    inner = {folder: places[-1] for folder, places in levels.items()}
    outer = {folder: places[shared] for folder, places in levels.items()}
    parents = defaultdict[str, set[Folder]](set)
    for path in names.values():
        parents[path[-1]].add(path[:-1])
    paths = set(names.values())
    repeated = [path for path in paths if len(parents[path[-1]]) > 1]
    depths = {len(path) for path in paths}
    if len(depths) == 1:
        if depths == {shared + 1}:  # only class folders, below folders that all images share
            return inner, _nested_label_note(rests, inner)
        upper = {folder: places[-2] for folder, places in levels.items()}
        if 2 * len(repeated) >= len(paths):
            raise _ambiguity_error(data, rests, inner, upper)
        level = _level_setting(rests, inner)
        return inner, [
            f"the label is the folder that holds the images{level}: {_format_paths(rests, inner)}; the folders above "
            f"are not used: {_format_paths(rests, upper)}",
            *_repeated_label_note(repeated, rests, inner),
            *_nested_label_note(rests, inner),
        ]
    if any(path[shared] != path[-1] for path in paths):
        raise _ambiguity_error(data, rests, inner, outer)
    return inner, _nested_label_note(rests, inner)


def _possible_label_levels(names: Folder, first: int = 0) -> list[int]:
    """Indexes from `first` on of the folders that may be labels; all where none may."""
    places = range(first, len(names))
    return [place for place in places if not _NO_LABEL.fullmatch(label_key(names[place]))] or list(places)


def _common_prefix_length(paths: Iterable[Folder]) -> int:
    """Number of leading folders that all paths share, without the last folder of any."""
    levels = zip(*(path[:-1] for path in paths), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, levels))


def _nested_label_note(rests: Mapping[Folder, Folder], places: Mapping[Folder, int]) -> list[str]:
    """A note where the label is not the folder that holds the images."""
    below = {rests[folder][-1] for folder, place in places.items() if place < len(rests[folder]) - 1}
    if not below:
        return []
    above = format_examples(sorted(below), _SHOWN)
    return [
        f"the label is the folder above {above}{_level_setting(rests, places)}: {_format_paths(rests, places)}; "
        "--label-level -1 makes it the folder that holds the images"
    ]


def _repeated_label_note(
    paths: list[Folder], rests: Mapping[Folder, Folder], places: Mapping[Folder, int]
) -> list[str]:
    names = {path[-1] for path in paths}
    labels = {rests[folder][place] for folder, place in places.items() if label_key(rests[folder][place]) in names}
    return (
        [f"labels whose images lie below several folders: {format_examples(sorted(labels), _SHOWN)}"] if labels else []
    )


def _ambiguity_error(
    data: str, rests: Mapping[Folder, Folder], inner: Mapping[Folder, int], outer: Mapping[Folder, int]
) -> ConfigError:
    readings = [f"{_format_paths(rests, places)}{_level_setting(rests, places, ' with ')}" for places in (outer, inner)]
    return ConfigError(
        f"--data {data}: the folders can be read in two ways: the labels are {readings[0]}, or {readings[1]}. Give the "
        "--label-level that is meant, or a list with path and label where it is neither"
    )


def _level_setting(rests: Mapping[Folder, Folder], places: Mapping[Folder, int], word: str = ", ") -> str:
    """The setting that chooses these labels; "" where no single number does."""
    from_top = {place + 1 for place in places.values()}
    from_image = {place - len(rests[folder]) for folder, place in places.items()}
    for levels in (from_top, from_image):
        if len(levels) == 1:
            return f"{word}--label-level {levels.pop()}"
    return ""


def _format_paths(rests: Mapping[Folder, Folder], places: Mapping[Folder, int]) -> str:
    return format_examples(sorted({rests[folder][place] for folder, place in places.items()}), _SHOWN)
