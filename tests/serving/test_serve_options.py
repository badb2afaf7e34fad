"""The flags of the server: models by name, limits, replicas, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.commands.serve import PARSER
from pharmclf.config import ConfigError
from pharmclf.serving.options import TOKEN_VARIABLE, Limits, ServeOptions, digest


def test_a_model_is_called_by_its_folder_or_by_the_name_that_it_is_given():
    options = ServeOptions(model=("runs/tablets", "boxes=s3://bucket/a=b/model", "best/", "other.keras"))
    assert options.models == {
        "tablets": "runs/tablets",
        "boxes": "s3://bucket/a=b/model",
        "best": "best/",
        "other": "other.keras",
    }
    assert ServeOptions(model=("runs/tablets/model/model.keras",)).models == {
        "tablets": "runs/tablets/model/model.keras"
    }


def test_both_ways_to_give_several_models_are_one():
    """A second --model adds to the first, and never replaces it in silence."""
    assert PARSER.parse(["--model", "a=x", "b=y"]) == PARSER.parse(["--model", "a=x", "--model", "b=y"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": ()}, "--model: received nothing"),
        ({"model": ("runs/a", "other/a")}, "the name 'a' twice"),
        ({"model": ("a=",)}, "without a location"),
        ({"model": ("https://example.org/a",)}, "no folder or bucket"),
        ({"replicas": "4-1"}, "MIN-MAX"),
        ({"replicas": "0"}, "MIN-MAX"),
        ({"port": 0}, "1 to 65535"),
        ({"max_images": 0}, "above 0"),
        ({"max_bytes": "20"}, "--max-bytes"),
        ({"max_seconds": "soon"}, "--max-seconds"),
        ({"no_token": True, "token_file": "f"}, "one of them"),
    ],
)
def test_what_cannot_be_served_is_bad_input(given: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        ServeOptions(**{"model": ("runs/a",), **given})


def test_limits_and_replicas_are_read_with_their_units():
    options = ServeOptions(model=("a",), max_bytes="1.5MB", max_seconds="2m", max_images=3, max_megapixels=0.5)
    assert options.limits == Limits(bytes=1_500_000, seconds=120, images=3, megapixels=0.5)
    ranges = [ServeOptions(model=("a",), replicas=text).replica_range for text in ("auto", "3", "1-4")]
    assert ranges == [None, (3, 3), (1, 4)]


def test_a_token_is_read_from_its_file_then_from_its_variable_and_else_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A new one each time; what replicas get of it is its digest."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    made = [ServeOptions(model=("a",)).find_token() for _ in range(2)]
    assert all(is_new and len(token) >= 32 for token, is_new in made)
    assert made[0] != made[1]
    monkeypatch.setenv(TOKEN_VARIABLE, "v" * 16)
    (tmp_path / "token").write_text("f" * 16 + "\n")
    assert ServeOptions(model=("a",)).find_token() == ("v" * 16, False)
    assert ServeOptions(model=("a",), token_file=str(tmp_path / "token")).find_token() == ("f" * 16, False)
    assert ServeOptions(model=("a",), no_token=True).find_token() == ("", False)
    assert digest("") == ""
    assert "f" * 16 not in digest("f" * 16)


def test_a_token_that_is_short_or_not_there_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match="16 or more"):
        ServeOptions(model=("a",)).find_token()
    with pytest.raises(ConfigError, match="No such file"):
        ServeOptions(model=("a",), token_file=str(tmp_path / "none")).find_token()
