"""index.html of a storage: what it lists, how little it reads at the end of a run, and that it fails no run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import complete_run, incomplete_run, write_record

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.reporting.index_page import IndexEntry
from pharmclf.runs.storage_index import renew_index, write_index

EPOCHS = [(1, 0, 0.8, 0.5), (1, 1, 0.9, 0.4)]


def finish(root: str, name: str, **result: Any) -> str:
    """A complete run with a report, whose result has an interval and more."""
    folder = complete_run(root, name, EPOCHS, test=0.9)
    record = storage.read_json(storage.join(folder, "result.json"))
    about = {"test_accuracy_interval": [0.85, 0.94], "test_images": 200}
    storage.write_json(storage.join(folder, "result.json"), record | about | result)
    storage.write_bytes(storage.join(folder, "report.html"), b"<p>report</p>")
    return folder


def entries(root: str) -> dict[str, IndexEntry]:
    content = storage.read_json(storage.join(root, "index.json"))
    return {values["name"]: IndexEntry.from_dict(values) for values in content["entries"]}


def page(root: str) -> str:
    return storage.read_bytes(storage.join(root, "index.html")).decode()


def test_the_index_lists_runs_and_sweeps_with_what_is_known_of_each(root: str) -> None:
    """State, score with interval, verdict, bytes of all files, and a link where there is a report; on disk and S3."""
    folder = finish(root, "tablets", verdict="usable with review")
    incomplete_run(root, "half", EPOCHS)
    trial = storage.join(write_record(root, "search/trials/0000", "trained"), "run.json")
    about = {"trial": {"number": 0, "state": "trained", "reason": "", "used": {}}}
    storage.write_json(trial, storage.read_json(trial) | about)
    sweep = {"state": "complete", "trials": 1, "winner": 0, "table": "", "settings": {}, "fingerprints": {}}
    result = {"test_accuracy": 0.7, "test_accuracy_interval": [0.6, 0.8], "test_images": 100}
    storage.write_json(storage.join(root, "search", "sweep.json"), sweep | {"result": result})
    storage.write_bytes(storage.join(root, "notes", "a.txt"), b"no run")
    assert write_index(root) == storage.join(root, "index.html")
    found = entries(root)
    assert {name: (entry.kind, entry.state) for name, entry in found.items()} == {
        "half": ("run", "interrupted"), "search": ("sweep", "complete"), "tablets": ("run", "complete"),
    }  # fmt: skip
    tablets = found["tablets"]
    assert tablets.size_bytes == sum(file.size_bytes for file in storage.list_files(folder))
    assert (str(tablets.test_accuracy), tablets.verdict) == ("0.900 (0.850-0.940)", "usable with review")
    assert (found["half"].test_accuracy, found["half"].val_accuracy) == (None, 0.9)
    assert found["search"].trials == (1, 1)
    assert re.findall(r'href="([^#"]+)"', page(root)) == ["data:,", "tablets/report.html"]


def test_complete_runs_are_not_read_again_when_another_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that ends is read, and those that were not complete; the others stay as they were, or leave."""
    root = str(tmp_path)
    finish(root, "first")
    finish(root, "gone")
    incomplete_run(root, "half", EPOCHS)
    write_index(root)
    (tmp_path / "first" / "run.json").write_text("damaged")
    storage.delete_folder(storage.join(root, "gone"))
    complete_run(root, "half", EPOCHS)
    finish(root, "second", verdict="good")
    renew_index(root, "second", print)
    found = entries(root)
    assert set(found) == {"first", "half", "second"}
    assert {entry.state for entry in found.values()} == {"complete"}
    assert found["second"].verdict == "good"
    renew_index(root, "first", print)
    assert entries(root)["first"].state == "unreadable"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["damaged", "[]", '{"entries": [{"name": 1}]}', '{"schema_version": 9}', "null"])
def test_a_damaged_index_is_written_again(content: str, tmp_path: Path) -> None:
    finish(str(tmp_path), "tablets")
    (tmp_path / "index.json").write_text(content)
    renew_index(str(tmp_path), "other", print)
    assert set(entries(str(tmp_path))) == {"tablets"}


def test_an_index_that_cannot_be_written_fails_no_run(tmp_path: Path) -> None:
    finish(str(tmp_path), "tablets")
    (tmp_path / "index.html").mkdir()
    said: list[str] = []
    renew_index(str(tmp_path), "tablets", said.append)
    assert len(said) == 1
    assert "index.html" in said[0]


def test_names_of_runs_are_inert(tmp_path: Path) -> None:
    """Markup in a name is text, and a link to it is escaped."""
    name = 'a<script>alert(1)</script>"&#'
    folder = finish(str(tmp_path), "tablets")
    Path(folder).rename(tmp_path / name.replace("/", "_"))
    write_index(str(tmp_path))
    assert page(str(tmp_path)).count("<script>") == 1
    assert "alert(1)" in page(str(tmp_path))


def test_a_storage_without_runs_gets_no_index(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_index(str(tmp_path))
    assert not list(tmp_path.iterdir())
