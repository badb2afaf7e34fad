"""The server on Ray Serve: its answers, its refusals, a change of the model, a lost replica, and its page."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.chromium import browser, missing_browser
from support.serving import TOKEN, Client, Load, as_json, form, jpeg, png_bomb, status_of
from support.small_model import save_small_model

from pharmclf.core.hashing import sha256_file
from pharmclf.inference.model import Answer, Model
from pharmclf.serving.options import TOKEN_VARIABLE

pytestmark = [pytest.mark.ray, pytest.mark.tf]
SIZE = 64
LABELS = [f"product {number}" for number in range(10)]
OTHERS = [f"other {number}" for number in range(7)]
WAIT_S = 120.0


@dataclass(frozen=True)
class Server:
    client: Client
    folder: Path
    """Of the model that is called first; of the other one it is never changed."""
    expected: dict[str, Answer]
    """What `Model.predict` says of each image."""

    @property
    def path(self) -> str:
        return next(iter(self.expected))


def save_model(folder: Path, labels: list[str]) -> str:
    """Write a model with its checksum, and return its version."""
    folder.mkdir(exist_ok=True)
    save_small_model(folder, labels, SIZE)
    digest = sha256_file(folder / "model.keras")
    (folder / "checksums.json").write_text(json.dumps({"model.keras": digest}))
    return digest[:12]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.fixture(scope="module")
def server(shared_ray: None, drawn_images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas of two models, with small limits."""
    from ray import serve

    from pharmclf.serving.options import ServeOptions
    from pharmclf.serving.server import start

    home = tmp_path_factory.mktemp("served")
    save_model(home / "first", LABELS)
    save_model(home / "second", OTHERS)
    paths = sorted(str(path) for path in Path(drawn_images).rglob("*.jpg"))[::6]
    expected = dict(zip(paths, Model(home / "first").predict(paths), strict=True))
    options = ServeOptions(
        model=(f"first={home / 'first'}", f"second={home / 'second'}"),
        port=free_port(),
        replicas="2",
        max_images=20,
        max_bytes="1MB",
        max_megapixels=5,
        max_seconds="4s",
    )
    start(options, TOKEN)
    yield Server(Client(options.port), home / "first", expected)
    serve.shutdown()


def is_right(answer: dict[str, Any], expected: Answer) -> bool:
    """The same label, and confidences that differ by rounding."""
    return answer["label"] == expected.label and all(
        name == label and math.isclose(share, confidence, abs_tol=1e-5)
        for (name, share), (label, confidence) in zip(answer["top"], expected.top, strict=True)
    )


def test_each_form_of_a_request_is_answered_as_the_model_answers_in_python(server: Server):
    """To 1e-5, image by image, in their order, with the version of the model."""
    contents = [Path(path).read_bytes() for path in server.expected]
    for body, kind in (form(contents), as_json(contents)):
        status, content = server.client.predict(body, kind)
        assert status == 200
        assert content["version"] == sha256_file(server.folder / "model.keras")[:12]
        assert [*map(is_right, content["answers"], server.expected.values())] == [True] * len(contents)
    status, content = server.client.predict(contents[0], "image/jpeg")
    assert (status, content["model"]) == (200, "first")
    assert is_right(content["answers"][0], server.expected[server.path])
    assert set(content["answers"][0]) == set(Answer.__dataclass_fields__)


def test_a_model_is_chosen_by_its_name(server: Server):
    content = Path(server.path).read_bytes()
    status, answer = server.client.predict(content, model="second")
    assert (status, answer["model"]) == (200, "second")
    assert answer["answers"][0]["label"] in OTHERS
    assert server.client.predict(content, model="third")[0] == 404
    status, models, _ = server.client.send("GET", "/models")
    assert [(model["name"], model["labels"], model["refused"]) for model in models] == [
        ("first", LABELS, None),
        ("second", OTHERS, None),
    ]


def test_a_bad_image_costs_no_other_its_answer(server: Server):
    """Among several it has its reason in its place; alone it is the request that fails."""
    good = Path(server.path).read_bytes()
    status, content = server.client.predict(*form([good, good[:300], good]))
    assert status == 200
    assert [is_right(content["answers"][place], server.expected[server.path]) for place in (0, 2)] == [True, True]
    assert content["answers"][1]["label"] is None
    assert content["answers"][1]["error"]
    status, content = server.client.predict(good[:300])
    assert status == 422
    assert set(content) == {"error", "received", "expected", "remedy"}


def refusals() -> dict[str, tuple[int, Callable[[Client], int]]]:
    """Requests that get no answer, with the status of each."""
    image = jpeg()
    huge = jpeg() + bytes(1_000_001)
    return {
        "no token": (401, lambda client: Client(client.port, "").predict(image)[0]),
        "another token": (401, lambda client: Client(client.port, TOKEN[:-1]).predict(image)[0]),
        "cut": (422, lambda client: client.predict(image[: len(image) // 2])[0]),
        "a PNG that is cut": (422, lambda client: client.predict(png_bomb(64)[:60])[0]),
        "a bomb": (422, lambda client: client.predict(png_bomb(50_000))[0]),
        "another type": (415, lambda client: client.predict(image, "text/html")[0]),
        "no image": (422, lambda client: client.predict(b"<html></html>")[0]),
        "an empty body": (422, lambda client: client.predict(b"")[0]),
        "no JSON": (400, lambda client: client.predict(b"{", "application/json")[0]),
        "no form": (400, lambda client: client.predict(image, "multipart/form-data; boundary=x")[0]),
        "huge": (413, lambda client: client.predict(huge)[0]),
        "huge in pieces": (
            413,
            lambda client: client.send("POST", "/predict", iter([huge[:500_000]] * 3), "image/jpeg", chunked=True)[0],
        ),
        "many": (413, lambda client: client.predict(*form([image] * 21))[0]),
        "no such address": (404, lambda client: client.send("GET", "/nothing")[0]),
        "another method": (405, lambda client: client.send("PUT", "/predict", image)[0]),
    }


@pytest.mark.parametrize("case", refusals())
def test_a_bad_request_gets_its_status_and_says_how_to_mend_it(server: Server, case: str):
    expected, call = refusals()[case]
    assert call(server.client) == expected


def test_a_body_that_does_not_arrive_is_given_up(server: Server):
    assert status_of(server.client.start_slowly()) == 408


def test_a_size_that_is_declared_too_large_is_refused_before_it_is_sent(server: Server):
    assert status_of(server.client.start_slowly(declared=10**12)) == 413


def test_what_needs_no_token_says_nothing_that_needs_one(server: Server):
    """Health, the versions, the interface, the page; a browser may load nothing from elsewhere."""
    stranger = Client(server.client.port, "")
    assert stranger.send("GET", "/healthz")[:2] == (200, {"status": "ok"})
    assert set(stranger.send("GET", "/readyz")[1]["models"]) == {"first", "second"}
    status, schema, _ = stranger.send("GET", "/openapi.json")
    assert status == 200
    assert set(schema["paths"]) == {"/predict", "/models", "/metrics", "/healthz", "/readyz"}
    assert set(schema["components"]["schemas"]["Answer"]["properties"]) == set(Answer.__dataclass_fields__)
    assert {"400", "401", "408", "413", "415", "422"} <= schema["paths"]["/predict"]["post"]["responses"].keys()
    _, page, headers = stranger.send("GET", "/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert TOKEN not in page
    assert [stranger.send("GET", path)[0] for path in ("/models", "/metrics")] == [401, 401]


def test_the_metrics_count_answers_and_refusals(server: Server):
    """Of all replicas, under the names that Ray gives them."""
    image = Path(server.path).read_bytes()
    server.client.predict(image)
    server.client.predict(b"")

    def has_all() -> bool:
        text = server.client.send("GET", "/metrics")[1]
        names = ("responses_total", "answers_total", "batches_total", "model", "refused")
        return all(f"\nray_pharmclf_serve_{name}{{" in text for name in names) and 'status="422"' in text

    until(has_all)


@pytest.mark.skipif(missing_browser() is not None, reason=str(missing_browser()))
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_answers_for_a_photo_on_a_phone(server: Server, dark: bool, tmp_path: Path):
    """The answer, or in plain words why there is none; nothing is loaded from elsewhere, nothing is wider than it."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    address = f"http://127.0.0.1:{server.client.port}/"
    with browser() as running:
        page = running.new_page(390, dark=dark)
        page.visit(f"{address}#token={TOKEN}".replace(" ", "%20"))
        page.choose_files("#files", [server.path, str(broken)])
        running.wait_until(lambda: page.evaluate("document.querySelectorAll('.failed').length") == 1, "both answers")
        text = page.evaluate("document.querySelector('main').innerText")
        expected = server.expected[server.path]
        assert expected.label
        assert expected.label in text
        assert f"{100 * expected.confidence:.1f} %" in text
        assert "The photo cannot be used: no image" in text
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("[...document.querySelector('#model').options].map(each => each.value)") == [
            "first",
            "second",
        ]
        assert page.evaluate("document.querySelector('#camera').getAttribute('capture')") == "environment"
        assert all(url.startswith((address, "blob:")) for url in page.requests)
        assert [problem for problem in page.problems if "422" not in problem] == []
        page.visit(address)
        running.wait_until(lambda: page.evaluate("!document.querySelector('#login').hidden"), "the field for the token")


def test_a_changed_model_replaces_the_earlier_one_without_a_lost_request(server: Server, tmp_path: Path):
    """Each answer is of one version, before and after; a damaged one is refused by name and changes nothing."""
    content = Path(server.path).read_bytes()
    labels = {server.client.predict(content)[1]["version"]: LABELS}
    body, kind = form([content] * 3)

    def versions() -> set[str]:
        return {server.client.predict(content)[1]["version"] for _ in range(30)}  # of both replicas

    with Load(lambda: server.client.predict(body, kind), clients=3) as load:
        save_model(tmp_path / "new", OTHERS)
        for name in ("model.keras", "labels.json", "checksums.json"):
            shutil.copy(tmp_path / "new" / name, server.folder / name)
        new = sha256_file(server.folder / "model.keras")[:12]
        labels[new] = OTHERS
        until(lambda: versions() == {new})
        damaged = bytearray((server.folder / "model.keras").read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        (server.folder / "model.keras").write_bytes(damaged)
        (server.folder / "checksums.json").touch()  # as if it had been written with it
        until(lambda: "has sha256" in str(server.client.send("GET", "/models")[1][0]["refused"]))
        assert versions() == {new}
    assert load.errors == []
    assert {status for status, _ in load.answers} == {200}
    for _, answer in load.answers:
        assert {each["label"] for each in answer["answers"]} <= set(labels[answer["version"]])
    assert {answer["version"] for _, answer in load.answers} == set(labels)


def test_a_killed_replica_gives_no_wrong_answer_and_is_replaced(server: Server):
    """What it was working on fails with a 5xx; whatever is answered is right."""
    import ray
    from ray import serve

    save_model(server.folder, LABELS)
    content = Path(server.path).read_bytes()
    until(lambda: {server.client.predict(content)[1]["answers"][0]["label"] in LABELS for _ in range(30)} == {True})
    replicas = [each for each in ray.util.list_named_actors(all_namespaces=True) if "#model#" in each["name"]]
    assert len(replicas) == 2
    with Load(lambda: server.client.predict(content)) as load:
        until(lambda: len(load.answers) > 20)
        ray.kill(ray.get_actor(**replicas[0]))
        killed_at = len(load.answers)
        until(lambda: len(load.answers) > killed_at + 50)
    right = [
        is_right(answer["answers"][0], server.expected[server.path]) for status, answer in load.answers if status == 200
    ]
    failed = [status for status, _ in load.answers if status != 200]
    assert right == [True] * len(right)
    assert len(right) > 60
    assert set(failed) <= {500, 503}
    states = lambda: serve.status().applications["pharmclf"].deployments["model"].replica_states  # noqa: E731
    until(lambda: states() == {"RUNNING": 2})


def test_the_arguments_of_a_service_are_the_options_of_the_command(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Its token comes from the environment, since its file is for everyone who may read it."""
    from ray.serve import Application

    from pharmclf.core.errors import ConfigError
    from pharmclf.serving.server import from_arguments

    arguments = {"model": [str(server.folder)], "replicas": "1-4", "accelerator": "cpu"}
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert isinstance(from_arguments(arguments), Application)
    with pytest.raises(ConfigError, match="replica"):
        from_arguments({**arguments, "replica": 1})
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        from_arguments(arguments)


@pytest.mark.slow
def test_a_thousand_bad_requests_take_no_memory(server: Server):
    """Each gets its status, and the replicas, which have answered as many before, do not grow by more than a tenth."""
    import psutil

    def replicas() -> int:
        found = [
            each for each in psutil.process_iter(["cmdline"]) if "ServeReplica" in " ".join(each.info["cmdline"] or [])
        ]
        return sum(each.memory_info().rss for each in found)

    cases = [(name, *each) for name, each in refusals().items()]
    wrong: list[str] = []
    sizes: list[int] = []
    for _ in range(3):
        sizes.append(replicas())
        for number in range(1000):
            name, expected, call = cases[number % len(cases)]
            if (status := call(server.client)) != expected:
                wrong.append(f"{name}: {status}")
    sizes.append(replicas())
    print("memory of the replicas, MiB:", [size >> 20 for size in sizes])  # noqa: T201 - a figure for people
    assert wrong == []
    assert sizes[-1] < 1.1 * sizes[1]
    assert server.client.predict(Path(server.path).read_bytes())[0] == 200


@pytest.mark.slow
def test_the_command_prints_a_link_answers_and_ends_when_it_is_asked_to(tmp_path: Path):
    """In a process with its own Ray; a second one on its port is bad input."""
    save_model(tmp_path / "model", LABELS)
    port = free_port()
    program = [sys.executable, "-m", "pharmclf", "serve", "--model", str(tmp_path / "model"), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", TOKEN_VARIABLE)}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            link = next(line for line in lines if line.startswith("serving at "))
            token = link.strip().partition("#token=")[2]
            status, content = Client(port, token).predict(jpeg())
            assert (status, content["model"]) == (200, tmp_path.name)
            assert Client(port, "").predict(jpeg())[0] == 401
            second = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
            assert second.returncode == 2
            assert "expected an address where nothing listens" in second.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 143
            assert "Traceback" not in "".join(lines)
        finally:
            process.kill()
