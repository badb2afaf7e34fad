"""One process that answers requests, as a deployment of Ray Serve: it decodes and predicts in batches."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Mapping, Sequence

import ray
from fastapi import FastAPI
from ray import serve
from ray.util.metrics import Counter, Gauge

from pharmclf.core.background import BackgroundTask
from pharmclf.data.decoded_image import MAX_PIXELS_VARIABLE
from pharmclf.inference.model import Answer
from pharmclf.serving.app import build_app
from pharmclf.serving.batching import Batcher
from pharmclf.serving.options import Limits
from pharmclf.serving.served_models import MAX_BATCH, ModelState, Prediction, ServedModel, ServedModels

_BATCHES = 2  # at once, so that one is decoded while the other one is predicted
_WATCH_INTERVAL_S = 5.0
_METRICS_TIMEOUT_S = 5.0
_SHOWN = re.compile(
    r"(?:# (?:HELP|TYPE) )?ray_"
    r"(?:pharmclf_serve|serve_num_http|serve_http_request_latency|serve_replica_processing|serve_deployment_queued)"
)
METRICS = {
    "pharmclf_serve_responses": "Responses by status of HTTP",
    "pharmclf_serve_answers": "Images by model and outcome: answered, abstained, unknown or unusable",
    "pharmclf_serve_batches": "Batches of images that were predicted together",
    "pharmclf_serve_model": "1 for the version of a model that answers, 0 for earlier ones",
    "pharmclf_serve_refused": "1 while the files at a model's location are refused, and an earlier version answers",
}


class Replica:
    """All models in one process, with the interface in front of them."""

    def __init__(self, locations: Mapping[str, str], limits: Limits, token_digest: str) -> None:
        """Load the models.

        Args:
            locations: of the models, by name.
            limits: of a request.
            token_digest: as in `build_app`.
        """
        os.environ[MAX_PIXELS_VARIABLE] = str(limits.megapixels)
        self._limits, self._token_digest = limits, token_digest
        self._responses = Counter("pharmclf_serve_responses", METRICS["pharmclf_serve_responses"], ("status",))
        self._answers = Counter("pharmclf_serve_answers", METRICS["pharmclf_serve_answers"], ("model", "outcome"))
        self._batches = Counter("pharmclf_serve_batches", METRICS["pharmclf_serve_batches"])
        self._version = Gauge("pharmclf_serve_model", METRICS["pharmclf_serve_model"], ("model", "version"))
        self._refused = Gauge("pharmclf_serve_refused", METRICS["pharmclf_serve_refused"], ("model",))
        self._served = ServedModels(locations)
        self._batcher = Batcher(self._answer, MAX_BATCH, _BATCHES)
        self._seen: set[tuple[str, str]] = set()
        self._watch = BackgroundTask("models", self._refresh, every_s=_WATCH_INTERVAL_S, at_start=True)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, once the models are loaded."""
        return build_app(self, self._limits, self._token_digest)

    def find(self, name: str) -> ServedModel | None:
        """As in `Backend`."""
        return self._served.get(name)

    def states(self) -> Sequence[ModelState]:
        """As in `Backend`."""
        return self._served.states()

    async def predict(self, model: ServedModel, contents: Sequence[bytes]) -> Prediction:
        """As in `Backend`; in batches with the images of other requests."""
        answers = await self._batcher([(model, content) for content in contents])
        for answer in answers:
            self._answers.inc(tags={"model": model.name, "outcome": _outcome(answer)})
        return Prediction(model=model.name, version=model.version, answers=answers)

    def _answer(self, items: Sequence[tuple[ServedModel, bytes]]) -> list[Answer]:
        """Answer for images, each with the model that its request has found."""
        self._batches.inc()
        found: dict[int, Answer] = {}
        for model in {id(model): model for model, _ in items}.values():
            places = [place for place, item in enumerate(items) if item[0] is model]
            found |= zip(places, model.predict([items[place][1] for place in places]), strict=True)
        return [found[place] for place in range(len(items))]

    def metrics(self) -> str:
        """As in `Backend`: what the exporters of all nodes have of Ray Serve and of this package."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        lines: list[str] = []
        for node in ray.nodes():
            if node["Alive"]:
                address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with opener.open(address, timeout=_METRICS_TIMEOUT_S) as response:
                    lines += response.read().decode().splitlines()
        return "".join(f"{line}\n" for line in dict.fromkeys(lines) if _SHOWN.match(line))

    def count(self, status: int) -> None:
        """As in `Backend`."""
        self._responses.inc(tags={"status": str(status)})

    def _refresh(self) -> None:
        self._served.refresh()
        states = self._served.states()
        current = {(state.name, state.version) for state in states}
        self._seen |= current
        for name, version in self._seen:
            self._version.set(float((name, version) in current), tags={"model": name, "version": version})
        for state in states:
            self._refused.set(float(state.refused is not None), tags={"model": state.name})


def _outcome(answer: Answer) -> str:
    if answer.error:
        return "unusable"
    return "unknown" if answer.unknown else "abstained" if answer.abstain else "answered"


Deployment = serve.deployment(name="model")(serve.ingress()(Replica))
