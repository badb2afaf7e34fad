"""The HTTP interface: requests in, answers, errors and a page out. Knows neither Ray nor TensorFlow."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pharmclf.core.version import VERSION
from pharmclf.serving.options import Limits, digest
from pharmclf.serving.requests import RequestError, parse_images, read_body
from pharmclf.serving.served_models import ModelState, Prediction, ServedModel

_PAGE = Path(__file__).with_name("page.html")
_IMAGES = {"type": "array", "items": {"type": "string", "format": "byte"}, "description": "Image files in base64"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {"schema": {"type": "object", "required": ["images"], "properties": {"images": _IMAGES}}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}
_ERROR = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in ("error", "received", "expected", "remedy")},
}
_REASONS = {
    400: "The body is not of its type",
    401: "No token, or another one",
    404: "No such model",
    408: "The body has not arrived in time",
    413: "The body is too large, or has too many images",
    415: "This type of body is not supported",
    422: "The only image cannot be used",
    503: "Too many requests at a time",
}
_RESPONSES: dict[int | str, dict[str, object]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in _REASONS.items()
}
_BEARER = HTTPBearer(auto_error=False)
T = TypeVar("T")


class Backend(Protocol):
    """What answers."""

    def find(self, name: str) -> ServedModel | None:
        """The model of a name, the first one for no name; None where there is none."""

    def states(self) -> Sequence[ModelState]:
        """The models that answer."""

    async def predict(self, model: ServedModel, contents: Sequence[bytes]) -> Prediction:
        """Answer for the contents of image files."""

    def metrics(self) -> str:
        """Its metrics, as Prometheus reads them."""

    def count(self, status: int) -> None:
        """Note the status of a response."""


def build_app(backend: Backend, limits: Limits, token_digest: str) -> FastAPI:
    """The application.

    Args:
        backend: what answers.
        limits: of a request to predict.
        token_digest: `digest` of the token that requests must have; "": they need none.
    """
    # pages of the documentation would load scripts from elsewhere
    app = FastAPI(title="pharmclf", version=VERSION, docs_url=None, redoc_url=None)

    async def authorize(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if token_digest and not hmac.compare_digest(digest(given.credentials if given else ""), token_digest):
            received = "another token" if given else "no token"
            remedy = "Send the header Authorization: Bearer TOKEN, or open the link that the server has printed"
            raise RequestError(401, received, "the token of this server", remedy)

    @app.post("/predict", dependencies=[Depends(authorize)], responses=_RESPONSES, openapi_extra={"requestBody": _BODY})
    async def predict(request: Request, model: Annotated[str, Query()] = "") -> Prediction:
        """Answer for one image or several: label, confidence, possible classes, and whether a person must look."""
        found = backend.find(model)
        if found is None:
            names = ", ".join(state.name for state in backend.states())
            raise RequestError(404, f"the model {model[:80]!r}", f"one of {names}", "GET /models lists them")
        headers = request.headers
        late = RequestError(408, "part of a body", f"all of it in {limits.seconds:g} s", "Send less at a time")
        body = await _in_time(read_body(request.stream(), headers.get("content-length"), limits), limits, late)
        contents = await asyncio.to_thread(parse_images, headers.get("content-type", ""), body, limits)
        busy = RequestError(503, "more requests than this server answers", "fewer at a time", "Send it again later")
        prediction = await _in_time(backend.predict(found, contents), limits, busy)
        if len(contents) == 1 and (reason := prediction.answers[0].error):
            expected = "a photo that can be decoded, as JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF"
            raise RequestError(422, f"an image that cannot be used: {reason}", expected, "Send another image")
        return prediction

    @app.get("/models", dependencies=[Depends(authorize)])
    async def models() -> list[ModelState]:
        """The models that answer, with their versions and classes."""
        return list(backend.states())

    @app.get("/metrics", dependencies=[Depends(authorize)], response_class=PlainTextResponse)
    async def metrics() -> str:
        """Metrics of all replicas, as Prometheus reads them."""
        return await asyncio.to_thread(backend.metrics)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether a process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, dict[str, str]]:
        """Version of each model, once all are loaded."""
        return {"models": {state.name: state.version for state in backend.states()}}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        text, policy = _page()
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(text, headers=headers)

    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(ClientDisconnect, _refuse)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(_Observed, backend=backend)
    return app


class _Observed:
    """Counts the responses, and keeps browsers from guessing their types."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app, self._backend = app, backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._backend.count(message["status"])
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self._app(scope, receive, observed if scope["type"] == "http" else send)


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):  # the answer to a client that has gone is not read
        status = error.status_code if isinstance(error, HTTPException) else 400
        received = f"{request.method} {request.url.path[:80]}"
        error = RequestError(status, received, "a request such as POST /predict", "GET /openapi.json lists all")
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
    return JSONResponse(error.content, error.status, headers=headers | {"Connection": "close"})


async def _fail(_request: Request, _error: Exception) -> Response:
    """After it, Starlette raises the error again, for the log."""
    return JSONResponse(RequestError(500, "a failure", "an answer", "See the log of the server").content, 500)


async def _in_time(result: Awaitable[T], limits: Limits, late: RequestError) -> T:
    try:
        async with asyncio.timeout(limits.seconds):
            return await result
    except TimeoutError as error:
        raise late from error


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets it run its own script and style and nothing else."""
    text = _PAGE.read_text(encoding="utf-8")
    allowed = {
        tag: base64.b64encode(hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0].encode()).digest())
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script'].decode()}'; style-src 'sha256-"
        f"{allowed['style'].decode()}'; img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy
