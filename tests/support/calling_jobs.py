"""Calls jobs in this process, as their command lines do."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("jobs/*.py"), ROOT / "tune" / "sweep.py"])


def main_of(program: str) -> Callable[[], int]:
    """The main function of a program, such as jobs/train.py."""
    name = f"program_{Path(program).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / program)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    main: Callable[[], int] = sys.modules[name].main
    return main


def call_job(program: str, *arguments: str) -> str:
    """Call a program with a command line -> what it prints; its exit code must be 0."""
    main, printed = main_of(program), io.StringIO()
    with mock.patch.object(sys, "argv", [program, *arguments]), contextlib.redirect_stdout(printed):
        try:
            code = main()
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    assert code == 0, printed.getvalue()
    return printed.getvalue()
