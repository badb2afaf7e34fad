"""A cluster of three real nodes with an S3 server that all of them reach, and a table of what faults have cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import Cluster, missing_rights
from support.s3server import Gateway, missing_programs

from pharmclf.storage import objects


@dataclass(frozen=True)
class Cost:
    """What a fault has cost."""

    fault: str
    seconds: float
    """From the fault to the first line of progress after it."""
    limit_s: float | None = None
    difference: float | None = None
    """Largest between the final weights and those of the undisturbed run."""

    def __str__(self) -> str:
        limit = f"{self.limit_s:.0f}" if self.limit_s is not None else "-"
        difference = f"{self.difference:.1e}" if self.difference is not None else "-"
        return f"{self.fault:<48}{self.seconds:>7.1f}{limit:>7}{difference:>18}"


_COSTS = pytest.StashKey[list[Cost]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COSTS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table; PHARMCLF_FAULT_TABLE names a file that it is written to as well."""
    costs = config.stash[_COSTS]
    if not costs:
        return
    lines = [f"{'fault':<48}{'s lost':>7}{'limit':>7}{'weights differ by':>18}", *map(str, costs)]
    terminalreporter.section("seconds from a fault to the next step")
    for line in lines:
        terminalreporter.write_line(line)
    if path := os.environ.get("PHARMCLF_FAULT_TABLE"):
        Path(path).write_text("\n".join([*lines, ""]), "utf-8")


@pytest.fixture
def note_cost(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to the table; takes what `Cost` has."""

    def note(*values: Any) -> None:
        request.config.stash[_COSTS].append(Cost(*values))

    return note


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that does no training and two nodes of two CPUs; Ray runs on all of them."""
    if reason := missing_rights():
        pytest.skip(reason)
    made = Cluster().start()
    try:
        made.start_ray()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def cluster_gateway(cluster: Cluster) -> Iterator[Gateway]:
    """An S3 server on the cluster's network, which this process can reach too."""
    if reason := missing_programs():
        pytest.skip(reason)
    server = Gateway(cluster.bridge_address).start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            server.use(patch)
            objects.reset_connections()
            yield server
    finally:
        objects.reset_connections()
        server.stop()
