"""A missing private part of another package is reported with the version found, those that work, and the remedy."""

from __future__ import annotations

import importlib.metadata

import pytest

from pharmclf.core.compat import KNOWN_VERSIONS, IncompatibleVersionError, private_parts


def test_a_missing_module_or_name_is_an_incompatible_version():
    with pytest.raises(IncompatibleVersionError, match=r"No module named 'json\.nothing'"), private_parts("ray"):
        import json.nothing  # type: ignore[import-not-found] # noqa: F401
    with pytest.raises(IncompatibleVersionError, match="cannot import name 'nothing'"), private_parts("ray"):
        from json import nothing  # type: ignore[attr-defined] # noqa: F401
    with pytest.raises(IncompatibleVersionError, match="has no attribute '_nothing'"), private_parts("keras"):
        _ = object()._nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", KNOWN_VERSIONS)
def test_the_message_names_what_is_installed_what_works_and_the_remedy(package: str):
    text = str(IncompatibleVersionError(package, "it has no door"))
    newest = KNOWN_VERSIONS[package][-1]
    assert text.startswith(f"{package}: received version {importlib.metadata.version(package)}, expected")
    assert ", ".join(KNOWN_VERSIONS[package]) in text
    assert text.endswith(f"it has no door. Run pip install '{package}=={newest}'")


def test_other_errors_pass():
    with pytest.raises(KeyError), private_parts("ray"):
        raise KeyError("x")
