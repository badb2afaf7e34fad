"""Code, messages, help and Markdown are written in plain technical English: none of these words occurs."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"anew": "again, new",
    r"shall": "must, should",
    r"stands? (?:in|at|on|for|still|over|below|beside|by)|stood": "is, is stored, overrides",
    r"go(?:es|ing)? on|went on": "continues, resumes",
    r"told": "reported, sent, known",
    r"tells?": "reports, sends, says",
    r"within,": "inside the block",
    r"beside": "next to, besides",
    r"meanwhile": "while it runs",
    r"of (?:its|their|his|our) own": "separate, own",
    r"taken? for|takes? for": "considered",
    r"pictures?": "image, plot, figure",
    r"teams?": "worker group",
    r"members?": "head, run, trial",
    r"lifelines?|pulse|wish(?:es)?|ledgers?|couriers?|relays?|stor(?:y|ies) of|standing": "the field's word",
    r"come to|comes to|came to": "reached, result",
    r"under way": "running, current",
    r"whoever|thereby|therein": "plain words",
    r"whole (?:one|checkpoint|file|run)s?|none is whole|is whole": "intact, complete",
    r"activations?": "feature cache, cached features",
    r"patience": "timeout (except early stopping's patience)",
    r"nobody|no one": "plain words",
    r"last words": "stderr tail",
    r"asked for": "requested",
    r"may fare|fares": "may succeed",
    r"are there already|that is there|who (?:wants|asks|takes|tells|watches|handles)": "existing; the caller, the user",
}
"""Regular expression of a word or phrase -> what is written in its place."""

ALLOWED = re.compile(
    r"early_patience|plateau_patience|patience=|early stopping|activation (?:function|layer)|activations\.py"
    r"|\bactivation(?:=|_)|[\"']activation[\"']|--activations|benchmark(?:\.py)? activations|activations/"
    r"|\.activations|activations_dtype|[\"']activations?(?:_\w+)?[\"']",
    re.IGNORECASE,
)
"""Lines in which such a word is the field's own, or a name that files and command lines rely on."""

_WORD = re.compile("|".join(rf"(?<![\w-])(?:{word})(?![\w-])" for word in INSTEAD), re.IGNORECASE)


def prose(path: Path) -> list[tuple[int, str]]:
    """Lines of a file that people read: of Python its comments and strings, else all."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in kinds]
    return [
        (token.start[0] + offset, line) for token in tokens for offset, line in enumerate(token.string.splitlines())
    ]


def find_words(path: Path) -> list[str]:
    """Places in a file where a word of the list occurs, as file:line: word in the line."""
    found = []
    for number, line in prose(path):
        for match in _WORD.finditer(ALLOWED.sub("", line)):
            found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()!r} in {line.strip()!r}")
    return found


def files() -> list[Path]:
    """What is shipped and read."""
    names = ("pharmclf", "jobs", "tune", "cluster", ".github")
    suffixes = {".py", ".md", ".sh", ".yaml", ".html", ".j2"}
    found = [path for name in names for path in (ROOT / name).rglob("*") if path.suffix in suffixes]
    return [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted(found)]


@pytest.mark.parametrize("path", files(), ids=str)
def test_prose_has_no_word_of_the_list(path: Path) -> None:
    """Each place is named with the word; INSTEAD says what to write."""
    assert find_words(path) == []
