"""Every file names version 1 of its schema; a file without a version is read as version 1, a later one is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.run_folders import complete_run, incomplete_run

from pharmclf.config import ConfigError
from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.abstention_policy import read_policy
from pharmclf.feature_cache.shards import read_index
from pharmclf.runs.record import read_record
from pharmclf.runs.status_reader import list_status
from pharmclf.schema_version import load_record
from pharmclf.training.checkpoint import read_checkpoint
from pharmclf.tuning.sweep_start import inspect_sweep_folder

REFUSAL = r": received schema_version 2, expected 1\. Read it with the version of pharmclf that wrote it"
READERS: dict[str, Callable[[Path], Any]] = {
    "run.json": lambda path: read_record(str(path.parent)),
    "result.json": lambda path: load_record(str(path)),
    "checkpoint.json": lambda path: read_checkpoint(str(path.parent)),
    "index.json": lambda path: read_index(str(path.parent)),
    "decision.json": lambda path: read_policy(str(path)),
    "sweep.json": lambda path: inspect_sweep_folder(str(path.parent), print, overwrite=False),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_later_version_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    """The message has the file, what it holds, what is expected, and the remedy; nothing else of it is looked at."""
    path = tmp_path / name
    path.write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(ConfigError, match=rf"{path.parent}(/{name})?{REFUSAL}"):
        READERS[name](path)


def test_a_manifest_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Its version is in the metadata of the table."""
    location = f"{incomplete_run(str(tmp_path), 'run', [(1, 0, 0.5, 1.0)])}/manifest.parquet"
    table = pq.read_table(location)
    about = json.loads(table.schema.metadata[b"pharmclf.manifest"])
    for version, key in ((2, "schema_version"), (None, "schema_version")):
        changed = {**about, key: version} if version else {k: v for k, v in about.items() if k != key}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({b"pharmclf.manifest": json.dumps(changed).encode()}), sink)
        Path(location).write_bytes(sink.getvalue())
        if version:
            with pytest.raises(ConfigError, match=rf"manifest\.parquet{REFUSAL}"):
                Manifest.read(location)
        else:
            assert Manifest.read(location).class_names == ("one", "two")


def test_a_run_of_a_later_version_does_not_hide_the_others(tmp_path: Path) -> None:
    """The list of runs shows it as unreadable, with the reason."""
    for name in ("a", "b"):
        complete_run(str(tmp_path), name, [(1, 0, 0.5, 1.0)])
    path = tmp_path / "b" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    one, other = list_status(str(tmp_path))
    assert (one.state, other.state) == ("complete", "unreadable")
    assert "received schema_version 2, expected 1" in other.reason
