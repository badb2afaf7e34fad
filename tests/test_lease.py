"""One writer for a folder, on local disk and on an object store: taken, refused, renewed, taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.storage import lease
from pharmclf.storage.lease import Lease, LeaseHeldError, LeaseLostError

Hold = Callable[[str], Lease]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Takes leases that end with the test."""
    leases: list[Lease] = []

    def acquire(folder: str) -> Lease:
        leases.append(Lease.acquire(folder))
        return leases[-1]

    yield acquire
    for held in leases:
        held.release()


def _write_lease(folder: str, **changes: object) -> None:
    there = {"host": "another-host", "machine": "another-host"}
    holder = {"id": "theirs", "pid": 4711, "started": 1.0, "renewed": 1.0} | there | changes
    storage.write_bytes(f"{folder}/lease.json", json.dumps(holder).encode())


def _until(done: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_holder_is_refused(root: str, hold: Hold):
    """The message names the folder, and the process and host that hold it; another folder is free."""
    hold(f"{root}/run")
    with pytest.raises(
        LeaseHeldError, match=rf"{root}/run .*process {os.getpid()} on {socket.gethostname()}, last renewed"
    ):
        hold(f"{root}/run")
    hold(f"{root}/run2")


def test_a_lease_given_back_is_free(root: str, hold: Hold):
    """Its file is gone, and the next one gets it."""
    for _ in range(2):
        with hold(f"{root}/run") as held:
            assert storage.is_file(f"{root}/run/lease.json")
            held.check()
        assert not storage.is_file(f"{root}/run/lease.json")
        assert not held.is_lost


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_it(root: str, hold: Hold, dead: bool):
    """Eight that ask at the same time, for a free folder and for one whose holder has ended."""
    for trial in range(3):
        folder = f"{root}/{trial}"
        if dead:
            _write_lease(folder, machine=lease._machine(), pid=2**22 + 1)

        def ask(_: int, folder: str = folder) -> bool:
            try:
                hold(folder)
            except LeaseHeldError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(ask, range(8))) == 1


def test_a_holder_killed_on_this_host_is_gone_at_once(root: str, hold: Hold):
    """While it lives it is named; after SIGKILL nobody waits, whether its parent has taken notice or not."""
    code = (
        "import sys, time; from pharmclf.storage.lease import Lease; Lease.acquire(sys.argv[1]); "
        "print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LeaseHeldError, match=f"process {process.pid} on {socket.gethostname()}"):
                hold(root)
        finally:
            process.kill()
        _until(lambda: _took(hold, root), seconds=5)
    assert storage.read_json(f"{root}/lease.json")["pid"] == os.getpid()


def _took(hold: Hold, folder: str) -> bool:
    try:
        return bool(hold(folder))
    except LeaseHeldError:
        return False


def test_a_number_used_again_is_another_process(root: str, hold: Hold):
    """A process with the holder's number that started at another time does not hold the lease."""
    _write_lease(root, machine=lease._machine(), pid=os.getpid(), started=1.0)
    hold(root)


def test_a_holder_on_another_host_is_believed_while_young(root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch):
    """Nobody can look for its process: it counts as alive until its lease expires."""
    _write_lease(root)
    with pytest.raises(LeaseHeldError, match=r"process 4711 on another-host, last renewed \d+ s ago; .*60 s"):
        hold(root)
    monkeypatch.setattr(lease, "EXPIRES_S", 0.5)
    time.sleep(0.6)
    hold(root)
    assert storage.read_json(f"{root}/lease.json")["host"] == socket.gethostname()


def test_a_lease_that_cannot_be_understood_is_respected_while_young(
    root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
):
    """Another version may have written it."""
    for content in (b"", b"[]", b'{"host": null}', b"\xff"):
        storage.write_bytes(f"{root}/lease.json", content)
        with pytest.raises(LeaseHeldError, match="an unknown process"):
            hold(root)
    monkeypatch.setattr(lease, "EXPIRES_S", 0.5)
    time.sleep(0.6)
    hold(root)


def test_a_renewed_lease_does_not_expire(root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch):
    """It is held for longer than a lease lives without its holder."""
    monkeypatch.setattr(lease, "EXPIRES_S", 2.0)
    monkeypatch.setattr(lease, "_RENEW_S", 0.2)
    held = hold(root)
    for _ in range(8):
        time.sleep(0.4)
        with pytest.raises(LeaseHeldError):
            hold(root)
    assert not held.is_lost


def test_a_lease_taken_over_is_lost(root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch):
    """A holder that could not renew in time learns who has it now, and leaves the new holder's lease alone."""
    monkeypatch.setattr(lease, "_RENEW_S", 2.0)
    first, second = hold(root), None
    monkeypatch.setattr(lease, "EXPIRES_S", 0.5)
    time.sleep(0.6)
    second = hold(root)
    monkeypatch.setattr(lease, "EXPIRES_S", 60.0)
    _until(lambda: first.is_lost)
    assert first.is_lost == f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(LeaseLostError, match=f"^{root} has been taken over by process {os.getpid()} on "):
        first.check()
    first.release()
    assert storage.is_file(f"{root}/lease.json")
    assert not second.is_lost


def test_giving_back_what_another_has_taken_changes_nothing(root: str, hold: Hold):
    """A holder that ends before it learns that it lost the lease does not delete the other's."""
    held = hold(root)
    _write_lease(root)
    held.release()
    assert storage.read_json(f"{root}/lease.json")["id"] == "theirs"


def test_a_lease_that_was_deleted_is_lost(root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch):
    """Somebody may have held it and ended in between."""
    monkeypatch.setattr(lease, "_RENEW_S", 0.2)
    held = hold(root)
    storage.delete_file(f"{root}/lease.json")
    _until(lambda: held.is_lost)
    assert not storage.is_file(f"{root}/lease.json")


def test_a_renewal_that_went_through_and_failed_costs_nothing(root: str, hold: Hold, monkeypatch: pytest.MonkeyPatch):
    """The lease is written, then the storage goes away before it says so: the next renewal knows its own writing."""
    monkeypatch.setattr(lease, "_RENEW_S", 0.2)
    held = hold(root)
    write_if, failures = storage.compare_and_swap, []

    def fail_behind(location: str, content: bytes, version: str | None) -> str | None:
        written = write_if(location, content, version)
        if len(failures) < 2:
            failures.append(location)
            raise storage.StorageUnavailableError("gone")
        return written

    monkeypatch.setattr(storage, "compare_and_swap", fail_behind)
    _until(lambda: len(failures) == 2)
    time.sleep(1)
    assert not held.is_lost
    renewed = storage.read_json(f"{root}/lease.json")["renewed"]
    assert time.time() - renewed < 0.8


@pytest.mark.s3
def test_a_store_away_for_a_while_does_not_cost_the_lease(
    bucket: str, gateway: Gateway, hold: Hold, monkeypatch: pytest.MonkeyPatch
):
    """The server stops and starts while a lease is renewed: it is still held, and renewed again."""
    monkeypatch.setattr(lease, "_RENEW_S", 0.2)
    held = hold(bucket)
    gateway.stop_gateway()
    try:
        time.sleep(2)
    finally:
        gateway.start_gateway()
    started = time.time()
    _until(lambda: storage.read_json(f"{bucket}/lease.json")["renewed"] > started)
    assert not held.is_lost
    with pytest.raises(LeaseHeldError):
        hold(bucket)
