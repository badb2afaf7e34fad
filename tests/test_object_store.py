"""What only an object store does: refuse, throttle, break off, go away, page, and ask for credentials."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.s3proxy import CUT, EXPIRED, HOLD, LOST, RESET, SLOW_DOWN, Fault, Proxy, Request, Through
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.storage import objects, s3

pytestmark = pytest.mark.s3
_LARGE = 20_000_003  # bytes: three parts

OPERATIONS: dict[str, Callable[[str], object]] = {
    "read": lambda root: storage.read_bytes(f"{root}/file"),
    "read in pieces": lambda root: list(storage.read_chunks(f"{root}/file")),
    "read with version": lambda root: storage.read_versioned(f"{root}/file"),
    "is it there": lambda root: storage.is_file(f"{root}/file"),
    "list": lambda root: list(storage.list_files(root)),
    "list folders": lambda root: storage.list_folders(root),
    "write": lambda root: storage.write_bytes(f"{root}/file", b"new"),
    "write large": lambda root: storage.write_bytes(f"{root}/file", bytes(_LARGE)),
    "write if": lambda root: storage.compare_and_swap(f"{root}/file", b"new", None),
    "delete": lambda root: storage.delete_file(f"{root}/file"),
}


@pytest.fixture(scope="module")
def full_bucket(gateway: Gateway) -> str:
    """A bucket of 3,000 small objects."""
    root = f"s3://{gateway.new_bucket()}"
    with pytest.MonkeyPatch.context() as patch:
        gateway.use(patch)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: storage.write_bytes(f"{root}/{number:04}", b"x"), range(3000)))
    objects.reset_connections()
    return root


def first_of_each(fault: Fault) -> Callable[[Request], Fault | None]:
    """The fault for the first request of each kind: method, key, and query but for an upload's own id.

    Of an upload in parts only one part gets keys that have expired, since they are looked up once for all of it.
    """
    seen: set[tuple[str, str]] = set()

    def choose(request: Request) -> Fault | None:
        kind = request.method, re.sub(r"uploadId=[^&]*", "", request.target)
        spared = fault.code == EXPIRED.code and "upload" in request.target and "partNumber=2" not in request.target
        if kind in seen or spared:
            return None
        seen.add(kind)
        return fault

    return choose


def _everything_works(root: str, folder: Path) -> None:
    """Every operation once; each gives what it should."""
    large = random.Random(0).randbytes(_LARGE)
    storage.write_bytes(f"{root}/a/small", b"small")
    storage.write_bytes(f"{root}/a/large", large)
    assert storage.read_bytes(f"{root}/a/small") == b"small"
    assert storage.read_bytes(f"{root}/a/large") == large
    storage.download(f"{root}/a/large", folder / "large")
    assert (folder / "large").read_bytes() == large
    assert [entry.location for entry in storage.list_files(root)] == [f"{root}/a/large", f"{root}/a/small"]
    assert storage.list_folders(root) == ["a"]
    assert storage.exists(f"{root}/a")
    first = storage.compare_and_swap(f"{root}/state", b"1", None)
    assert first
    second = storage.compare_and_swap(f"{root}/state", b"2", first)
    assert second
    assert storage.compare_and_swap(f"{root}/state", b"3", first) is None
    found = storage.read_versioned(f"{root}/state")
    assert found is not None
    assert (found.content, found.version) == (b"2", second)
    storage.delete_file(f"{root}/state")
    storage.delete_folder(f"{root}/a")
    assert not storage.exists(f"{root}/a")
    assert not storage.is_file(f"{root}/state")


@pytest.mark.parametrize("operation", ["read", "read with version", "list", "list folders", "write", "write if"])
def test_a_missing_bucket_is_named(bucket: str, gateway: Gateway, operation: str):
    """FileNotFoundError says which bucket is not there, and at which endpoint."""
    with pytest.raises(FileNotFoundError, match=rf"no bucket {bucket}-not at {gateway.url}"):
        OPERATIONS[operation](f"{bucket}-not")


def test_a_missing_object_is_named(bucket: str, gateway: Gateway):
    """FileNotFoundError holds the whole location."""
    for read in ("read", "read in pieces"):
        with pytest.raises(FileNotFoundError, match=rf"{bucket}/some/where/file: no such object at {gateway.url}"):
            OPERATIONS[read](f"{bucket}/some/where")
    with pytest.raises(FileNotFoundError, match=rf"{bucket}/some/where"):
        list(storage.list_files(f"{bucket}/some/where"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_secret_is_refused_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch, operation: str):
    """PermissionError names the location and the variables to check; the secret stands nowhere in it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    started = time.monotonic()
    with pytest.raises(PermissionError, match=rf"{bucket}.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        OPERATIONS[operation](bucket)
    assert time.monotonic() - started < 5
    assert "a-wrong-secret" not in "".join(traceback.format_exception(caught.value))
    assert Gateway.access_key not in str(caught.value)


def test_what_is_not_allowed_is_refused(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """Without credentials a private bucket gives PermissionError; a public one is read, and not written."""
    storage.write_bytes(f"{bucket}/folder/file", b"for all")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    objects.reset_connections()
    for operation in OPERATIONS.values():
        with pytest.raises(PermissionError):
            operation(f"{bucket}/folder")
    name = bucket.removeprefix("s3://")
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    resources = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    policy = {"Version": "2012-10-17", "Statement": [allowed | {"Resource": resources}]}
    gateway.client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    assert [entry.location for entry in storage.list_files(bucket)] == [f"{bucket}/folder/file"]
    assert storage.read_bytes(f"{bucket}/folder/file") == b"for all"
    assert storage.list_folders(bucket) == ["folder"]
    for operation in ("write", "write large", "write if", "delete"):
        with pytest.raises(PermissionError):
            OPERATIONS[operation](f"{bucket}/folder")
    assert storage.read_bytes(f"{bucket}/folder/file") == b"for all"


def test_a_store_that_stays_away_is_given_up(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """After the time we are patient for, StorageUnavailableError names the endpoint and that time, whatever was
    asked."""
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", "60")
    storage.write_bytes(str(tmp_path / "folder" / "file"), b"")
    uploads = {"upload": lambda root: storage.upload_folder(tmp_path / "folder", root)}

    def ask(operation: Callable[[str], object]) -> tuple[Exception | None, float]:
        started = time.monotonic()
        try:
            with storage.timeout(2):
                operation(bucket)
        except Exception as error:
            return error, time.monotonic() - started
        return None, 0.0

    storage.list_folders(bucket)  # a connection is open already
    gateway.stop_gateway()
    try:
        with ThreadPoolExecutor() as pool:
            found = dict(zip(OPERATIONS | uploads, pool.map(ask, (OPERATIONS | uploads).values()), strict=True))
    finally:
        gateway.start_gateway()
    for name, (error, took_s) in found.items():
        assert isinstance(error, storage.StorageUnavailableError), (name, error)
        assert gateway.url in str(error), name
        assert "for 2 s" in str(error), name
        assert 1 < took_s < 10, name
    assert not storage.is_file(f"{bucket}/file")


def test_a_store_that_comes_back_is_waited_for(bucket: str, gateway: Gateway):
    """Readers and writers that run while the server is away for three seconds see no failure, and no wrong content."""
    ended, slowest = threading.Event(), [0.0] * 8

    def work(number: int) -> int:
        count = 0
        while not ended.is_set():
            started = time.monotonic()
            storage.write_bytes(f"{bucket}/{number}/{count}", f"{number} {count}".encode())
            assert storage.read_bytes(f"{bucket}/{number}/{count}") == f"{number} {count}".encode()
            count += 1
            assert len(list(storage.list_files(f"{bucket}/{number}"))) == count
            slowest[number] = max(slowest[number], time.monotonic() - started)
        return count

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, number) for number in range(8)]
        time.sleep(0.5)
        gateway.stop_gateway()
        time.sleep(3)
        gateway.start_gateway()
        time.sleep(0.5)
        ended.set()
        counts = [worker.result() for worker in workers]
    assert min(slowest) > 2.5
    assert [len(list(storage.list_files(f"{bucket}/{number}"))) for number in range(8)] == counts


def test_a_thousand_refusals_are_not_seen(bucket: str, through: Through):
    """Of 10,000 requests by 16 threads a thousand are answered with 503; every result is as if none had been."""
    refused = set(random.Random(0).sample(range(10_000), 1000))
    proxy = through(lambda request: SLOW_DOWN if request.number in refused else None)

    def work(number: int) -> dict[str, bytes]:
        rng, folder, model = random.Random(number), f"{bucket}/{number:02}", {}
        while len(proxy.requests) < 10_000:
            key = f"{folder}/{rng.randrange(10)}"
            action = rng.choices(["write", "read", "list", "is_file", "delete"], [35, 30, 15, 10, 10])[0]
            if action == "write":
                model[key] = rng.randbytes(rng.randrange(2000))
                storage.write_bytes(key, model[key])
            elif action == "read" and key in model:
                assert storage.read_bytes(key) == model[key]
            elif action == "list" and model:
                found = [(entry.location, entry.size_bytes) for entry in storage.list_files(folder)]
                assert found == sorted((key, len(content)) for key, content in model.items())
            elif action == "is_file":
                assert storage.is_file(key) == (key in model)
            elif action == "delete":
                storage.delete_file(key)
                model.pop(key, None)
        return model

    with ThreadPoolExecutor(16) as pool:
        models = list(pool.map(work, range(16)))
    assert proxy.faults["answer"] == 1000
    assert len(proxy.requests) >= 10_000
    expected = {key: content for model in models for key, content in model.items()}
    assert {entry.location: storage.read_bytes(entry.location) for entry in storage.list_files(bucket)} == expected


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(SLOW_DOWN, id="slow down"),
        pytest.param(Fault("answer", 500, "InternalError"), id="internal error"),
        pytest.param(Fault("answer", 429, "TooManyRequests"), id="too many requests"),
        pytest.param(RESET, id="reset before"),
        pytest.param(LOST, id="reset behind"),
        pytest.param(CUT, id="answer cut short"),
        pytest.param(EXPIRED, id="expired"),
        pytest.param(Fault("answer", 400, "ExpiredToken"), id="expired as Amazon says it"),
    ],
)
def test_what_fails_once_is_done_again(bucket: str, through: Through, tmp_path: Path, fault: Fault):
    """The first request of every kind goes wrong in the same way; every operation gives what it should."""
    proxy = through(first_of_each(fault))
    _everything_works(bucket, tmp_path)
    assert proxy.faults[fault.kind] > 10


def test_a_complete_upload_whose_answer_breaks_off_is_no_failure(bucket: str, through: Through):
    """The server has put the parts together and knows the upload no more: the object is written again, and stands."""
    cuts = iter([CUT])
    proxy = through(
        lambda request: next(cuts, None) if request.method == "POST" and "uploadId" in request.target else None
    )
    storage.write_bytes(f"{bucket}/file", bytes(_LARGE))
    assert storage.read_bytes(f"{bucket}/file") == bytes(_LARGE)
    assert proxy.faults["cut"] == 1


def test_an_answer_that_hangs_is_asked_for_again(bucket: str, through: Through, monkeypatch: pytest.MonkeyPatch):
    """A request without an answer is given up after its time and made again, whatever it was."""
    monkeypatch.setattr(objects, "_REQUEST_TIMEOUT", "1s")
    proxy = through(first_of_each(Fault("slow", seconds=30)))
    storage.write_bytes(f"{bucket}/file", b"content")
    assert storage.compare_and_swap(f"{bucket}/state", b"1", None)
    assert storage.read_bytes(f"{bucket}/file") == b"content"
    assert len(list(storage.list_files(bucket))) == 2
    storage.delete_file(f"{bucket}/file")
    assert not storage.is_file(f"{bucket}/file")
    assert proxy.faults["slow"] == 6


def test_an_object_that_changes_under_its_reader_is_not_mixed(bucket: str, through: Through):
    """A large object is written over while its pieces are read: the reader gets an error and no blend of the two."""
    storage.write_bytes(f"{bucket}/file", bytes(_LARGE))
    pieces = storage.read_chunks(f"{bucket}/file")
    next(pieces)
    storage.write_bytes(f"{bucket}/file", b"\1" * _LARGE)
    with pytest.raises(OSError, match=f"{bucket}/file"):
        next(pieces)


@pytest.mark.parametrize("num_bytes", [1_000_000, _LARGE])
@pytest.mark.parametrize("before", [None, b"before"])
def test_an_upload_whose_process_is_killed_is_never_seen(
    bucket: str, gateway: Gateway, num_bytes: int, before: bytes | None
):
    """In the middle of its body, of one request or of parts: the old object or none is there, then and afterwards."""
    place = f"{bucket}/folder/file"
    if before is not None:
        storage.write_bytes(place, before)

    def unseen() -> None:
        assert storage.is_file(place) == (before is not None)
        if before is None:
            with pytest.raises(FileNotFoundError):
                list(storage.list_files(bucket))
        else:
            assert [(entry.location, entry.size_bytes) for entry in storage.list_files(bucket)] == [(place, 6)]
            assert storage.read_bytes(place) == before

    def choose(request: Request) -> Fault | None:
        part = num_bytes < 8 << 20 or "partNumber=2" in request.target
        return HOLD if request.method == "PUT" and part else None

    code = "import sys; from pharmclf import storage; storage.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))"
    with Proxy(gateway.bind, gateway.port, choose) as proxy:
        command = [sys.executable, "-c", code, place, str(num_bytes)]
        process = subprocess.Popen(command, env=os.environ | {"AWS_ENDPOINT_URL": proxy.url})
        try:
            assert proxy.holds.wait(60)
            unseen()
        finally:
            process.kill()
            process.wait()
        unseen()
    unseen()


def test_a_listing_comes_page_by_page(full_bucket: str, bucket: str, through: Through):
    """3,000 objects in the order of their keys; the first is seen before the last page is asked for."""
    proxy = through(lambda _: None)
    entries = storage.list_files(full_bucket)
    assert next(entries).location == f"{full_bucket}/0000"
    assert proxy.count(lambda request: request.is_listing) < 3
    assert [entry.location for entry in entries] == [f"{full_bucket}/{number:04}" for number in range(1, 3000)]
    assert proxy.count(lambda request: request.is_listing) in (3, 4)


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET, CUT, EXPIRED], ids=lambda fault: f"{fault.kind} {fault.code}")
def test_a_listing_that_breaks_off_goes_on(full_bucket: str, bucket: str, through: Through, fault: Fault):
    """Any page may fail: nothing is left out, and nothing comes twice."""
    proxy = through(lambda request: fault if request.number % 2 else None)
    found = [entry.location for entry in storage.list_files(full_bucket)]
    assert found == [f"{full_bucket}/{number:04}" for number in range(3000)]
    assert proxy.faults[fault.kind] > 1


def _write_keys(file: Path, access_key: str, secret_key: str, profile: str = "pharm") -> None:
    text = f"[{profile}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    storage.write_bytes(str(file), text.encode())


@pytest.fixture
def profile(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a profile that is used instead of variables; not yet written."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "pharm")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "credentials"


def test_a_profile_gives_keys_and_endpoint(
    bucket: str, gateway: Gateway, profile: Path, monkeypatch: pytest.MonkeyPatch
):
    """Keys stand in the shared credentials file, the endpoint in the profile's part of the config file."""
    _write_keys(profile, gateway.access_key, gateway.secret_key)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    profile.with_name("config").write_text(
        f"[profile pharm]\nendpoint_url = {gateway.url}\nregion = us-east-1\n", "utf-8"
    )
    storage.write_bytes(f"{bucket}/file", b"content")
    assert storage.read_bytes(f"{bucket}/file") == b"content"


@pytest.mark.parametrize("operation", ["read", "is it there", "list", "list folders", "write", "write if", "delete"])
def test_a_key_that_is_replaced_is_looked_up_again(bucket: str, gateway: Gateway, profile: Path, operation: str):
    """The key of a running process is revoked and its file rewritten: whatever it asks next is served."""
    for key in ("first-key", "second-key"):
        gateway.admin(
            "key", "create", "--uid=test", "--key-type=s3", f"--access-key={key}", f"--secret-key={key}-secret"
        )
        _write_keys(profile, key, f"{key}-secret")
        if key == "first-key":
            storage.write_bytes(f"{bucket}/file", b"content")
            assert storage.read_bytes(f"{bucket}/file") == b"content"
        else:
            gateway.admin("key", "rm", "--uid=test", "--key-type=s3", "--access-key=first-key")
            OPERATIONS[operation](bucket)
    gateway.admin("key", "rm", "--uid=test", "--key-type=s3", "--access-key=second-key")
    with pytest.raises(PermissionError):
        OPERATIONS[operation](bucket)


def test_credentials_are_not_looked_up_for_every_request(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Once for many requests over some time: a role's credentials would be asked of a service."""
    lookups, credentials = [], s3._credentials
    monkeypatch.setattr(s3, "_credentials", lambda: lookups.append(1) or credentials())
    for _ in range(5):
        storage.write_bytes(f"{bucket}/file", b"content")
        time.sleep(0.2)
    assert len(lookups) == 1


def test_credentials_that_are_gone_are_asked_for(
    bucket: str, gateway: Gateway, profile: Path, monkeypatch: pytest.MonkeyPatch
):
    """The file of a running process is emptied: what it asks next ends in PermissionError, with what to check."""
    _write_keys(profile, gateway.access_key, gateway.secret_key)
    monkeypatch.setattr(s3, "_CREDENTIALS_FOR", s3.timedelta(0))
    storage.write_bytes(f"{bucket}/file", b"content")
    profile.write_text("[pharm]\n", "utf-8")
    time.sleep(0.2)
    with pytest.raises(PermissionError, match=rf"{bucket}/file.*AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{bucket}/file")


def test_no_secret_goes_to_other_machines(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """What is passed on says where the storage is and which profile to use, and holds no key."""
    monkeypatch.setenv("AWS_PROFILE", "pharm")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-secret-token")
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", "5")
    passed = storage.environment()
    assert set(passed) == {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_PROFILE", "PHARMCLF_STORAGE_PATIENCE_S"}
    secrets = {Gateway.access_key, Gateway.secret_key, "a-secret-token"}
    assert not secrets & set(passed.values())


@pytest.mark.parametrize("location", ["s5://bucket/key", "ftp://host/file", "s3://"])
def test_a_uri_that_no_store_understands_is_refused(bucket: str, location: str):
    """The message says what is understood."""
    with pytest.raises(OSError, match="Expected a path, s3://bucket/prefix or gs://bucket/prefix"):
        storage.read_bytes(location)


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET, CUT])
def test_a_listing_with_a_key_that_obstore_refuses_waits_as_others_do(
    bucket: str, gateway: Gateway, through: Through, fault: Fault
):
    """The other keys come once and in order, though the server refuses more often than boto3 asks by itself."""
    for key in ("a/1", "a//2", "a/3", "b/4"):
        gateway.client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    asked = itertools.count()
    through(lambda request: fault if request.is_listing and 1 <= next(asked) <= 4 else None)
    found = [(entry.location, bool(entry.unreadable)) for entry in storage.list_entries(f"{bucket}/a")]
    assert found == [(f"{bucket}/a//2", True), (f"{bucket}/a/1", False), (f"{bucket}/a/3", False)]
    assert next(asked) > 4


def test_a_listing_with_a_key_that_obstore_refuses_needs_the_same_rights(
    bucket: str, gateway: Gateway, through: Through
):
    """What the server says to the second client is told as to the first."""
    gateway.client.put_object(Bucket=bucket.removeprefix("s3://"), Key="a//2", Body=b"x")
    asked, denied = itertools.count(), Fault("answer", 403, "AccessDenied")
    through(lambda request: denied if request.is_listing and next(asked) else None)
    with pytest.raises(PermissionError, match=r"access denied at .* \(AccessDenied\)"):
        list(storage.list_entries(bucket))


@pytest.mark.parametrize("location", ["https://images.invalid/pills.zip", "HTTP://127.0.0.1:9/x"])
def test_a_web_page_is_refused_at_once(location: str):
    """Nothing is asked of it, and no patience is spent."""
    began = time.monotonic()
    for name in ("read", "list", "is it there", "write", "list folders"):
        with pytest.raises(storage.WebAddressError, match="web address"):
            OPERATIONS[name](location)
    assert time.monotonic() - began < 5


def test_a_forked_process_is_refused_in_words(bucket: str):
    """It would hang for ever, since the threads of the store stayed in its parent."""
    code = (
        "import os, sys\nfrom pharmclf import storage\n"
        f"storage.write_bytes('{bucket}/x', b'')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n        storage.read_bytes(sys.argv[1])\n"
        "    except RuntimeError as error:\n        os.write(1, str(error).encode())\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{bucket}/x"], capture_output=True, text=True, timeout=60)
    assert "start processes by spawn" in done.stdout, done.stderr
