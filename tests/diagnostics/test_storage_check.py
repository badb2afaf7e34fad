"""The storage tried for real, right and broken in every way that this machine allows; each has its own name."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.s3proxy import Fault, Request, Through
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.diagnostics.results import Finding
from pharmclf.diagnostics.storage_check import (
    StorageInfo,
    check_storage_access,
    diagnose,
    probe_storage,
    write_heartbeat_file,
)
from pharmclf.storage import objects


def judged(facts: StorageInfo) -> Finding:
    return check_storage_access(facts)[0]


def files_in(location: str) -> list[str]:
    try:
        return [entry.location for entry in storage.list_files(location)]
    except FileNotFoundError:
        return []


def test_a_storage_that_works_is_measured_and_left_as_it_was(root: str) -> None:
    """Times and speeds are there, the clock agrees, and no file stays; a folder that is not there is not made."""
    location = storage.join(root, "none/yet")
    facts = probe_storage(location, bulk_bytes=1 << 20)
    assert (facts.failed, facts.kind, facts.reason, facts.left) == ("", None, "", "")
    assert facts.request_s > 0
    assert facts.write_bytes_per_s
    assert facts.read_bytes_per_s
    assert facts.offset_s == 0
    assert (facts.free_bytes is None) is storage.is_remote(root)
    assert {finding.level for finding in check_storage_access(facts)} <= {"OK", "warn"}  # a loaded machine may be slow
    assert files_in(root) == []
    assert not storage.exists(location)


def test_a_folder_that_another_node_does_not_see_is_another_place(root: str) -> None:
    """The file that one node has written is found by the others while it stands, and gone behind."""
    with write_heartbeat_file(root) as heartbeat:
        assert probe_storage(root, heartbeat_file=heartbeat).failed == ""
        assert files_in(root) == [heartbeat]
    facts = probe_storage(root, heartbeat_file=heartbeat)
    assert facts.kind == "another place"
    finding = judged(facts)
    assert finding.level == "FAIL"
    assert heartbeat in finding.text
    assert "all nodes mount" in finding.remedy
    assert files_in(root) == []


def test_a_read_only_folder_is_told_from_a_full_one(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=1m")
    assert probe_storage(str(folder)).failed == ""
    (folder / "filling").write_bytes(os.urandom(1 << 20))
    facts = probe_storage(str(folder))
    assert (facts.failed, facts.kind, facts.left) == ("write", "full", "")
    assert "No space left on device" in judged(facts).text
    (folder / "filling").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    facts = probe_storage(str(folder))
    assert (facts.failed, facts.kind) == ("write", "read-only")
    assert "Read-only file system" in judged(facts).text
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    assert probe_storage(str(folder)).failed == ""
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for location in (tmp_path / "file", tmp_path / "file" / "runs"):
        facts = probe_storage(str(location))
        assert (facts.failed, facts.kind) == ("write", "other")
        assert "file" in judged(facts).text


def test_a_disk_with_too_little_room_fails_before_it_is_full(mounted: Callable[[str], Path]) -> None:
    finding = judged(probe_storage(str(mounted("size=50m"))))
    assert finding.level == "FAIL"
    assert "free" in finding.text


@pytest.mark.s3
def test_each_refusal_of_a_store_has_its_own_name(
    bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wrong secret, unknown key, no key at all, no bucket; right again with the right ones; no secret in any text."""
    told = []

    def kind(location: str = bucket) -> str | None:
        objects.reset_connections()
        facts = probe_storage(location)
        told.append(str(facts))
        return facts.kind

    assert kind() is None
    assert kind(f"{bucket}-gone/runs") == "no bucket"
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
        assert kind() == "wrong credentials"
        patch.setenv("AWS_SECRET_ACCESS_KEY", gateway.secret_key)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert kind() == "wrong credentials"
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert kind() == "no credentials"
    assert kind() is None
    assert "secret" not in "".join(told)
    assert files_in(bucket) == []


@pytest.mark.s3
def test_a_key_without_rights_is_told_from_one_that_may_only_read(
    bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that may do all but delete, which is a warning with the name of what is left."""
    name, user = bucket.removeprefix("s3://"), f"u{os.getpid()}"
    gateway.admin("user", "create", f"--uid={user}", "--display-name=x", f"--access-key={user}", "--secret-key=other")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")

    def allow(*actions: str, but: str = "") -> StorageInfo:
        rules = []
        for effect, those in (("Allow", actions), ("Deny", (but,) if but else ())):
            who = {"AWS": [f"arn:aws:iam:::user/{user}"]}
            where = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
            named = [f"s3:{one}" for one in those]
            rules += [{"Effect": effect, "Principal": who, "Action": named, "Resource": where}] if named else []
        if rules:
            policy = {"Version": "2012-10-17", "Statement": rules}
            gateway.client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
        objects.reset_connections()
        return probe_storage(bucket)

    assert allow().kind == "no rights"
    assert allow("ListBucket", "GetObject").kind == "read-only"
    unread = allow("ListBucket", "PutObject", "DeleteObject", but="GetObject")  # what it wrote it may read otherwise
    assert (unread.failed, unread.kind, unread.left) == ("read", "no rights", "")
    undeleted = allow("ListBucket", "GetObject", "PutObject")
    assert (undeleted.failed, undeleted.kind) == ("delete", "no rights")
    finding = judged(undeleted)
    assert finding.level == "warn"
    assert undeleted.left in finding.remedy
    assert allow("ListBucket", "GetObject", "PutObject", "DeleteObject").failed == ""


@pytest.mark.s3
def test_a_store_that_cannot_be_reached_is_given_up_in_time(
    bucket: str, gateway: Gateway, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens; one that says 503; one that takes connections and is silent."""
    kinds: list[Fault | None] = []

    def choose(_: Request) -> Fault | None:
        return kinds[-1]

    through(choose)
    for fault in (Fault("answer"), Fault("reset")):
        kinds.append(fault)
        with storage.timeout(1.0):
            facts = probe_storage(bucket)
        assert facts.kind == "not reachable", fault
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    objects.reset_connections()
    with storage.timeout(1.0):
        facts = probe_storage(bucket)
    assert facts.kind == "not reachable"
    assert "http://127.0.0.1:9" in judged(facts).text
    objects.reset_connections()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("s3://b/x: access denied at http://h (RequestTimeTooSkewed). Check"), "wrong clock"),
        (PermissionError("s3://b/x: access denied (ExpiredToken). Check"), "wrong credentials"),
        (PermissionError("s3://b/x: access denied at http://h (QuotaExceeded). Check"), "full"),
        (PermissionError("s3://b/x: access denied at http://h (HTTP 403). Check"), "no rights"),
        (PermissionError(13, "Permission denied"), "no rights"),
        (OSError(30, "Read-only file system"), "read-only"),
        (OSError(28, "No space left on device"), "full"),
        (OSError(122, "Disk quota exceeded"), "full"),
        (OSError(116, "Stale file handle"), "not reachable"),
        (OSError(107, "Transport endpoint is not connected"), "not reachable"),
        (storage.StorageUnavailableError("s3://b/x: no connection, or no answer"), "not reachable"),
        (FileNotFoundError("s3://b/x: no bucket s3://b at http://h"), "no bucket"),
        (OSError("s3://b/x: the bucket lies in another region at http://h. Set AWS_REGION"), "another region"),
        (NotADirectoryError(20, "Not a directory"), "other"),
        (OSError("s3://b/x: something new"), "other"),
    ],
)
def test_an_error_is_named_by_what_it_says(error: OSError, kind: str) -> None:
    assert diagnose(error) == kind
