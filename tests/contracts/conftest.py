"""What the tests of contracts share."""

from __future__ import annotations

import importlib.util

import pytest
from old_folder import Continued, copy_old_folder


@pytest.fixture(scope="session")
def continued(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """Resume the run and the sweep of version 1, each with the command that began it."""
    folder = copy_old_folder(tmp_path_factory.mktemp("v1") / "copy")
    store = f"sqlite:///{folder.home}/mlflow.db" if importlib.util.find_spec("mlflow") else ""
    return Continued(folder, store, folder.resume_run(store), folder.resume_sweep(store))
