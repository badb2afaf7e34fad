"""Describes the model and the data of a run that is not trained."""

from __future__ import annotations

import tempfile

from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import EXIT_OK
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.prepare import split_manifest
from pharmclf.models.devices import configure_devices
from pharmclf.pipeline import describe_data
from pharmclf.progress import scan_progress


def dry_run(config: RunConfig, say: Say) -> int:
    """Describe the model and the data of a run without training; nothing is written.

    Raises:
        ConfigError: bad input.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        manifest = split_manifest(config, folder, scan_progress())
    with suppress_native_stderr():
        from pharmclf.models.model_summary import describe_model

        configure_devices(deterministic=False, gpus=False)
        say(describe_model(config, len(manifest.class_names)))
    describe_data(manifest, "", say)
    return EXIT_OK
