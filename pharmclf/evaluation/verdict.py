"""What a model can be used for, and why not for more.

A model is good where it may answer by itself from its threshold. It is usable with review where a person must check
every answer. It is not usable where nothing shows that it has learnt to distinguish the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """What a model can be used for."""

    GOOD = "good"
    """Its answers, from its threshold."""
    REVIEW = "usable with review"
    """Proposals that a person checks."""
    NOT_USABLE = "not usable"
    """Nothing: its answers are not to be used."""

    @property
    def meaning(self) -> str:
        """What a user may do, as part of a sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    Level.GOOD: "its answers from its threshold can be used, a person gets the other images",
    Level.REVIEW: "a person must check every answer",
    Level.NOT_USABLE: "do not use its answers",
}

SEVERITY = {level: number for number, level in enumerate(Level)}
"""The higher, the less a model can be used for."""


class ReasonCode(StrEnum):
    """Kinds of reasons, in the order in which they are shown."""

    DIVERGED = "diverged"
    SAVED_MODEL_DIFFERS = "saved_model_differs"
    ONE_ANSWER = "one_answer"
    AT_CHANCE = "at_chance"
    TOO_FEW_TEST_IMAGES = "too_few_test_images"
    MOSTLY_WRONG = "mostly_wrong"
    THRESHOLD_CONTRADICTED = "threshold_contradicted"
    WEAK = "weak"
    SPLITS_DISAGREE = "splits_disagree"
    WORSE_ELSEWHERE = "worse_elsewhere"
    ANSWERS_UNKNOWN = "answers_unknown"
    LOOK_ALIKES = "look_alikes"
    NO_THRESHOLD = "no_threshold"
    THRESHOLD_NOT_ASSURED = "threshold_not_assured"
    FEW_TRAINING_IMAGES = "few_training_images"
    FEW_TEST_IMAGES = "few_test_images"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a model is not good."""

    code: ReasonCode
    level: Level
    """The best level that the model can have in spite of it."""
    text: str
    """What was found, one or two sentences."""
    remedy: str
    """What helps, a sentence."""
    classes: tuple[str, ...] = ()
    """Names of the classes that it is about; none: all."""


@dataclass(frozen=True)
class Verdict:
    """What a model can be used for, and why not for more."""

    reasons: tuple[Reason, ...] = ()
    """The most severe ones first; none: it is good."""

    @property
    def level(self) -> Level:
        """That of the most severe reason."""
        return max((reason.level for reason in self.reasons), key=SEVERITY.__getitem__, default=Level.GOOD)

    @property
    def warning(self) -> str:
        """A line for the user of a model that is not usable; "" of others."""
        return f"warning: {self.level}: {self.reasons[0].text}" if self.level is Level.NOT_USABLE else ""

    def to_dict(self) -> dict[str, Any]:
        """The keys of result.json, `verdict` and `warnings`."""
        return {
            "verdict": str(self.level),
            "warnings": [vars(reason) | {"classes": [*reason.classes]} for reason in self.reasons],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict | None:
        """The inverse of `to_dict`; None where the record is from before there were verdicts."""
        if "verdict" not in values:
            return None
        return cls(
            tuple(
                Reason(
                    code=ReasonCode(each["code"]),
                    level=Level(each["level"]),
                    text=each["text"],
                    remedy=each["remedy"],
                    classes=tuple(each["classes"]),
                )
                for each in values["warnings"]
            )
        )
