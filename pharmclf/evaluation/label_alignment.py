"""Compares a data set with what a model knows: its classes, and the images that it was trained on."""

from __future__ import annotations

import dataclasses
import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_count, format_examples
from pharmclf.data.leakage import keep_splits
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE
from pharmclf.training.context import known_labels

_NAMED = 20
"""Labels that a line names; the rest is counted."""
_ALIKE = 0.8
"""Similarity (difflib's ratio, 0..1) from which a known label is suggested for an unknown one."""


@dataclass(frozen=True, kw_only=True)
class LabelMatch:
    """Which labels of a set are classes of the model; only equal ones are, the nearest to another is suggested."""

    known: tuple[str, ...]
    """Classes of the model that the set has images of, in the model's order; at least one."""
    unknown: dict[str, int]
    """Labels of the set that are no class of the model -> images, most images first; these cannot be scored."""
    lacking: tuple[str, ...]
    """Classes of the model that the set has no image of, in the model's order."""
    suggestions: dict[str, str]
    """Unknown label -> the class that it may mean; of the first labels only."""

    def notes(self) -> list[str]:
        """Lines for the user on unknown and missing labels; none where the labels are those of the model."""
        lines = []
        if self.unknown:
            named = [_unknown_label_note(label, count, self.suggestions) for label, count in self.unknown.items()]
            listed = format_examples(named, _NAMED)
            total, labels = sum(self.unknown.values()), len(self.unknown)
            lines.append(
                f"{total:,} {'image is' if total == 1 else 'images are'} left out: the model does not know "
                f"{'the label' if labels == 1 else f'{labels:,} labels'} {listed}"
            )
        if self.lacking:
            total = len(self.known) + len(self.lacking)
            lines.append(
                f"no image of {len(self.lacking):,} of the model's {total:,} classes: "
                f"{format_examples(self.lacking, _NAMED)}"
            )
        return lines


def align_labels(counts: Mapping[str, int], known: Sequence[str]) -> LabelMatch:
    """Compare the labels of a set with the classes of a model.

    Args:
        counts: label -> images of the set.
        known: the classes of the model, in the order of its outputs.

    Raises:
        ConfigError: the model knows none of the labels.
    """
    classes = set(known)
    present = {label for label, count in counts.items() if count}
    unknown = {label: counts[label] for label in sorted(present - classes, key=lambda name: (-counts[name], name))}
    by_normalized = {_normalize_label(name): name for name in reversed(known)}
    nearest = {label: _nearest(_normalize_label(label), by_normalized) for label in list(unknown)[:_NAMED]}
    suggestions = {label: name for label, name in nearest.items() if name}
    if not present & classes:
        named = [_unknown_label_note(label, count, suggestions) for label, count in unknown.items()]
        received = format_examples(named, _NAMED) or "none"
        raise ConfigError(
            f"labels: received {received}, expected some of the model's {len(known):,} classes: "
            f"{format_examples(known, _NAMED)}. Name the folders (or the column `label`) after the classes, or give "
            "another model"
        )
    return LabelMatch(
        known=tuple(name for name in known if name in present),
        unknown=unknown,
        lacking=tuple(name for name in known if name not in present),
        suggestions=suggestions,
    )


def adapt_to_model(config: RunConfig, manifest: Manifest) -> Manifest:
    """Keep the splits of the run whose model a run starts from, and note what the model knows; else nothing changes.

    Args:
        config: the run, with the location of the model as `init_from`.
        manifest: with splits.
    """
    if not config.init_from:
        return manifest
    notes = [compare_labels(known_labels(config.init_from), manifest.class_names)]
    source = storage.join(storage.parent(storage.parent(config.init_from)), MANIFEST_FILE)
    if storage.is_file(source):
        manifest = keep_splits(manifest, Manifest.read(source))
    else:
        notes.append("the images that this model was trained on are not known: scores on copies of them are too high")
    return dataclasses.replace(manifest, notes=[*manifest.notes, *notes])


def compare_labels(known: Sequence[str], class_names: Sequence[str]) -> str:
    """What the model that a run starts from knows of the run's classes, in words."""
    new, gone = (
        [name for name in one if name not in other] for one, other in ((class_names, known), (known, class_names))
    )
    text = f"starts from a model that knows {len(class_names) - len(new)} of {format_count(len(class_names), 'class')}"
    text += f"; new: {format_examples(new)}" if new else ""
    return text + (f"; it also knows {format_examples(gone)}" if gone else "")


def _nearest(label: str, classes: Mapping[str, str]) -> str | None:
    """The class with the same normalized label, or else one with a similar spelling."""
    near = [label] if label in classes else difflib.get_close_matches(label, classes, n=1, cutoff=_ALIKE)
    return classes[near[0]] if near else None


def _normalize_label(label: str) -> str:
    """A label without case, spaces and punctuation, which people write inconsistently."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(character for character in text if character.isalnum()) or text


def _unknown_label_note(label: str, count: int, suggestions: Mapping[str, str]) -> str:
    near = suggestions.get(label)
    return f"{label} ({count:,}; did you mean {near}?)" if near else f"{label} ({count:,})"
