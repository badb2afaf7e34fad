"""Texts that are compared with tests/contracts/goldens, and written there with --renew-goldens."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDENS = Path(__file__).with_name("goldens")


def check_golden(name: str, text: str, request: pytest.FixtureRequest) -> None:
    """Compare a text with its golden one, or renew that."""
    golden = GOLDENS / name
    if request.config.getoption("--renew-goldens"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"{golden} is missing; write it with --renew-goldens"
    assert text == golden.read_text(encoding="utf-8"), f"{golden} differs; if that is meant, use --renew-goldens"
